package client

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	_ "crypto/sha256" // the hashes that PSS verification needs
	_ "crypto/sha3"
	_ "crypto/sha512"

	"chancery/tunnel/wire"
)

// Digest is what one signature is made over.
type Digest struct {
	Hash crypto.Hash // SHA-256, SHA-384, SHA-512, SHA3-256 or SHA3-512; zero for an Ed25519 key
	Sum  []byte      // a digest by Hash; for an Ed25519 key the message itself
	PSS  bool        // RSA only: RSASSA-PSS with a salt of the hash's length instead of PKCS #1 v1.5
}

func (d Digest) scheme() wire.Scheme {
	if d.PSS {
		return wire.SchemePSS
	}
	return wire.SchemeDefault
}

// Check tells before any server is asked whether a key can sign this digest. The
// error has CodeDigestInvalid or CodeAlgorithmMismatch.
func (d Digest) Check(public crypto.PublicKey) error {
	_, isEd25519 := public.(ed25519.PublicKey)
	_, isRSA := public.(*rsa.PublicKey)
	switch {
	case isEd25519 && d.Hash != 0:
		return failure(wire.CodeAlgorithmMismatch, "an Ed25519 key signs whole messages, not digests")
	case d.PSS && !isRSA:
		return failure(wire.CodeAlgorithmMismatch, "only an RSA key signs with PSS")
	case isEd25519:
		return nil
	}
	if _, err := wire.DigestAlgorithmOf(d.Hash); err != nil {
		return failure(wire.CodeAlgorithmMismatch, "use SHA-256, SHA-384, SHA-512, SHA3-256 or SHA3-512")
	}
	if len(d.Sum) != d.Hash.Size() {
		return failure(wire.CodeDigestInvalid, "the digest has %d bytes and %v has %d", len(d.Sum), d.Hash, d.Hash.Size())
	}
	return nil
}

// Verify returns nil if signature is one by the key over d, and else
// ErrBadSignature or what Check returns. RSA signatures are as long as the
// modulus, ECDSA's are DER, Ed25519's have 64 bytes.
func (d Digest) Verify(public crypto.PublicKey, signature []byte) error {
	if err := d.Check(public); err != nil {
		return err
	}
	valid := false
	switch key := public.(type) {
	case *rsa.PublicKey:
		if d.PSS {
			options := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}
			valid = rsa.VerifyPSS(key, d.Hash, d.Sum, signature, options) == nil
		} else {
			valid = rsa.VerifyPKCS1v15(key, d.Hash, d.Sum, signature) == nil
		}
	case *ecdsa.PublicKey:
		valid = ecdsa.VerifyASN1(key, d.Sum, signature)
	case ed25519.PublicKey:
		valid = ed25519.Verify(key, d.Sum, signature)
	default:
		return failure(wire.CodeAlgorithmMismatch, "a key of type %T is not known here", public)
	}
	if !valid {
		return ErrBadSignature
	}
	return nil
}
