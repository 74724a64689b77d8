package signer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"
)

const (
	// excessSessions of a user beyond the limit are told to come back later; further ones are closed.
	excessSessions = 4
	// sessionRetry is when a session beyond the limit may ask again: by then another may have ended.
	sessionRetry = 2 * time.Second
	// roomPatience is how long a request waits for room among those of its user.
	roomPatience = time.Second
)

var (
	errSessions = errors.New("the user has too many sessions")
	errRoom     = errors.New("the user has too many requests in flight")
	errRate     = errors.New("the user asks too often")
)

// peer is what the sessions of one user share.
type peer struct {
	sessions  int
	excess    int                 // sessions beyond the limit
	unlocking chan struct{}       // one unlock at a time
	requests  *semaphore.Weighted // see requestWeight
	rate      *rate.Limiter       // of requests
}

// join counts a session of a user. One beyond the limit only learns that there are too many; it
// is false where there are too many of these as well.
func (s *Server) join(userID int64) (p *peer, excess, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, known := s.peers[userID]
	if !known {
		p = &peer{
			unlocking: make(chan struct{}, 1), requests: semaphore.NewWeighted(int64(s.cfg.UserRequests)),
			rate: rate.NewLimiter(rate.Limit(s.cfg.UserRate), 2*s.cfg.UserRate),
		}
		s.peers[userID] = p
	}
	switch {
	case p.sessions < s.cfg.MaxSessionsPerUser:
		p.sessions++
		return p, false, true
	case p.excess < excessSessions:
		p.excess++
		return p, true, true
	}
	return nil, true, false
}

// enter makes a session known to whoever revokes what it has unlocked.
func (s *Server) enter(t *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sessions[t] = true
}

// leave locks what a session has unlocked and counts its end. What the user has used up of their rate is remembered for as
// long as they are registered, so that connecting anew does not renew it.
func (s *Server) leave(t *session) {
	t.forgetAll()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sessions, t)
	if t.excess {
		t.peer.excess--
	} else {
		t.peer.sessions--
	}
	if _, registered := s.snapshot.Load().UserByID(t.userID); !registered && t.peer.sessions+t.peer.excess == 0 {
		delete(s.peers, t.userID)
	}
}

// promote makes a session beyond the limit a usual one if there is room by now.
func (s *Server) promote(t *session) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.excess && t.peer.sessions < s.cfg.MaxSessionsPerUser {
		t.excess = false
		t.peer.excess--
		t.peer.sessions++
	}
	return !t.excess
}

// idleTimeout is shorter for a session that is only told to come back.
func (t *session) idleTimeout() time.Duration {
	t.server.mu.Lock()
	defer t.server.mu.Unlock()
	if t.excess {
		return t.server.cfg.FrameTimeout
	}
	return t.server.cfg.IdleTimeout
}

// limit returns why a request is not looked at now. A plain version 2 peer does not understand
// that it should come back, so that its requests wait instead.
func (t *session) limit(ctx context.Context, r *reply) error {
	if !t.server.promote(t) {
		return fmt.Errorf("%w: %w", errSessions, busy(sessionRetry, "you have %d sessions, which is as many as the server allows; close one, or try again later", t.server.cfg.MaxSessionsPerUser))
	}
	if r.noRoom {
		return fmt.Errorf("%w: %w", errRoom, busy(roomPatience, "you have as many requests under way as the server allows; try again"))
	}
	if !t.extended {
		if err := t.peer.rate.Wait(ctx); err != nil {
			return fmt.Errorf("%w: %w", errRate, err)
		}
		return nil
	}
	now := time.Now()
	turn := t.peer.rate.ReserveN(now, 1)
	wait := turn.DelayFrom(now)
	if wait == 0 {
		return nil
	}
	turn.CancelAt(now)
	return fmt.Errorf("%w: %w", errRate, busy(wait, "you ask more than %d times a second, which is as often as the server allows; try again", t.server.cfg.UserRate))
}

// acquireRoom waits for room among the requests of the user. A peer that understands it is told after a while to come back.
func (t *session) acquireRoom(ctx context.Context, r *reply) error {
	if t.peer.requests.TryAcquire(r.weight) { // no timer for the many that need not wait
		return nil
	}
	if !t.extended {
		return t.peer.requests.Acquire(ctx, r.weight)
	}
	waiting, cancel := context.WithTimeout(ctx, roomPatience)
	defer cancel()
	err := t.peer.requests.Acquire(waiting, r.weight)
	if err != nil && ctx.Err() == nil {
		r.noRoom = true
		return nil
	}
	return err
}
