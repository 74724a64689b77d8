package soft

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha256" // the hashes that RSA-PSS computes with
	_ "crypto/sha512"
	"errors"
	"fmt"

	"chancery/token"
)

// key is one unsealed key. The token's mu guards private.
type key struct {
	token   *Token
	info    token.KeyInfo
	source  string        // the file's content that private came from
	private crypto.Signer // nil without login, and once the token is closed or the key destroyed
}

var _ token.Key = (*key)(nil)

func (k *key) ID() []byte                 { return bytes.Clone(k.info.ID) }
func (k *key) Algorithm() token.Algorithm { return k.info.Algorithm }
func (k *key) Public() crypto.PublicKey   { return k.info.Public }

// Sign signs with the standard library, which checks RSA signatures for faults
// of the CRT before it returns them (crypto/rsa). It never waits for another
// caller.
func (k *key) Sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	signature, err := k.sign(ctx, digest, opts)
	if err != nil {
		return nil, k.token.failed(fmt.Sprintf("sign with key %x", k.info.ID), err)
	}
	return signature, nil
}

func (k *key) sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := token.CheckDigest(k.info.Algorithm, digest, opts); err != nil {
		return nil, err
	}
	signature, err := k.signUnsealed(digest, opts)
	if !errors.Is(err, token.ErrLoginRequired) {
		return signature, err
	}
	again, err := k.token.openKey(ctx, k.info.ID)
	if err != nil {
		return nil, err
	}
	if !equal(again.info.Public, k.info.Public) {
		return nil, fmt.Errorf("another key has its identifier now: %w", token.ErrMismatch)
	}
	return again.signUnsealed(digest, opts)
}

// signUnsealed signs with the private half in memory, and says token.ErrLoginRequired when there is none.
func (k *key) signUnsealed(digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	k.token.mu.RLock()
	defer k.token.mu.RUnlock()
	if k.token.closed {
		return nil, token.ErrClosed
	}
	if k.private == nil {
		return nil, token.ErrLoginRequired
	}
	if pss, ok := opts.(*rsa.PSSOptions); ok {
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: pss.Hash}
	}
	return k.private.Sign(rand.Reader, digest, opts)
}

// wipe forgets the private half. What big integers leave behind in memory is
// the garbage collector's; an Ed25519 key is overwritten.
func (k *key) wipe() {
	if private, ok := k.private.(ed25519.PrivateKey); ok {
		clear(private)
	}
	k.private = nil
}

func equal(a, b crypto.PublicKey) bool {
	comparable, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && comparable.Equal(b)
}
