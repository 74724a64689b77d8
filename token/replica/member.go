package replica

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"chancery/token"
)

// State is what a member is good for.
type State string

// The states of a member.
const (
	StateOpening State = "opening"  // not tried yet
	StateHealthy State = "healthy"  // takes requests
	StateLeftOut State = "left out" // looked after, and taken back by itself
	StateBarred  State = "barred"   // rejected the PIN that others took: a person has to see to it, and open the token anew
)

// maxStrikes is how many times in a row a member may be busy past its time before it is left out, provided that
// it has done nothing well for as long as Config.SignTimeout: under a burst of requests all those at the end
// of the line fail in a row, and the member is none the worse for it.
const maxStrikes = 3

var (
	errOverdue  = errors.New("did not answer in time")
	errPanicked = errors.New("the driver panicked")
	errTriesLow = fmt.Errorf("%w: it counts wrong PINs, so none is sent to it; log in once with its own tool", token.ErrPINLocked)
)

// member is one of the tokens. Token.mu guards it; only its keeper opens and closes it.
type member struct {
	name  string
	place int // among the members; the primary's is 0
	open  func(ctx context.Context) (token.Token, error)
	kick  chan struct{} // has the keeper look now
	tried chan struct{} // closed after the first attempt to open

	token       token.Token // nil while not open
	state       State
	since       time.Time
	err         error
	generation  uint64 // grows each time it is taken back
	maxSessions int
	held        map[*key]holding
	inFlight    int
	most        int       // calls in flight at once, so far
	returned    int       // calls that have returned
	latest      time.Time // when the latest of them did
	behind      int       // calls past their time that have not returned
	strikes     int
	good        time.Time // when it last did something well
	signed      bool      // since the keeper's latest look

	attempts  int       // to take it back, since it was last seen in order
	notBefore time.Time // of the next attempt
}

// holding is what a member has of a key.
type holding struct {
	key  token.Key // nil when it cannot be used there
	err  error     // why
	told string    // what the log has of that
}

// again is what is held once the reason to lack the key is forgotten.
func (h holding) again() holding { return holding{key: h.key, told: h.told} }

// leaveOut takes no more requests to the member until its keeper has seen to it. The caller holds mu.
func (t *Token) leaveOut(m *member, err error) {
	if m.state != StateHealthy {
		return
	}
	t.enter(m, StateLeftOut, err)
	t.cfg.Log.Warn("a member of the token is left out", "serial", t.cfg.Serial, "member", m.name, "error", err)
	m.wake()
}

// bar leaves a member out for good. The caller holds mu.
func (t *Token) bar(m *member, err error) {
	t.enter(m, StateBarred, err)
	t.cfg.Log.Error("a member rejected the PIN that the others took; it gets none any more", "serial", t.cfg.Serial, "member", m.name, "error", err)
	m.wake()
}

func (t *Token) enter(m *member, state State, err error) {
	if m.state != state {
		m.state, m.since = state, time.Now()
	}
	m.err = err
}

// wake has the keeper look now.
func (m *member) wake() {
	select {
	case m.kick <- struct{}{}:
	default:
	}
}

// outcome is what a call ended with.
type outcome[T any] struct {
	value T
	err   error
}

// overtakings is how many calls may return before one that began earlier, for each of the most that were ever in flight at once,
// and leave it time: a token that does one thing at a time has calls wait for each other, in no certain order.
const overtakings = 2

// patience is for how long a call that has taken limit may still go on: as long as it may be waiting for others that return. Passed is
// how many have. The caller holds mu.
func (m *member) patience(passed int, limit time.Duration) time.Duration {
	if m.behind > 0 || passed == 0 || passed > overtakings*m.most {
		return 0
	}
	return time.Until(m.latest.Add(limit))
}

// call makes one call to a member in a goroutine of its own, since it may never return. The call's context ends a
// little before limit, so that a driver that obeys it is not taken for one that hangs. When the caller's context ends,
// call returns, and the watch over the member's call goes on. The caller of call has counted it as in flight.
func call[T any](ctx context.Context, t *Token, m *member, limit time.Duration, f func(ctx context.Context) (T, error)) (T, error) {
	ended := make(chan outcome[T], 2) // the call's own, and that it is overdue
	bounded, cancel := context.WithTimeout(ctx, limit-limit/8)
	var overdue, returned bool // guarded by mu, as is watch
	var watch *time.Timer
	t.mu.Lock()
	m.most = max(m.most, m.inFlight)
	before := m.returned
	watch = time.AfterFunc(limit, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if returned {
			return
		}
		if left := m.patience(m.returned-before, limit); left > 0 {
			watch.Reset(left)
			return
		}
		overdue = true
		m.behind++
		err := fmt.Errorf("%w: %w", token.ErrTokenAbsent, errOverdue)
		t.leaveOut(m, err)
		ended <- outcome[T]{err: err}
	})
	t.mu.Unlock()
	go func() {
		defer cancel()
		value, err := guarded(bounded, t, m, f)
		t.mu.Lock()
		defer t.mu.Unlock()
		watch.Stop()
		returned = true
		m.returned, m.latest = m.returned+1, time.Now()
		if overdue {
			m.behind--
		}
		m.inFlight--
		if m.inFlight == 0 && m.state != StateHealthy {
			m.wake()
		}
		ended <- outcome[T]{value, err}
	}()
	select {
	case o := <-ended:
		return o.value, o.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

// guarded makes an error of a panic: a driver's mistake must not end the process that holds the other members.
func guarded[T any](ctx context.Context, t *Token, m *member, f func(ctx context.Context) (T, error)) (value T, err error) {
	defer func() {
		if p := recover(); p != nil {
			t.cfg.Log.Error("panic over a member of the token", "serial", t.cfg.Serial, "member", m.name, "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("%w: %w", token.ErrTokenAbsent, errPanicked)
		}
	}()
	return f(ctx)
}
