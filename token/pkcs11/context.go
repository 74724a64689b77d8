package pkcs11

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/ThalesGroup/crypto11"
	p11 "github.com/miekg/pkcs11"
)

// cryptoContext is crypto11's context, with a mark that one of its sessions
// died. crypto11 puts a dead session back into its pool, so that only a new
// context gets rid of it.
type cryptoContext struct {
	*crypto11.Context
	dead atomic.Bool
	once sync.Once
}

// Close closes the context's sessions. The last context of a module finalises it; one is kept until Token.Close for that.
func (c *cryptoContext) Close() {
	c.once.Do(func() { c.Context.Close() })
}

// connect makes a crypto11 context of that many sessions, one of which is opened now. It logs in
// elsewhere: all sessions of a process share one login (PKCS#11 v2.40 base
// specification, section 5.6, C_Login), and a PIN given here would stay in
// crypto11's configuration as long as the context.
func (t *Token) connect(slot uint, sessions int) (*cryptoContext, error) {
	number := int(slot)
	context, err := crypto11.Configure(&crypto11.Config{
		Path:              t.cfg.Module,
		SlotNumber:        &number,
		MaxSessions:       sessions,
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

// warm has the pool of a new context open its sessions one after another, and tells how many it opened: the
// pool is a queue, so that as many uses as it has places visit each place once.
// Drawing a random byte is the cheapest use.
func warm(context *cryptoContext, places int) (opened int, err error) {
	random, err := context.NewRandomReader()
	if err != nil {
		return 0, err
	}
	for opened < places {
		if _, err := random.Read(make([]byte, 1)); err != nil && !hasCode(err, p11.CKR_RANDOM_NO_RNG, p11.CKR_FUNCTION_NOT_SUPPORTED) {
			return opened, fmt.Errorf("open session: %w", err)
		}
		opened++
	}
	return opened, nil
}

// connectWarm makes a context with up to that many places in its pool: fewer when the token, which other programs use
// as well, has no more sessions to give.
func (t *Token) connectWarm(slot uint, places int) (*cryptoContext, int, error) {
	for {
		context, err := t.connect(slot, places+1)
		if err != nil {
			return nil, 0, err
		}
		opened, err := warm(context, places)
		if err == nil {
			return context, places, nil
		}
		context.Close()
		if opened == 0 || !hasCode(err, p11.CKR_SESSION_COUNT) {
			return nil, 0, err
		}
		places = opened
	}
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

// reconnect replaces a dead context, while nobody else has one of its sessions. Nothing
// is lost when that fails: the dead context stays until the next try.
func (t *Token) reconnect(ctx context.Context) error {
	return t.withoutSigners(ctx, func() error {
		old := t.current()
		if !old.dead.Load() {
			return nil // another caller was first
		}
		t.module.library.Lock()
		defer t.module.library.Unlock()
		slot, _, err := find(t.module.api, Config{Module: t.cfg.Module, Serial: t.serial, Label: t.cfg.Label})
		if err != nil {
			return err
		}
		t.slot.Store(uint64(slot))
		old.Close()
		fresh, places, err := t.connectWarm(slot, t.plan.signers())
		if err != nil {
			return fmt.Errorf("open new sessions: %w", err)
		}
		t.mu.Lock()
		t.context = fresh
		t.mu.Unlock()
		t.missing = t.plan.signers() - places
		t.module.epoch.Add(1)
		return nil
	})
}

// withoutSigners does something while nobody uses crypto11's sessions.
func (t *Token) withoutSigners(ctx context.Context, do func() error) error {
	if err := t.acquire(ctx, t.alone, 1); err != nil {
		return err
	}
	defer t.alone.Release(1)
	all := int64(t.plan.signers())
	held := all - int64(t.missing)
	if err := t.acquire(ctx, t.signing, held); err != nil {
		return err
	}
	defer func() { t.signing.Release(all - int64(t.missing)) }()
	return do()
}
