package canary

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	_ "crypto/sha256" // for crypto.Hash.New
	_ "crypto/sha512"

	"chancery/tunnel/wire"
)

// hashFor returns the digest that a key signs, 0 for one that signs messages.
func hashFor(algorithm wire.KeyAlgorithm) crypto.Hash {
	switch algorithm {
	case wire.Ed25519:
		return 0
	case wire.P384:
		return crypto.SHA384
	case wire.P521:
		return crypto.SHA512
	default:
		return crypto.SHA256
	}
}

func verify(public crypto.PublicKey, hash crypto.Hash, signed, signature []byte) bool {
	switch public := public.(type) {
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(public, hash, signed, signature) == nil
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(public, signed, signature)
	case ed25519.PublicKey:
		return ed25519.Verify(public, signed, signature)
	}
	return false
}
