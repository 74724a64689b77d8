package client

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"io"

	"chancery/tunnel/wire"
)

// Key is a crypto.Signer for a key of the server. It may be used by many
// goroutines, as long as its Client is not closed. Signing needs the key to be
// unlocked, before or after Client.Key.
type Key struct {
	client *Client
	info   *KeyInfo
}

var _ crypto.Signer = (*Key)(nil)

// Key returns the named key.
func (c *Client) Key(ctx context.Context, name string) (*Key, error) {
	info, err := c.known(ctx, name)
	if err != nil {
		return nil, err
	}
	return &Key{client: c, info: info}, nil
}

// Info describes the key. The caller must not change it.
func (k *Key) Info() *KeyInfo { return k.info }

// Public returns the public half: *rsa.PublicKey, *ecdsa.PublicKey or ed25519.PublicKey.
func (k *Key) Public() crypto.PublicKey { return k.info.Public }

// Sign is SignContext without a deadline of its own. The random source is the
// token's; the argument is ignored.
func (k *Key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.SignContext(context.Background(), digest, opts)
}

// SignContext signs a digest made with opts.HashFunc(): RSA with PKCS #1 v1.5,
// or with PSS when opts is a *rsa.PSSOptions whose salt has the hash's length
// (rsa.PSSSaltLengthAuto counts as that); ECDSA as DER. An Ed25519 key takes the
// whole message, of at most MaxMessage bytes, and opts.HashFunc() zero.
//
// ErrInterrupted says that the signature may have been made without reaching this side.
func (k *Key) SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	d, err := digestOf(digest, opts)
	if err != nil {
		return nil, told("sign", k.info.Name, err)
	}
	signatures, err := k.client.SignAll(ctx, k.info.Name, []Digest{d})
	if err != nil {
		return nil, err
	}
	return signatures[0], nil
}

func digestOf(sum []byte, opts crypto.SignerOpts) (Digest, error) {
	if opts == nil {
		opts = crypto.Hash(0)
	}
	d := Digest{Hash: opts.HashFunc(), Sum: sum}
	switch o := opts.(type) {
	case *ed25519.Options:
		if o.Context != "" {
			return d, failure(wire.CodeAlgorithmMismatch, "Ed25519 with a context string is not supported")
		}
	case *rsa.PSSOptions:
		d.PSS = true
		if o.SaltLength != rsa.PSSSaltLengthAuto && o.SaltLength != rsa.PSSSaltLengthEqualsHash && o.SaltLength != d.Hash.Size() {
			return d, failure(wire.CodeAlgorithmMismatch, "PSS is supported with a salt of the hash's length only")
		}
	}
	return d, nil
}
