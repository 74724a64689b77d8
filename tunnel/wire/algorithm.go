package wire

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// KeyAlgorithm is a key's kind as the wire names it.
type KeyAlgorithm string

// The kinds of keys. Version 2 knows RSA2K, RSA4K and P256.
const (
	RSA2K   KeyAlgorithm = "Rsa2K"
	RSA3K   KeyAlgorithm = "Rsa3K"
	RSA4K   KeyAlgorithm = "Rsa4K"
	P256    KeyAlgorithm = "P256"
	P384    KeyAlgorithm = "P384"
	P521    KeyAlgorithm = "P521"
	Ed25519 KeyAlgorithm = "Ed25519"
)

// KeyAlgorithmOf names the kind of a *rsa.PublicKey, *ecdsa.PublicKey or ed25519.PublicKey.
func KeyAlgorithmOf(public crypto.PublicKey) (KeyAlgorithm, error) {
	switch key := public.(type) {
	case *rsa.PublicKey:
		switch key.N.BitLen() {
		case 2048:
			return RSA2K, nil
		case 3072:
			return RSA3K, nil
		case 4096:
			return RSA4K, nil
		}
	case *ecdsa.PublicKey:
		switch key.Curve {
		case elliptic.P256():
			return P256, nil
		case elliptic.P384():
			return P384, nil
		case elliptic.P521():
			return P521, nil
		}
	case ed25519.PublicKey:
		return Ed25519, nil
	}
	return "", fmt.Errorf("wire: public key %T: its size or curve has no name on the wire", public)
}

// Version2 tells whether a plain version 2 peer can decode this name.
func (a KeyAlgorithm) Version2() bool {
	return a == RSA2K || a == RSA4K || a == P256
}

// Tag returns the name under which signatures of this kind of key travel, or ""
// for an unknown kind.
func (a KeyAlgorithm) Tag() SignatureTag {
	switch a {
	case RSA2K, RSA3K, RSA4K:
		return TagRSA
	case P256:
		return TagP256
	case P384:
		return TagP384
	case P521:
		return TagP521
	case Ed25519:
		return TagEd25519
	}
	return ""
}

// SignatureTag names the format of a signature's bytes.
type SignatureTag string

// The formats: RSA is the raw value in the modulus' size, P256 to P521 are DER
// SEQUENCE{r,s}, Ed25519 is the 64 bytes of RFC 8032. Version 2 knows RSA and P256.
const (
	TagRSA     SignatureTag = "RSA"
	TagP256    SignatureTag = "P256"
	TagP384    SignatureTag = "P384"
	TagP521    SignatureTag = "P521"
	TagEd25519 SignatureTag = "Ed25519"
)

// DigestAlgorithm is a hash function as the wire names it.
type DigestAlgorithm string

// The hash functions. Version 2 knows all but SHA384.
const (
	SHA256   DigestAlgorithm = "Sha256"
	SHA384   DigestAlgorithm = "Sha384"
	SHA512   DigestAlgorithm = "Sha512"
	SHA3_256 DigestAlgorithm = "Sha3_256"
	SHA3_512 DigestAlgorithm = "Sha3_512"
)

// DigestAlgorithmOf returns the wire's name of a hash function.
func DigestAlgorithmOf(hash crypto.Hash) (DigestAlgorithm, error) {
	for _, a := range []DigestAlgorithm{SHA256, SHA384, SHA512, SHA3_256, SHA3_512} {
		if a.Hash() == hash {
			return a, nil
		}
	}
	return "", fmt.Errorf("wire: hash %v: use SHA-256, SHA-384, SHA-512, SHA3-256 or SHA3-512", hash)
}

// Hash returns the hash function, or zero for an unknown name.
func (d DigestAlgorithm) Hash() crypto.Hash {
	switch d {
	case SHA256:
		return crypto.SHA256
	case SHA384:
		return crypto.SHA384
	case SHA512:
		return crypto.SHA512
	case SHA3_256:
		return crypto.SHA3_256
	case SHA3_512:
		return crypto.SHA3_512
	}
	return 0
}

// Size returns a digest's length in bytes, or zero for an unknown name.
func (d DigestAlgorithm) Size() int {
	if hash := d.Hash(); hash != 0 {
		return hash.Size()
	}
	return 0
}

// Version2 tells whether a plain version 2 peer may use this name.
func (d DigestAlgorithm) Version2() bool {
	return d != SHA384 && d.Hash() != 0
}

// Scheme is a signature scheme where a key has more than one. It exists under chancery/1 only.
type Scheme string

// The schemes: SchemeDefault is PKCS #1 v1.5 for RSA and the only one of all
// other keys; SchemePSS is RSASSA-PSS (RFC 8017 section 8.1) with MGF1 over the
// same hash and a salt of its length.
const (
	SchemeDefault Scheme = ""
	SchemePSS     Scheme = "pss"
)

// Handle returns the name by which a key is pinned: the upper-case hex SHA-256 of
// its DER SubjectPublicKeyInfo.
func Handle(spki []byte) string {
	sum := sha256.Sum256(spki)
	return strings.ToUpper(hex.EncodeToString(sum[:]))
}
