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
	crypto int // the two contexts of crypto11, each of which keeps one aside
	raw    int // those beside crypto11
}

// Sessions of crypto11 that nobody signs with, and the least it takes as the size of a context's pool.
const (
	aside   = 2
	minPool = 1
)

// planSessions gives everything beside crypto11 a quarter of the sessions when
// Ed25519 signatures need them, and one session otherwise.
func planSessions(limit int, edwards bool) plan {
	raw := 1
	if edwards {
		raw = max(raw, limit/4)
	}
	return plan{crypto: limit - raw, raw: raw}
}

func (p plan) total() int   { return p.crypto + p.raw }
func (p plan) signers() int { return p.crypto - aside }

// sessionLimit obeys the limits that a token states (CK_TOKEN_INFO).
func sessionLimit(wanted int, info p11.TokenInfo) (int, error) {
	limit := wanted
	for _, stated := range []uint{info.MaxSessionCount, info.MaxRwSessionCount} {
		if stated == p11.CK_EFFECTIVELY_INFINITE || stated == p11.CK_UNAVAILABLE_INFORMATION {
			continue
		}
		if stated < MinSessions {
			return 0, fmt.Errorf("the token allows %d sessions and %d are needed: %w", stated, MinSessions, token.ErrUnsupported)
		}
		if stated < uint(limit) {
			limit = int(stated)
		}
	}
	return limit, nil
}

// openSessions opens all sessions of a token but the anchor's: up to limit, or as many as the token gives when
// those are fewer. The caller holds the library.
func (t *Token) openSessions(limit int, edwards bool) error {
	for {
		t.plan = planSessions(limit, edwards)
		opened, err := t.openPlanned()
		if err == nil {
			t.signing = semaphore.NewWeighted(int64(t.plan.signers()))
			return nil
		}
		if !hasCode(err, p11.CKR_SESSION_COUNT) || opened < MinSessions || opened >= limit {
			return err
		}
		limit = opened
	}
}

// openPlanned opens the sessions of the plan, or tells how many the token gave, the anchor's among them.
func (t *Token) openPlanned() (opened int, err error) {
	opened = 1
	if t.context, err = t.connect(uint(t.slot.Load()), t.plan.signers()+1); err != nil {
		return opened, err
	}
	warmed, err := warm(t.context, t.plan.signers())
	opened += 1 + warmed
	if err != nil {
		t.context.Close()
		return opened, err
	}
	raw, more, err := newSessions(t.plan.raw, t.openRaw, t.module.api.CloseSession)
	opened += more
	if err != nil {
		t.context.Close()
		return opened, fmt.Errorf("open session: %w", err)
	}
	raw.open = func() (p11.SessionHandle, error) { // one at a time from now on, too
		t.module.library.Lock()
		defer t.module.library.Unlock()
		return t.openRaw()
	}
	t.raw = raw
	return opened, nil
}

func (t *Token) openRaw() (p11.SessionHandle, error) {
	return t.module.api.OpenSession(uint(t.slot.Load()), p11.CKF_SERIAL_SESSION|p11.CKF_RW_SESSION)
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

// newSessions opens all sessions of the pool, one after another, and tells how many it could open.
func newSessions(n int, open func() (p11.SessionHandle, error), end func(p11.SessionHandle) error) (*sessions, int, error) {
	pool := &sessions{places: make(chan p11.SessionHandle, n), open: open, close: end}
	for opened := range n {
		handle, err := open()
		if err != nil {
			close(pool.places)
			for handle := range pool.places {
				pool.close(handle)
			}
			return nil, opened, err
		}
		pool.places <- handle
	}
	return pool, n, nil
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
		if !hasCode(err, p11.CKR_SESSION_HANDLE_INVALID) {
			return err
		}
	}
	return err
}

// reading lends a session for what changes nothing on the token and may be done again.
func (t *Token) reading(ctx context.Context, use func(s session) error) error {
	return persistently(func() error { return t.withSession(ctx, use) })
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
	return t.withSession(ctx, t.onlyLoggedIn(use))
}

// onlyLoggedIn checks the login before use, and notes when the token denies it later.
func (t *Token) onlyLoggedIn(use func(s session) error) func(s session) error {
	return func(s session) error {
		epoch := t.module.epoch.Load()
		in, err := t.loggedIn(s)
		if err != nil {
			return err
		}
		if !in {
			return token.ErrLoginRequired
		}
		err = use(s)
		t.noteDenial(epoch, err)
		return err
	}
}

// loggedIn asks the module, and does not believe it when the token has denied the login since.
func (t *Token) loggedIn(s session) (bool, error) {
	in, err := s.loggedIn()
	return in && t.denied.Load() != t.module.epoch.Load(), err
}

// noteDenial remembers that the token denied a login that the module says there is.
func (t *Token) noteDenial(epoch uint64, err error) {
	if reactionTo(err) == logIn {
		t.denied.Store(epoch)
	}
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
