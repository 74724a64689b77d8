package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	_ "crypto/sha256" // the hashes that RSA-PSS computes with
	_ "crypto/sha512"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
)

// ErrBadSignature says that a token gave something as a signature that is none. It must not leave, and the token is
// not to be trusted before its process was started anew.
var ErrBadSignature = errors.New("token: the signature it made does not verify")

// Verify checks what Key.Sign returned for the same digest and options, with the key's public half. It accepts what
// CheckDigest accepts. Errors: ErrBadSignature, ErrUnsupported.
func Verify(public crypto.PublicKey, digest []byte, opts crypto.SignerOpts, signature []byte) error {
	v, err := NewVerifier(public)
	if err != nil {
		return err
	}
	return v.Verify(digest, opts, signature)
}

// Verifier does for one key what Verify does, and prepares itself for keys that sign much. Its method may be called
// from several goroutines at once.
type Verifier struct {
	public    crypto.PublicKey
	algorithm Algorithm
	checked   atomic.Int64            // signatures
	prepared  atomic.Pointer[p256Key] // nil before it is worthwhile, or where it is not possible
}

// NewVerifier makes one. The error is ErrUnsupported.
func NewVerifier(public crypto.PublicKey) (*Verifier, error) {
	algorithm, err := AlgorithmOf(public)
	if err != nil {
		return nil, err
	}
	return &Verifier{public: public, algorithm: algorithm}, nil
}

// Verify checks what Key.Sign returned for the same digest and options. Errors: ErrBadSignature, ErrUnsupported.
func (v *Verifier) Verify(digest []byte, opts crypto.SignerOpts, signature []byte) error {
	if err := CheckDigest(v.algorithm, digest, opts); err != nil {
		return err
	}
	if v.checked.Add(1) == worthwhile && v.algorithm == P256 {
		go v.prepare()
	}
	if prepared := v.prepared.Load(); prepared != nil && prepared.verifies(digest, signature) {
		return nil
	}
	// The standard library has the last word on what is no signature.
	if !verifies(v.public, digest, opts, signature) {
		return fmt.Errorf("%s key: %w", v.algorithm, ErrBadSignature)
	}
	return nil
}

const (
	// worthwhile is after how many signatures preparing has paid for itself soon.
	worthwhile = 512
	// maxPrepared bounds the keys of a process that are prepared, each with 850 KB. Those beyond are verified in the usual time.
	maxPrepared = 32
)

// preparing counts the prepared keys.
var preparing atomic.Int64

func (v *Verifier) prepare() {
	if preparing.Add(1) > maxPrepared {
		preparing.Add(-1)
		return
	}
	v.prepared.Store(newP256Key(v.public.(*ecdsa.PublicKey)))
	runtime.AddCleanup(v, func(n *atomic.Int64) { n.Add(-1) }, &preparing)
}

func verifies(public crypto.PublicKey, digest []byte, opts crypto.SignerOpts, signature []byte) bool {
	switch key := public.(type) {
	case *rsa.PublicKey:
		if pss, ok := opts.(*rsa.PSSOptions); ok {
			salt := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}
			return rsa.VerifyPSS(key, pss.Hash, digest, signature, salt) == nil
		}
		return verifiesPlain(key, opts.HashFunc(), digest, signature)
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(key, digest, signature) // takes the leftmost bits of long digests
	case ed25519.PublicKey:
		return ed25519.Verify(key, digest, signature)
	}
	return false
}
