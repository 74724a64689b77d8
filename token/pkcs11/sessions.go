package pkcs11

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	p11 "github.com/miekg/pkcs11"
	"golang.org/x/sync/semaphore"

	"chancery/token"
)

// plan divides the sessions that may be open.
type plan struct {
	crypto int // crypto11's, one of which it never uses
	raw    int // those beside crypto11
}

// planSessions gives everything beside crypto11 a quarter of the sessions when
// Ed25519 signatures need them, and one session otherwise.
func planSessions(limit int, edwards bool) plan {
	raw := 1
	if edwards {
		raw = max(raw, limit/4)
	}
	return plan{crypto: limit - raw, raw: raw}
}

func (p plan) total() int     { return p.crypto + p.raw }
func (p plan) signers() int64 { return int64(p.crypto - 1) }

// sessionLimit obeys the limits that a token states (CK_TOKEN_INFO), and leaves
// one session of those free: a crypto11 context with dead sessions is replaced
// by opening the new one first, so that the login outlives the change.
func sessionLimit(wanted int, info p11.TokenInfo) (int, error) {
	limit := wanted
	for _, stated := range []uint{info.MaxSessionCount, info.MaxRwSessionCount} {
		if stated == p11.CK_EFFECTIVELY_INFINITE || stated == p11.CK_UNAVAILABLE_INFORMATION {
			continue
		}
		if stated <= MinSessions {
			return 0, fmt.Errorf("the token allows %d sessions and %d are needed: %w", stated, MinSessions+1, token.ErrUnsupported)
		}
		if stated-1 < uint(limit) {
			limit = int(stated - 1)
		}
	}
	return limit, nil
}

// session is one session lent to one caller.
type session struct {
	api    *p11.Ctx
	slot   uint
	handle p11.SessionHandle
}

// loggedIn asks the module, since another Token of this process may have logged in.
func (s session) loggedIn() (bool, error) {
	info, err := s.api.GetSessionInfo(s.handle)
	return err == nil && info.State == p11.CKS_RW_USER_FUNCTIONS, err
}

// sessions is a pool of the sessions beside crypto11. A place whose session died is 0.
type sessions struct {
	places chan p11.SessionHandle
	open   func() (p11.SessionHandle, error)
	close  func(p11.SessionHandle) error
	closed atomic.Bool
}

// newSessions opens all sessions of the pool, one after another.
func newSessions(n int, open func() (p11.SessionHandle, error), end func(p11.SessionHandle) error) (*sessions, error) {
	pool := &sessions{places: make(chan p11.SessionHandle, n), open: open, close: end}
	for range n {
		handle, err := open()
		if err != nil {
			close(pool.places)
			for handle := range pool.places {
				pool.close(handle)
			}
			return nil, err
		}
		pool.places <- handle
	}
	return pool, nil
}

// closeAll waits for all sessions to be idle and closes them. Whoever waits for
// one from then on gets token.ErrClosed.
func (p *sessions) closeAll(ctx context.Context) error {
	p.closed.Store(true)
	held := make([]p11.SessionHandle, 0, cap(p.places))
	defer func() {
		for range held {
			p.places <- 0 // wakes those who wait
		}
	}()
	for len(held) < cap(p.places) {
		select {
		case handle := <-p.places:
			if handle != 0 {
				p.close(handle) // the session is gone either way
			}
			held = append(held, 0)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// take waits for a session. One that had died is opened again.
func (p *sessions) take(ctx context.Context) (p11.SessionHandle, error) {
	var handle p11.SessionHandle
	select {
	case handle = <-p.places:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	if p.closed.Load() {
		p.places <- handle
		return 0, token.ErrClosed
	}
	if handle != 0 {
		return handle, nil
	}
	handle, err := p.open()
	if err != nil {
		p.places <- 0
		return 0, err
	}
	return handle, nil
}

// give returns a session, or buries it when what was done with it killed it.
func (p *sessions) give(handle p11.SessionHandle, err error) {
	if endsSession(err) {
		p.close(handle) // frees it when it is only stuck
		handle = 0
	}
	p.places <- handle
}

// withSession lends a session beside crypto11. One that turns out to be dead
// before anything happened is buried and the next one is tried: when the token
// has dropped them all, the last try gets a new one.
func (t *Token) withSession(ctx context.Context, use func(s session) error) (err error) {
	for range cap(t.raw.places) + 1 {
		err = t.withOneSession(ctx, use)
		if !hasCode(err, p11.CKR_SESSION_HANDLE_INVALID, p11.CKR_SESSION_CLOSED) {
			return err
		}
	}
	return err
}

func (t *Token) withOneSession(ctx context.Context, use func(s session) error) error {
	if err := t.ready(ctx); err != nil {
		return err
	}
	waiting, cancel := context.WithTimeout(ctx, t.cfg.SessionWait)
	defer cancel()
	handle, err := t.raw.take(waiting)
	if err != nil {
		return t.busy(ctx, err)
	}
	defer func() { t.raw.give(handle, err) }()
	err = use(session{api: t.module.api, slot: uint(t.slot.Load()), handle: handle})
	return err
}

// withAllSessions lends one of the sessions beside crypto11 while nobody uses the others.
func (t *Token) withAllSessions(ctx context.Context, use func(s session) error) error {
	waiting, cancel := context.WithTimeout(ctx, t.cfg.SessionWait)
	defer cancel()
	for range cap(t.raw.places) - 1 {
		handle, err := t.raw.take(waiting)
		if err != nil {
			return t.busy(ctx, err)
		}
		defer t.raw.give(handle, nil)
	}
	return t.withSession(ctx, use)
}

// withLogin lends a session of a token that is logged in.
func (t *Token) withLogin(ctx context.Context, use func(s session) error) error {
	return t.withSession(ctx, func(s session) error {
		in, err := s.loggedIn()
		if err != nil {
			return err
		}
		if !in {
			return token.ErrLoginRequired
		}
		return use(s)
	})
}

// acquire waits for units of a semaphore, in the order of arrival.
func (t *Token) acquire(ctx context.Context, units *semaphore.Weighted, n int64) error {
	if err := t.ready(ctx); err != nil {
		return err
	}
	if !units.TryAcquire(n) {
		waiting, cancel := context.WithTimeout(ctx, t.cfg.SessionWait)
		defer cancel()
		if err := units.Acquire(waiting, n); err != nil {
			return t.busy(ctx, err)
		}
	}
	if t.closed.Load() {
		units.Release(n)
		return token.ErrClosed
	}
	return nil
}

// busy says why a wait ended without a session; other errors pass.
func (t *Token) busy(ctx context.Context, err error) error {
	switch {
	case err != context.DeadlineExceeded && err != context.Canceled:
		return err
	case t.closed.Load():
		return token.ErrClosed
	case ctx.Err() != nil:
		return fmt.Errorf("%w: no session became free: %w", token.ErrBusy, ctx.Err())
	}
	return fmt.Errorf("%w: no session became free within %v", token.ErrBusy, t.cfg.SessionWait.Round(time.Millisecond))
}
