package admin

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"io"

	"chancery/token"
	"chancery/users"
)

// Signer signs with one key for as long as it is open. It is a crypto.Signer.
type Signer struct {
	ctx  context.Context
	open token.Token
	key  token.Key
}

var _ interface {
	crypto.Signer
	io.Closer
} = (*Signer)(nil)

// Signer logs in with the actor's grant on a key, of any role, for certifying or testing the
// key at the server. All signatures end with ctx. Close it. Errors: ErrNotManager when the actor holds no grant
// on it; ErrKeyDisabled, ErrUserDisabled, ErrExpired; token.ErrMismatch when the token's key is not the registered one.
func (o *Office) Signer(ctx context.Context, actor Actor, name string) (*Signer, error) {
	s, err := o.Store.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	key, err := namedKey(s, name)
	if err != nil {
		return nil, err
	}
	if key.Disabled {
		return nil, fmt.Errorf("%w %q: enable it first", ErrKeyDisabled, name)
	}
	p, err := o.keyUser(s, actor, key)
	if err != nil {
		return nil, err
	}
	defer p.clear()
	open, err := o.openFor(ctx, p)
	if err != nil {
		return nil, err
	}
	held, err := registered(ctx, open, key)
	if err != nil {
		open.Close()
		return nil, err
	}
	return &Signer{ctx: ctx, open: open, key: held}, nil
}

func (o *Office) keyUser(s *users.Snapshot, actor Actor, key *users.Key) (*proof, error) {
	user, err := enabledUser(s, actor.User)
	if err != nil {
		return nil, err
	}
	grant, ok := s.KeyGrant(user.ID, key.ID)
	if !ok {
		return nil, fmt.Errorf("%w: user %q holds no grant on key %q", ErrNotManager, actor.User, key.Name)
	}
	return o.prove(s, user, grant, o.keyring(actor.Passphrase))
}

// registered finds a key on its token and refuses another one in its place.
func registered(ctx context.Context, open token.Token, key *users.Key) (token.Key, error) {
	held, err := open.Key(ctx, key.TokenKeyID)
	if err != nil {
		return nil, fmt.Errorf("admin: key %q: %w", key.Name, err)
	}
	public, err := x509.MarshalPKIXPublicKey(held.Public())
	if err != nil || Handle(public) != key.Handle {
		return nil, fmt.Errorf("admin: key %q: %w: the token holds another key under its identifier", key.Name, token.ErrMismatch)
	}
	return held, nil
}

// Public returns the key's public half.
func (s *Signer) Public() crypto.PublicKey { return s.key.Public() }

// Sign signs as token.Key does; the reader is not used, since tokens have their own.
func (s *Signer) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return s.key.Sign(s.ctx, digest, opts)
}

// Close logs out and closes the token.
func (s *Signer) Close() error { return s.open.Close() }

// proveKey has a key sign a fresh message and verifies that: the private half is there and fits.
func proveKey(ctx context.Context, key token.Key) error {
	message := make([]byte, 64)
	rand.Read(message)
	digest := sha256.Sum256(message)
	input, opts := digest[:], crypto.SignerOpts(crypto.SHA256)
	if key.Algorithm() == token.Ed25519 {
		input, opts = message, crypto.Hash(0)
	}
	signature, err := key.Sign(ctx, input, opts)
	if err != nil {
		return fmt.Errorf("signing a test message: %w", err)
	}
	if !verifies(key.Public(), input, signature) {
		return fmt.Errorf("%w: its test signature does not verify", token.ErrMismatch)
	}
	return nil
}

func verifies(public crypto.PublicKey, input, signature []byte) bool {
	switch key := public.(type) {
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(key, crypto.SHA256, input, signature) == nil
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(key, input, signature)
	case ed25519.PublicKey:
		return ed25519.Verify(key, input, signature)
	}
	return false
}
