package replica

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"sync/atomic"

	"chancery/token"
)

// key is one key pair, whichever members hold it. It implements token.Key.
type key struct {
	token     *Token
	id        []byte
	algorithm token.Algorithm
	public    crypto.PublicKey
	verifier  *token.Verifier
	place     int // of the first member that has shown it; guarded by Token.mu
}

var _ token.Key = (*key)(nil)

// ID returns the identifier, the same at all members.
func (k *key) ID() []byte { return k.id }

// Algorithm returns what the key is for.
func (k *key) Algorithm() token.Algorithm { return k.algorithm }

// Public returns the public half, which each member's has to equal.
func (k *key) Public() crypto.PublicKey { return k.public }

// Sign has one member sign, verifies what it returns, and goes to the next when it fails.
func (k *key) Sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	t := k.token
	if err := token.CheckDigest(k.algorithm, digest, opts); err != nil {
		return nil, t.failed("sign", err)
	}
	o := operation{what: "sign", key: k, limit: t.cfg.SignTimeout, login: true}
	return try(ctx, t, o, func(ctx context.Context, m *member, open token.Token) ([]byte, error) {
		return k.signAt(ctx, m, open, digest, opts)
	})
}

// signAt signs at one member and verifies.
func (k *key) signAt(ctx context.Context, m *member, open token.Token, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	own, err := k.at(ctx, m, open)
	if err != nil {
		return nil, err
	}
	signature, err := own.Sign(ctx, digest, opts)
	if errors.Is(err, token.ErrNoKey) {
		k.token.hold(m, open, k, holding{err: err})
	}
	if err != nil {
		return nil, err
	}
	if err := k.verifier.Verify(digest, opts, signature); err != nil {
		return nil, err
	}
	return signature, nil
}

// errAnotherHalf says that the member is in order and its key is another one.
var errAnotherHalf = fmt.Errorf("another public half than the others': %w", token.ErrMismatch)

// at returns the member's own key, found at its first use. One that the member has not, or has with another public
// half, is asked for no more until the keeper or an unlock looks again.
func (k *key) at(ctx context.Context, m *member, open token.Token) (token.Key, error) {
	t := k.token
	t.mu.Lock()
	held := m.held[k]
	t.mu.Unlock()
	if held.key != nil {
		return held.key, nil
	}
	own, err := open.Key(ctx, k.id)
	if err == nil && !equal(own.Public(), k.public) {
		err = fmt.Errorf("its key %x: %w", k.id, errAnotherHalf)
	}
	switch {
	case err == nil:
		t.hold(m, open, k, holding{key: own})
	case lacksKey(err):
		t.hold(m, open, k, holding{err: err})
		return nil, err
	default:
		return nil, err
	}
	return own, nil
}

// lacksKey tells whether the member is in order and only this key, or this way to use it, is not.
func lacksKey(err error) bool {
	return errors.Is(err, token.ErrNoKey) || errors.Is(err, token.ErrMismatch) || errors.Is(err, token.ErrUnsupported)
}

// hold keeps what is known of a key at a member, unless that was opened anew meanwhile.
func (t *Token) hold(m *member, open token.Token, k *key, h holding) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if m.token != open {
		return
	}
	if h.key != nil {
		k.place = min(k.place, m.place)
	}
	if h.told = m.held[k].told; h.err != nil && h.told != h.err.Error() {
		h.told = h.err.Error()
		t.cfg.Log.Warn("a member of the token is left out for a key", "serial", t.cfg.Serial, "member", m.name, "key", fmt.Sprintf("%x", k.id), "error", h.err)
	}
	m.held[k] = h
}

// Keys lists the keys of the first member in order.
func (t *Token) Keys(ctx context.Context) ([]token.KeyInfo, error) {
	return try(ctx, t, operation{what: "list keys", inOrder: true}, func(ctx context.Context, _ *member, open token.Token) ([]token.KeyInfo, error) {
		return open.Keys(ctx)
	})
}

// Key finds a key at the first member that has it as it is known. The other members' are found as they are needed.
// Another public half is returned, and known from then on, when a member shows it that comes before all that have shown the known
// one, as the primary may that was away; and when some have another half and none the known one, for then the key was replaced.
func (t *Token) Key(ctx context.Context, id []byte) (token.Key, error) {
	t.mu.Lock()
	known := t.keys[string(id)]
	t.mu.Unlock()
	found, another, err := t.find(ctx, id, known)
	if another && lacksKey(err) {
		found, _, err = t.find(ctx, id, nil)
	}
	if err != nil {
		return nil, err
	}
	return found, nil
}

// find asks the members for a key. With known it has to be that one, or one of a member that precedes it, and another tells whether
// a member has another; without, whichever is found first becomes the known one.
func (t *Token) find(ctx context.Context, id []byte, known *key) (found *key, another bool, err error) {
	var others atomic.Bool
	o := operation{what: fmt.Sprintf("find key %x", id), inOrder: true, login: true}
	found, err = try(ctx, t, o, func(ctx context.Context, m *member, open token.Token) (*key, error) {
		own, err := open.Key(ctx, id)
		if err != nil {
			return nil, err
		}
		differs := known != nil && !equal(own.Public(), known.public)
		if known == nil || differs && t.precedes(m, known) {
			return t.learn(m, open, own)
		}
		if differs {
			others.Store(true)
			return nil, fmt.Errorf("its key %x has another public half than is known: %w", id, token.ErrMismatch)
		}
		t.lookAgain(known)
		t.hold(m, open, known, holding{key: own})
		return known, nil
	})
	return found, others.Load(), err
}

// precedes tells whether the member comes before all that have shown the key.
func (t *Token) precedes(m *member, k *key) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return m.place < k.place
}

// learn makes a member's key the known one.
func (t *Token) learn(m *member, open token.Token, own token.Key) (*key, error) {
	verifier, err := token.NewVerifier(own.Public())
	if err != nil {
		return nil, err
	}
	k := &key{token: t, id: bytes.Clone(own.ID()), algorithm: own.Algorithm(), public: own.Public(), verifier: verifier, place: m.place}
	t.mu.Lock()
	if known := t.keys[string(k.id)]; known != nil && equal(known.public, k.public) {
		k = known // somebody else has found it meanwhile
	}
	t.keys[string(k.id)] = k
	t.mu.Unlock()
	t.hold(m, open, k, holding{key: own})
	return k, nil
}

// lookAgain forgets which members lack a key: it may have been cloned to them meanwhile.
func (t *Token) lookAgain(k *key) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range t.members {
		if held, ok := m.held[k]; ok {
			m.held[k] = held.again()
		}
	}
}

func equal(a, b crypto.PublicKey) bool {
	comparable, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && comparable.Equal(b)
}
