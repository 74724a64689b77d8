package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits of what names a key on a token.
const (
	MaxIDLength    = 64  // bytes of KeySpec.ID
	MaxLabelLength = 255 // bytes of KeySpec.Label
)

// Hashes returns the hashes whose digests drivers sign with RSA (PKCS#1 v1.5)
// and ECDSA keys. PSS takes the SHA-2 ones only. A token that does not know one
// of them, as most TPMs know no SHA-3, answers ErrUnsupported.
func Hashes() []crypto.Hash {
	return []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512, crypto.SHA3_256, crypto.SHA3_512}
}

// CheckDigest tells before a token is asked whether a key of this algorithm can
// sign such an input: a hash out of Hashes with a digest of its length, or a
// message with HashFunc() zero for Ed25519. PSS salts have the hash's length:
// rsa.PSSSaltLengthEqualsHash, rsa.PSSSaltLengthAuto or that number. The error
// is ErrUnsupported.
func CheckDigest(a Algorithm, digest []byte, opts crypto.SignerOpts) error {
	if opts == nil {
		return fmt.Errorf("signing without options: %w", ErrUnsupported)
	}
	hash := opts.HashFunc()
	pss, isPSS := opts.(*rsa.PSSOptions)
	if a == Ed25519 {
		return checkMessage(opts)
	}
	if !slices.Contains(Hashes(), hash) {
		return fmt.Errorf("hash %v with an %s key: %w", hash, a, ErrUnsupported)
	}
	if len(digest) != hash.Size() {
		return fmt.Errorf("digest of %d bytes where %v has %d: %w", len(digest), hash, hash.Size(), ErrUnsupported)
	}
	if isPSS {
		return checkPSS(a, pss)
	}
	return nil
}

func checkMessage(opts crypto.SignerOpts) error {
	if opts.HashFunc() != 0 {
		return fmt.Errorf("ed25519 signs whole messages, not digests of %v: %w", opts.HashFunc(), ErrUnsupported)
	}
	if o, ok := opts.(*ed25519.Options); ok && o.Context != "" {
		return fmt.Errorf("ed25519 with a context string: %w", ErrUnsupported)
	}
	return nil
}

func checkPSS(a Algorithm, opts *rsa.PSSOptions) error {
	if a.RSABits() == 0 {
		return fmt.Errorf("RSA-PSS with an %s key: %w", a, ErrUnsupported)
	}
	switch opts.Hash {
	case crypto.SHA256, crypto.SHA384, crypto.SHA512:
	default:
		return fmt.Errorf("RSA-PSS with %v: %w", opts.Hash, ErrUnsupported)
	}
	switch opts.SaltLength {
	case rsa.PSSSaltLengthEqualsHash, rsa.PSSSaltLengthAuto, opts.Hash.Size():
		return nil
	}
	return fmt.Errorf("RSA-PSS with a salt of %d bytes, not the hash's %d: %w", opts.SaltLength, opts.Hash.Size(), ErrUnsupported)
}

// CheckSpec refuses identifiers and labels out of bounds, and with
// ErrUnsupported an algorithm that is not among those offered.
func CheckSpec(spec KeySpec, offered []Algorithm) error {
	if len(spec.ID) < 1 || len(spec.ID) > MaxIDLength {
		return fmt.Errorf("key identifier of %d bytes, not 1 to %d", len(spec.ID), MaxIDLength)
	}
	if err := CheckLabel(spec.Label); err != nil {
		return err
	}
	if !slices.Contains(offered, spec.Algorithm) {
		return fmt.Errorf("%q keys, this token makes %v: %w", spec.Algorithm, offered, ErrUnsupported)
	}
	return nil
}

// CheckLabel refuses labels that are too long, or that a terminal or a token
// would show as something else: not UTF-8, or with control characters.
func CheckLabel(label string) error {
	if len(label) > MaxLabelLength {
		return fmt.Errorf("label of %d bytes, more than %d", len(label), MaxLabelLength)
	}
	if !utf8.ValidString(label) || strings.ContainsFunc(label, unicode.IsControl) {
		return fmt.Errorf("label %q is not plain UTF-8 text", label)
	}
	return nil
}

// CheckPrivate returns the public half of a private key to be imported after
// checking that the key is sound and fits the named algorithm. A key of another
// kind is ErrUnsupported, one of another algorithm ErrMismatch.
func CheckPrivate(a Algorithm, private crypto.PrivateKey) (crypto.PublicKey, error) {
	public, err := publicHalf(private)
	if err != nil {
		return nil, err
	}
	found, err := AlgorithmOf(public)
	if err != nil {
		return nil, err
	}
	if found != a {
		return nil, fmt.Errorf("an %s key given as %s: %w", found, a, ErrMismatch)
	}
	return public, nil
}

func publicHalf(private crypto.PrivateKey) (crypto.PublicKey, error) {
	switch key := private.(type) {
	case *rsa.PrivateKey:
		if len(key.Primes) != 2 {
			return nil, fmt.Errorf("RSA key of %d primes: %w", len(key.Primes), ErrUnsupported)
		}
		if err := key.Validate(); err != nil {
			return nil, fmt.Errorf("RSA key is not sound: %w", ErrMismatch)
		}
		return &key.PublicKey, nil
	case *ecdsa.PrivateKey:
		return checkedCurveKey(key)
	case ed25519.PrivateKey:
		return checkedEdwardsKey(key)
	}
	return nil, fmt.Errorf("private key of type %T: %w", private, ErrUnsupported)
}

func checkedCurveKey(key *ecdsa.PrivateKey) (crypto.PublicKey, error) {
	scalar, err := key.Bytes()
	if err != nil {
		return nil, fmt.Errorf("elliptic curve key is not sound: %w", ErrMismatch)
	}
	defer clear(scalar)
	again, err := ecdsa.ParseRawPrivateKey(key.Curve, scalar)
	if err != nil || !again.PublicKey.Equal(&key.PublicKey) {
		return nil, fmt.Errorf("elliptic curve key is not sound: %w", ErrMismatch)
	}
	return &key.PublicKey, nil
}

func checkedEdwardsKey(key ed25519.PrivateKey) (crypto.PublicKey, error) {
	if len(key) != ed25519.PrivateKeySize {
		return nil, fmt.Errorf("ed25519 key of %d bytes: %w", len(key), ErrMismatch)
	}
	again := ed25519.NewKeyFromSeed(key.Seed())
	defer clear(again)
	if !again.Equal(key) {
		return nil, fmt.Errorf("ed25519 key is not sound: %w", ErrMismatch)
	}
	return key.Public(), nil
}
