package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"fmt"
	"strings"
)

// Algorithm names a kind of key as operators type it and as the database keeps it.
type Algorithm string

// The algorithms that drivers may offer.
const (
	RSA2048 Algorithm = "rsa2048"
	RSA3072 Algorithm = "rsa3072"
	RSA4096 Algorithm = "rsa4096"
	P256    Algorithm = "p256"
	P384    Algorithm = "p384"
	P521    Algorithm = "p521"
	Ed25519 Algorithm = "ed25519"
)

// Algorithms returns all known algorithms, in the order in which help texts list them.
func Algorithms() []Algorithm {
	return []Algorithm{RSA2048, RSA3072, RSA4096, P256, P384, P521, Ed25519}
}

// ParseAlgorithm reads what an operator typed, in either case. The error lists what is known.
func ParseAlgorithm(s string) (Algorithm, error) {
	want := Algorithm(strings.ToLower(s))
	for _, a := range Algorithms() {
		if a == want {
			return a, nil
		}
	}
	return "", fmt.Errorf("token: algorithm %q: not one of %v", s, Algorithms())
}

// AlgorithmOf tells the algorithm of a public key, or ErrUnsupported for sizes,
// exponents and curves that Chancery does not use.
func AlgorithmOf(public crypto.PublicKey) (Algorithm, error) {
	switch key := public.(type) {
	case *rsa.PublicKey:
		return rsaAlgorithm(key)
	case *ecdsa.PublicKey:
		return curveAlgorithm(key.Curve)
	case ed25519.PublicKey:
		return Ed25519, nil
	}
	return "", fmt.Errorf("public key of type %T: %w", public, ErrUnsupported)
}

// RSABits returns the modulus size in bits, or 0 when the algorithm is not RSA.
func (a Algorithm) RSABits() int {
	switch a {
	case RSA2048:
		return 2048
	case RSA3072:
		return 3072
	case RSA4096:
		return 4096
	}
	return 0
}

// Curve returns the NIST curve, or nil when the algorithm is not ECDSA.
func (a Algorithm) Curve() elliptic.Curve {
	switch a {
	case P256:
		return elliptic.P256()
	case P384:
		return elliptic.P384()
	case P521:
		return elliptic.P521()
	}
	return nil
}

func rsaAlgorithm(key *rsa.PublicKey) (Algorithm, error) {
	for _, a := range []Algorithm{RSA2048, RSA3072, RSA4096} {
		if key.N.BitLen() == a.RSABits() {
			return a, nil
		}
	}
	return "", fmt.Errorf("RSA key of %d bits: %w", key.N.BitLen(), ErrUnsupported)
}

func curveAlgorithm(curve elliptic.Curve) (Algorithm, error) {
	for _, a := range []Algorithm{P256, P384, P521} {
		if curve == a.Curve() {
			return a, nil
		}
	}
	return "", fmt.Errorf("elliptic curve %s: %w", curve.Params().Name, ErrUnsupported)
}
