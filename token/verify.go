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
)

// ErrBadSignature says that a token gave something as a signature that is none. It must not leave, and the token is
// not to be trusted before its process was started anew.
var ErrBadSignature = errors.New("token: the signature it made does not verify")

// Verify checks what Key.Sign returned for the same digest and options, with the key's public half. It accepts what
// CheckDigest accepts. Errors: ErrBadSignature, ErrUnsupported.
func Verify(public crypto.PublicKey, digest []byte, opts crypto.SignerOpts, signature []byte) error {
	algorithm, err := AlgorithmOf(public)
	if err != nil {
		return err
	}
	if err := CheckDigest(algorithm, digest, opts); err != nil {
		return err
	}
	if !verifies(public, digest, opts, signature) {
		return fmt.Errorf("%s key: %w", algorithm, ErrBadSignature)
	}
	return nil
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
