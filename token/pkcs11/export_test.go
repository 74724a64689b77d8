package pkcs11

import (
	"context"

	p11 "github.com/miekg/pkcs11"

	"chancery/token"
)

// What tests see of the inside.
var (
	Explained    = explained
	Refusal      = refusal
	SessionLimit = sessionLimit
)

// Algorithms lists what a token with these mechanisms is good for.
func Algorithms(m map[uint]p11.MechanismInfo) []token.Algorithm { return mechanisms(m).algorithms() }

// Occupy takes all sessions, as calls that hang in the module would.
func (t *Token) Occupy(ctx context.Context) (free func(), err error) {
	all := int64(t.plan.signers())
	if err := t.signing.Acquire(ctx, all); err != nil {
		return nil, err
	}
	var handles []p11.SessionHandle
	for range t.plan.raw {
		handle, err := t.raw.take(ctx)
		if err != nil {
			return nil, err
		}
		handles = append(handles, handle)
	}
	return func() {
		t.signing.Release(all)
		for _, handle := range handles {
			t.raw.give(handle, nil)
		}
	}, nil
}

// DropAllSessions has the token forget every session and the login, as after a
// reset or a time-out.
func (t *Token) DropAllSessions() error {
	return t.module.api.CloseAllSessions(uint(t.slot.Load()))
}

// DropCryptoSessions has the token forget crypto11's sessions only. SoftHSM
// numbers its handles from 1.
func (t *Token) DropCryptoSessions(ctx context.Context) error {
	raw, err := t.rawHandles(ctx)
	if err != nil {
		return err
	}
	for handle := p11.SessionHandle(1); handle < 1000; handle++ {
		if !raw[handle] {
			t.module.api.CloseSession(handle) // an error where there is no such session
		}
	}
	return nil
}

// JamCryptoSessions leaves an unfinished search in each of crypto11's sessions.
func (t *Token) JamCryptoSessions(ctx context.Context) error {
	raw, err := t.rawHandles(ctx)
	if err != nil {
		return err
	}
	for handle := p11.SessionHandle(1); handle < 1000; handle++ {
		if !raw[handle] {
			t.module.api.FindObjectsInit(handle, nil) // an error where there is no such session
		}
	}
	return nil
}

// DropRawSessions has the token forget the sessions beside crypto11 only.
func (t *Token) DropRawSessions(ctx context.Context) error {
	raw, err := t.rawHandles(ctx)
	if err != nil {
		return err
	}
	for handle := range raw {
		if err := t.module.api.CloseSession(handle); err != nil {
			return err
		}
	}
	return nil
}

func (t *Token) rawHandles(ctx context.Context) (map[p11.SessionHandle]bool, error) {
	raw := map[p11.SessionHandle]bool{}
	for range t.plan.raw {
		handle, err := t.raw.take(ctx)
		if err != nil {
			return nil, err
		}
		raw[handle] = true
	}
	for handle := range raw {
		t.raw.give(handle, nil)
	}
	return raw, nil
}

// CheckProtection does what Generate does with a key that it has just made.
func (t *Token) CheckProtection(ctx context.Context, id []byte) error {
	_, err := t.protectedKey(ctx, id)
	return err
}
