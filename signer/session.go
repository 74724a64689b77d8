package signer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/semaphore"

	"chancery/audit"
	"chancery/tunnel/wire"
	"chancery/users"
)

// session serves one connection.
type session struct {
	server   *Server
	conn     Conn
	id       uuid.UUID
	extended bool
	userID   int64
	user     string
	peer     *peer
	log      *slog.Logger
	origin   *audit.Peer
	excess   bool // beyond the user's limit; guarded by the server's mutex

	serving  context.Context // ends when the server gives its sessions up, not with this one
	cancel   context.CancelCauseFunc
	requests *semaphore.Weighted // see requestWeight
	handlers sync.WaitGroup
	inFlight atomic.Int64 // requests whose reply is not ready
	replies  chan *reply  // roomy enough that nobody waits to send

	mu       sync.Mutex
	unlocked map[int64]unlocked // by key ID
}

// serve identifies the peer and runs its session. When accepting ends, the
// session reads no more and finishes; when ctx ends, its requests are cancelled.
func (s *Server) serve(accepting, ctx context.Context, conn Conn) {
	log := s.log.With("session", conn.Session().String(), "user", conn.PeerName())
	user, ok := s.identify(conn, log)
	if !ok {
		closeConn(conn, log)
		return
	}
	shared, excess, ok := s.join(user.ID)
	if !ok {
		s.cfg.Observer.Refused(RefusedTooMany)
		s.refusals.logger(user.ID, log).Warn("session refused: the user has too many", "limit", s.cfg.MaxSessionsPerUser)
		s.turnAway(conn, user.ID, "too_many_sessions", log)
		closeConn(conn, log)
		return
	}
	serving := ctx
	ctx, cancel := context.WithCancelCause(serving)
	defer cancel(nil)
	t := &session{
		serving: serving,
		server:  s, conn: conn, id: uuid.UUID(conn.Session()), extended: conn.Extended(),
		userID: user.ID, user: user.Name, peer: shared, excess: excess, log: log, cancel: cancel, origin: origin(conn),
		requests: semaphore.NewWeighted(int64(s.cfg.SessionRequests)),
		replies:  make(chan *reply, s.cfg.SessionRequests),
		unlocked: make(map[int64]unlocked),
	}
	s.enter(t)
	defer s.leave(t)
	t.run(accepting, ctx)
}

func (s *Server) identify(conn Conn, log *slog.Logger) (*users.User, bool) {
	user, ok := s.snapshot.Load().User(conn.PeerName())
	if !ok {
		s.cfg.Observer.Refused(RefusedUnknownUser)
		s.refusals.logger(0, log).Warn("session refused: no such user")
		s.turnAway(conn, 0, "unknown_user", log)
		return nil, false
	}
	if user.Disabled {
		s.cfg.Observer.Refused(RefusedDisabledUser)
		s.refusals.logger(user.ID, log).Warn("session refused: the user is disabled")
		s.turnAway(conn, user.ID, string(wire.CodeUserDisabled), log)
		return nil, false
	}
	return user, true
}

// turnAway records that a connection became no session.
func (s *Server) turnAway(conn Conn, userID int64, outcome string, log *slog.Logger) {
	if err := s.recordTurnedAway(conn, userID, outcome); err != nil {
		s.refusals.logger(userID, log).Error("a refused session could not be recorded", "error", err)
	}
}

// run reads until the peer is done, then lets replies in flight go out.
func (t *session) run(accepting, ctx context.Context) {
	t.log.Info("session begins", "extended", t.extended)
	reading, stopReading := context.WithCancel(ctx)
	defer stopReading()
	defer context.AfterFunc(accepting, stopReading)()
	defer context.AfterFunc(reading, func() { _ = t.conn.SetReadDeadline(past) })()
	defer context.AfterFunc(ctx, func() { _ = t.conn.SetWriteDeadline(time.Now().Add(lastWords)) })()
	written := make(chan struct{})
	go func() {
		defer close(written)
		t.write(ctx)
	}()
	if err := t.read(ctx, reading); err != nil {
		t.end(err)
	}
	t.handlers.Wait()
	close(t.replies)
	<-written
	closeConn(t.conn, t.log)
	if t.aborted(ctx) {
		t.log.Warn("session ends", "error", context.Cause(ctx))
		return
	}
	t.log.Info("session ends")
}

// end cuts the session off. What its requests then fail with says so.
func (t *session) end(cause error) { t.cancel(fmt.Errorf("%w: %w", errSessionEnded, cause)) }

// past is a deadline that makes a blocked read return; lastWords is how long a
// write may take once the session has been cancelled.
var past = time.Unix(1, 0)

const lastWords = time.Second

// aborted tells whether the session ended for a reason that forbids further replies.
func (t *session) aborted(ctx context.Context) bool {
	cause := context.Cause(ctx)
	return cause != nil && !errors.Is(cause, errShuttingDown)
}

// read starts a handler for every request until reading ends. It returns nil
// when the peer is done, silent for too long, or the server is shutting down:
// what is in flight is still answered. An error ends the session without more answers.
func (t *session) read(ctx, reading context.Context) error {
	frames := wire.NewReader(t.conn, wire.RequestLimit(t.extended))
	together := &assembly{session: t, ctx: ctx}
	defer together.release()
	for {
		if !frames.Ready() {
			together.release()
		}
		frame, err := t.nextFrame(reading, frames)
		if err != nil {
			return t.endOfStream(ctx, reading, err)
		}
		received := time.Now()
		request, err := wire.DecodeRequest(frame, t.extended)
		if errors.Is(err, wire.ErrMalformed) {
			return err
		}
		r := &reply{received: received, weight: t.server.requestWeight(len(frame) + t.server.workSize(t.userID, request)), ready: make(chan struct{})}
		if err := t.admit(reading, r, together.release); err != nil {
			return t.endOfStream(ctx, reading, err)
		}
		if request == nil {
			together.release()
			t.start(ctx, r, nil, err, nil)
			continue
		}
		together.add(r, request, 1+frames.Buffered()/len(frame))
	}
}

// nextFrame waits for a frame under the idle deadline, and for its rest under a
// shorter one.
func (t *session) nextFrame(reading context.Context, frames *wire.Reader) ([]byte, error) {
	if err := reading.Err(); err != nil {
		return nil, err
	}
	if frames.Ready() {
		return frames.Next()
	}
	if err := t.readDeadline(reading, t.idleTimeout()); err != nil {
		return nil, err
	}
	if err := frames.Wait(); err != nil {
		return nil, err
	}
	if !frames.Ready() {
		if err := t.readDeadline(reading, t.server.cfg.FrameTimeout); err != nil {
			return nil, err
		}
	}
	frame, err := frames.Next()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, errSlowFrame
	}
	return frame, err
}

// readDeadline sets one while reading goes on. The check comes second, because
// whoever ends reading sets a deadline that must not be lost.
func (t *session) readDeadline(reading context.Context, d time.Duration) error {
	if err := t.conn.SetReadDeadline(time.Now().Add(d)); err != nil {
		return err
	}
	return reading.Err()
}

// endOfStream tells an orderly end, which is nil, from any other.
func (t *session) endOfStream(ctx, reading context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, wire.ErrDone), errors.Is(err, io.EOF), reading.Err() != nil:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		t.log.Info("session idle for too long", "limit", t.server.cfg.IdleTimeout)
		return nil
	}
	return err
}

// requestWeight counts a request by what it makes the server hold: one for each
// 16 KiB of its frame and of its workSize. A single request never exceeds a limit.
func (s *Server) requestWeight(size int) int64 {
	const unit = 16 << 10
	return int64(min(1+size/unit, s.cfg.SessionRequests, s.cfg.UserRequests, s.cfg.ServerRequests))
}

// admit waits until the request fits into the session's, the user's and the
// server's limits. Meanwhile nothing is read, and the peer has to wait. Before it waits it has released what is held back,
// which may be what it waits for.
func (t *session) admit(ctx context.Context, r *reply, release func()) error {
	if t.admitAtOnce(r.weight) {
		return nil
	}
	release()
	t.server.stalled.Add(1)
	defer t.server.stalled.Add(-1)
	if err := t.requests.Acquire(ctx, r.weight); err != nil {
		return err
	}
	if err := t.acquireRoom(ctx, r); err != nil || r.noRoom {
		return err
	}
	err := t.server.requests.Acquire(ctx, r.weight)
	if err != nil {
		t.peer.requests.Release(r.weight)
	}
	return err
}

// admitAtOnce admits a request that need not wait.
func (t *session) admitAtOnce(weight int64) bool {
	if !t.requests.TryAcquire(weight) {
		return false
	}
	if !t.peer.requests.TryAcquire(weight) {
		t.requests.Release(weight)
		return false
	}
	if !t.server.requests.TryAcquire(weight) {
		t.peer.requests.Release(weight)
		t.requests.Release(weight)
		return false
	}
	return true
}

// makeRoom gives back what admit took of the user's and the server's limits.
func (t *session) makeRoom(weight int64) {
	t.server.requests.Release(weight)
	t.peer.requests.Release(weight)
}

// start answers one request in a goroutine of its own. An unlock of a plain
// version 2 peer is waited for, so that what was sent behind it finds its effect.
func (t *session) start(ctx context.Context, r *reply, request *wire.Request, fault error, m *member) {
	if !t.extended {
		t.replies <- r
	}
	t.server.inFlight.Add(1)
	t.inFlight.Add(1)
	t.handlers.Go(func() {
		t.answer(ctx, r, request, fault, m)
		t.server.observe(r, request)
		t.inFlight.Add(-1)
		t.server.inFlight.Add(-1)
		if !r.noRoom && !r.isLarge() {
			t.makeRoom(r.weight)
		}
		close(r.ready)
		if t.extended {
			m.reply(r, t.replies)
		}
	})
	if request == nil || t.extended {
		return
	}
	if _, unlocking := request.Body.(*wire.Unlock); unlocking {
		<-r.ready
	}
}

func closeConn(conn Conn, log *slog.Logger) {
	if err := conn.Close(); err != nil {
		log.Debug("closing the connection", "error", err)
	}
}
