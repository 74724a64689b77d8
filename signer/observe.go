package signer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"chancery/token"
	"chancery/tunnel/wire"
)

// Observer is told what a Server does, for metrics. Many goroutines call it on the
// path of requests, so that its methods must neither block nor allocate.
type Observer interface {
	// Answered reports a request whose answer is ready: its kind (wire.RequestBody.Name, or
	// KindUnsupported), the error's code, "session_ended" where the client had gone, or "" for success, and the time since
	// its frame had arrived, with any waiting for room among the requests in flight.
	Answered(kind string, code wire.Code, took time.Duration)
	// Signed reports what one call to a token took, whether it made a signature or failed.
	// A batch is as many calls.
	Signed(algorithm token.Algorithm, scheme wire.Scheme, took time.Duration, err error)
	// Derived reports one Argon2id: how long it waited for a place, and what it took.
	Derived(waited, took time.Duration)
	// Refused reports a session that was closed without serving it.
	Refused(reason Refusal)
}

// KindUnsupported is the kind of requests that could not be decoded.
const KindUnsupported = "unsupported"

// Refusal says why a session was not served.
type Refusal string

// The reasons.
const (
	RefusedUnknownUser  Refusal = "unknown_user"
	RefusedDisabledUser Refusal = "disabled_user"
	RefusedTooMany      Refusal = "too_many_sessions"
)

// nobody observes nothing.
type nobody struct{}

func (nobody) Answered(string, wire.Code, time.Duration)                 {}
func (nobody) Signed(token.Algorithm, wire.Scheme, time.Duration, error) {}
func (nobody) Derived(time.Duration, time.Duration)                      {}
func (nobody) Refused(Refusal)                                           {}

// observe reports an answer that is ready.
func (s *Server) observe(r *reply, request *wire.Request) {
	kind, code := KindUnsupported, wire.Code("")
	if request != nil {
		kind = request.Body.Name()
	}
	if failure, failed := r.response.Body.(*wire.Error); failed {
		code = failure.Code
	}
	s.cfg.Observer.Answered(kind, code, time.Since(r.received))
}

// ErrNotServing is returned by Alive before Serve has read the store.
var ErrNotServing = errors.New("signer: not serving yet")

// Stuck is how long a look at the store may take until Alive takes it for one that hangs.
const Stuck = 30 * time.Second

// Alive returns nil while the server can take up changes and tell how it is. It asks no token
// and no disk, but waits for the server's locks: one that does not return is not alive either.
// A store that fails is no reason to be restarted, one that never answers is. It stays alive while it drains.
func (s *Server) Alive() error {
	watcher := s.watcher.Load()
	if watcher == nil {
		return ErrNotServing
	}
	s.Status()
	return moving(watcher.Looked().At, s.cfg.PollEvery)
}

// moving returns an error where the poll that looked last at the given time hangs.
func moving(looked time.Time, every time.Duration) error {
	if time.Since(looked) > Stuck+every {
		return fmt.Errorf("signer: the store has not answered since %s", looked.Format(time.RFC3339))
	}
	return nil
}

// StoreReadable reads the store's revision, and returns the error or ctx's, or why the seal over the store does not open.
func (s *Server) StoreReadable(ctx context.Context) error {
	if snapshot := s.snapshot.Load(); snapshot != nil && snapshot.Closed() != nil {
		return snapshot.Closed()
	}
	if _, err := s.cfg.Store.Revision(ctx); err != nil {
		return fmt.Errorf("signer: read the store: %w", err)
	}
	return nil
}
