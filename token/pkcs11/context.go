package pkcs11

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/ThalesGroup/crypto11"
	p11 "github.com/miekg/pkcs11"

	"chancery/token"
)

// cryptoContext is crypto11's context, with a mark that one of its sessions
// died. crypto11 puts a dead session back into its pool, so that only a new
// context gets rid of it.
type cryptoContext struct {
	*crypto11.Context
	dead atomic.Bool
}

// connect makes a crypto11 context. It logs in elsewhere: all sessions of a
// process share one login (PKCS#11 v2.40 base specification, section 5.6,
// C_Login), and a PIN given here would stay in crypto11's configuration as long
// as the context.
func (t *Token) connect(slot uint) (*cryptoContext, error) {
	number := int(slot)
	context, err := crypto11.Configure(&crypto11.Config{
		Path:              t.cfg.Module,
		SlotNumber:        &number,
		MaxSessions:       t.plan.crypto,
		LoginNotSupported: true,
	})
	if hasCode(err, p11.CKR_CRYPTOKI_ALREADY_INITIALIZED) {
		return nil, fmt.Errorf("another part of this process has initialised %s already: %w", t.cfg.Module, err)
	}
	if err != nil {
		return nil, err
	}
	return &cryptoContext{Context: context}, nil
}

// warm has the pool of a new context open its sessions one after another: the
// pool is a queue, so that as many uses as it has places visit each place once.
// Drawing a random byte is the cheapest use.
func (t *Token) warm(context *cryptoContext) error {
	random, err := context.NewRandomReader()
	if err != nil {
		return err
	}
	for range t.plan.signers() {
		if _, err := random.Read(make([]byte, 1)); err != nil && !hasCode(err, p11.CKR_RANDOM_NO_RNG, p11.CKR_FUNCTION_NOT_SUPPORTED) {
			return fmt.Errorf("open session: %w", err)
		}
	}
	return nil
}

// openSessions opens all sessions of a token just connected. The caller holds loaded.
func (t *Token) openSessions() error {
	open := func() (p11.SessionHandle, error) {
		return t.module.api.OpenSession(uint(t.slot.Load()), p11.CKF_SERIAL_SESSION|p11.CKF_RW_SESSION)
	}
	raw, err := newSessions(t.plan.raw, open, t.module.api.CloseSession)
	if err != nil {
		return fmt.Errorf("open session: %w", err)
	}
	raw.open = func() (p11.SessionHandle, error) { // one at a time from now on, too
		loaded.Lock()
		defer loaded.Unlock()
		return open()
	}
	t.raw = raw
	if err := t.warm(t.context); err != nil {
		raw.closeAll(context.Background()) // nobody uses any
		return err
	}
	return nil
}

// withContext lends crypto11's context while one of its sessions is free, and
// replaces the context when a session of it has died.
func (t *Token) withContext(ctx context.Context, use func(c *cryptoContext) error) error {
	if err := t.acquire(ctx, t.signing, 1); err != nil {
		return err
	}
	context := t.current()
	if context.dead.Load() {
		t.signing.Release(1)
		if err := t.reconnect(ctx); err != nil {
			return err
		}
		if err := t.acquire(ctx, t.signing, 1); err != nil {
			return err
		}
		context = t.current()
	}
	defer t.signing.Release(1)
	err := use(context)
	if endsSession(err) {
		context.dead.Store(true)
	}
	return err
}

func (t *Token) current() *cryptoContext {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.context
}

// reconnect replaces a dead context. It has all its sessions to itself, and
// opens the new context before it closes the old one: the last context of a
// module finalises it.
func (t *Token) reconnect(ctx context.Context) error {
	all := t.plan.signers()
	if err := t.acquire(ctx, t.signing, all); err != nil {
		return err
	}
	defer t.signing.Release(all)
	old := t.current()
	if !old.dead.Load() {
		return nil // another caller was first
	}
	loaded.Lock()
	defer loaded.Unlock()
	slot, _, err := find(t.module.api, Config{Module: t.cfg.Module, Serial: t.serial, Label: t.cfg.Label})
	if err != nil {
		return err
	}
	fresh, err := t.connect(slot)
	if err != nil {
		return fmt.Errorf("%w: %w", token.ErrTokenAbsent, err)
	}
	t.slot.Store(uint64(slot))
	t.mu.Lock()
	t.context = fresh
	t.mu.Unlock()
	t.epoch.Add(1)
	old.Close()
	if err := t.warm(fresh); err != nil {
		fresh.dead.Store(true)
		return err
	}
	return nil
}
