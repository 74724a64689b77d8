package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"fmt"
)

// ErrBadSignature says that a signature is not one of this key over this input.
var ErrBadSignature = errors.New("token: the signature does not verify")

// Verify checks what Key.Sign returned for the same digest and options. The error is ErrBadSignature,
// or ErrUnsupported for a key or options that Sign does not know.
func Verify(public crypto.PublicKey, digest []byte, opts crypto.SignerOpts, signature []byte) error {
	valid := false
	switch public := public.(type) {
	case *rsa.PublicKey:
		valid = verifyRSA(public, digest, opts, signature) == nil
	case *ecdsa.PublicKey:
		valid = ecdsa.VerifyASN1(public, digest, signature)
	case ed25519.PublicKey:
		valid = ed25519.Verify(public, digest, signature)
	default:
		return fmt.Errorf("public key of type %T: %w", public, ErrUnsupported)
	}
	if !valid {
		return ErrBadSignature
	}
	return nil
}

func verifyRSA(public *rsa.PublicKey, digest []byte, opts crypto.SignerOpts, signature []byte) error {
	if pss, ok := opts.(*rsa.PSSOptions); ok {
		return rsa.VerifyPSS(public, pss.Hash, digest, signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: pss.Hash})
	}
	return rsa.VerifyPKCS1v15(public, opts.HashFunc(), digest, signature)
}
