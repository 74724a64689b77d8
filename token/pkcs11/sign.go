package pkcs11

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/ThalesGroup/crypto11"
	p11 "github.com/miekg/pkcs11"

	"chancery/token"
)

// key is one key of the token, with its handle kept.
type key struct {
	token *Token
	info  token.KeyInfo

	found atomic.Pointer[handle]
	mu    sync.Mutex // one search at a time
}

var _ token.Key = (*key)(nil)

// handle is where the token keeps the private half, as long as the epoch lasts.
type handle struct {
	epoch   uint64
	signer  crypto11.Signer  // RSA and ECDSA
	private p11.ObjectHandle // Ed25519
}

func (k *key) ID() []byte                 { return bytes.Clone(k.info.ID) }
func (k *key) Algorithm() token.Algorithm { return k.info.Algorithm }
func (k *key) Public() crypto.PublicKey   { return k.info.Public }

// Sign signs on a session that is open already. Waiting for one ends with ctx
// (token.ErrBusy); a signature that the module has begun cannot be cancelled.
func (k *key) Sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	signature, err := k.sign(ctx, digest, opts)
	if err != nil {
		return nil, k.token.failed(fmt.Sprintf("sign with key %x", k.info.ID), err)
	}
	return signature, nil
}

// sign repeats a signature that was not made for a reason that another session, or a handle
// looked up anew, may mend.
func (k *key) sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := k.token.ready(ctx); err != nil {
		return nil, err
	}
	if err := token.CheckDigest(k.info.Algorithm, digest, opts); err != nil {
		return nil, err
	}
	if _, isPSS := opts.(*rsa.PSSOptions); isPSS && !k.token.pss {
		return nil, fmt.Errorf("the token has no RSA-PSS: %w", token.ErrUnsupported)
	}
	var signature []byte
	err := persistently(func() error {
		var used *handle
		var err error
		signature, used, err = k.signOnce(ctx, digest, opts)
		if next := reactionTo(err); next == lookUp || next == replace {
			k.found.CompareAndSwap(used, nil)
		}
		return err
	})
	return signature, err
}

func (k *key) signOnce(ctx context.Context, digest []byte, opts crypto.SignerOpts) (signature []byte, h *handle, err error) {
	if k.info.Algorithm != token.Ed25519 && k.token.current().dead.Load() { // before the search, whose handle would be stale by then
		if err := k.token.reconnect(ctx); err != nil {
			return nil, nil, err
		}
	}
	h, err = k.handle(ctx)
	if err != nil {
		return nil, nil, err
	}
	if k.info.Algorithm == token.Ed25519 {
		err = k.token.withSession(ctx, func(s session) error {
			if h.epoch != k.token.module.epoch.Load() {
				return errStale
			}
			signature, err = s.signEdwards(h.private, digest)
			return err
		})
		k.token.noteDenial(h.epoch, err)
		return signature, h, err
	}
	err = k.token.withContext(ctx, func(*cryptoContext) error {
		if h.epoch != k.token.module.epoch.Load() {
			return errStale // the signer belongs to a context that was replaced
		}
		signature, err = signWith(h.signer, k.info.Algorithm, digest, opts)
		return err
	})
	k.token.noteDenial(h.epoch, err)
	return signature, h, err
}

// signWith hands a digest to crypto11 in the form in which it signs it right.
func signWith(signer crypto11.Signer, a token.Algorithm, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if curve := a.Curve(); curve != nil {
		// CKM_ECDSA takes at most the length of the order; FIPS 186-5, section 6.4
		// signs the leftmost bits, which are whole bytes here.
		size := (curve.Params().N.BitLen() + 7) / 8
		return signer.Sign(rand.Reader, digest[:min(len(digest), size)], opts)
	}
	if pss, ok := opts.(*rsa.PSSOptions); ok {
		return signer.Sign(rand.Reader, digest, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: pss.Hash})
	}
	if prefix, ok := sha3Prefixes[opts.HashFunc()]; ok {
		// crypto11 knows no SHA-3 and would sign the bare digest. Without a
		// hash it leaves the whole DigestInfo to its caller.
		return signer.Sign(rand.Reader, append(bytes.Clone(prefix), digest...), crypto.Hash(0))
	}
	return signer.Sign(rand.Reader, digest, opts)
}

// sha3Prefixes are what precedes the digest in a DigestInfo (RFC 8017, section
// 9.2; the identifiers are 2.16.840.1.101.3.4.2.8 and .10 of NIST's register).
var sha3Prefixes = map[crypto.Hash][]byte{
	crypto.SHA3_256: {0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x08, 0x05, 0x00, 0x04, 0x20},
	crypto.SHA3_512: {0x30, 0x51, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x0a, 0x05, 0x00, 0x04, 0x40},
}

// handle returns the kept handle, or searches when there is none of this epoch:
// tokens may give an old handle's number to another object after a login.
func (k *key) handle(ctx context.Context) (*handle, error) {
	epoch := k.token.module.epoch.Load()
	if h := k.found.Load(); h != nil && h.epoch == epoch {
		return h, nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if h := k.found.Load(); h != nil && h.epoch == epoch {
		return h, nil
	}
	h, err := k.search(ctx)
	if err != nil && k.token.module.epoch.Load() != epoch {
		return nil, fmt.Errorf("%w: %w", errStale, err) // a login or logout came between
	}
	if err != nil {
		return nil, err
	}
	h.epoch = epoch
	k.found.Store(h)
	return h, nil
}

// search finds the private half and makes sure that the public one is still
// what it was.
func (k *key) search(ctx context.Context) (*handle, error) {
	h := &handle{}
	err := k.token.withLogin(ctx, func(s session) error {
		var err error
		if h.private, err = s.privateHandle(k.info.ID); err != nil {
			return err
		}
		info, err := s.publicHalf(k.info.ID)
		if err != nil {
			return err
		}
		if !equal(info.Public, k.info.Public) {
			return fmt.Errorf("the public key object was replaced: %w", token.ErrMismatch)
		}
		return nil
	})
	if err != nil || k.info.Algorithm == token.Ed25519 {
		return h, err
	}
	err = k.token.withContext(ctx, func(c *cryptoContext) error {
		h.signer, err = c.FindKeyPair(k.info.ID, nil)
		return err
	})
	if err == nil && !equal(h.signer.Public(), k.info.Public) {
		err = token.ErrMismatch
	}
	return h, err
}

func equal(a, b crypto.PublicKey) bool {
	comparable, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && comparable.Equal(b)
}

// prove has the private half sign a random value and checks it with the public half.
func (k *key) prove(ctx context.Context) error {
	value := make([]byte, sha256.Size)
	rand.Read(value) // never fails: it ends the program instead
	var opts crypto.SignerOpts = crypto.SHA256
	if k.info.Algorithm == token.Ed25519 {
		opts = crypto.Hash(0)
	}
	signature, err := k.sign(ctx, value, opts)
	if err != nil {
		return err
	}
	if err := token.Verify(k.info.Public, value, opts, signature); err != nil {
		return fmt.Errorf("%w: %w", token.ErrMismatch, err)
	}
	return nil
}
