package token_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha3" // the hashes of token.Hashes that verifying does not bring along
	"errors"
	"fmt"
	"testing"

	"chancery/token"
)

// way is one way for a key to sign.
type way struct {
	name   string
	key    crypto.Signer
	opts   crypto.SignerOpts
	digest []byte
}

// ways lists all that CheckDigest accepts for keys of the algorithms.
func ways(t testing.TB, algorithms ...token.Algorithm) []way {
	t.Helper()
	var all []way
	for _, a := range algorithms {
		key := privateKey(t, a)
		if a == token.Ed25519 {
			all = append(all, way{string(a), key, crypto.Hash(0), []byte("a message")})
			continue
		}
		for _, hash := range token.Hashes() {
			h := hash.New()
			h.Write([]byte("a message"))
			digest := h.Sum(nil)
			all = append(all, way{fmt.Sprintf("%s %v", a, hash), key, hash, digest})
			pss := &rsa.PSSOptions{Hash: hash, SaltLength: rsa.PSSSaltLengthEqualsHash}
			if token.CheckDigest(a, digest, pss) == nil {
				all = append(all, way{fmt.Sprintf("%s PSS %v", a, hash), key, pss, digest})
			}
		}
	}
	return all
}

func privateKey(t testing.TB, a token.Algorithm) crypto.Signer {
	t.Helper()
	var key crypto.Signer
	var err error
	switch {
	case a.RSABits() != 0:
		key, err = rsa.GenerateKey(rand.Reader, a.RSABits())
	case a.Curve() != nil:
		key, err = ecdsa.GenerateKey(a.Curve(), rand.Reader)
	default:
		_, key, err = ed25519.GenerateKey(rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (w way) sign(t testing.TB) []byte {
	t.Helper()
	signature, err := w.key.Sign(rand.Reader, w.digest, w.opts)
	if err != nil {
		t.Fatalf("%s: %v", w.name, err)
	}
	return signature
}

func TestVerify(t *testing.T) {
	for _, w := range ways(t, token.RSA2048, token.RSA3072, token.P256, token.P384, token.P521, token.Ed25519) {
		signature := w.sign(t)
		if err := token.Verify(w.key.Public(), w.digest, w.opts, signature); err != nil {
			t.Errorf("%s: %v", w.name, err)
		}
		for _, place := range []int{0, len(signature) / 2, len(signature) - 1} {
			bad := bytes.Clone(signature)
			bad[place] ^= 0x10
			err := token.Verify(w.key.Public(), w.digest, w.opts, bad)
			if !errors.Is(err, token.ErrBadSignature) {
				t.Errorf("%s, byte %d changed: %v", w.name, place, err)
			}
		}
		digest := bytes.Clone(w.digest)
		digest[0] ^= 1
		for name, err := range map[string]error{
			"another digest":  token.Verify(w.key.Public(), digest, w.opts, signature),
			"cut signature":   token.Verify(w.key.Public(), w.digest, w.opts, signature[:len(signature)-1]),
			"longer":          token.Verify(w.key.Public(), w.digest, w.opts, append(bytes.Clone(signature), 0)),
			"empty signature": token.Verify(w.key.Public(), w.digest, w.opts, nil),
			"another key":     token.Verify(privateOther(t, w.key), w.digest, w.opts, signature),
		} {
			if !errors.Is(err, token.ErrBadSignature) {
				t.Errorf("%s, %s: %v", w.name, name, err)
			}
		}
	}
}

// otherRSA is made once, since RSA keys take long.
var otherRSA crypto.Signer

func privateOther(t *testing.T, key crypto.Signer) crypto.PublicKey {
	t.Helper()
	a, err := token.AlgorithmOf(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	if a != token.RSA2048 {
		return privateKey(t, a).Public()
	}
	if otherRSA == nil {
		otherRSA = privateKey(t, a)
	}
	return otherRSA.Public()
}

// TestVerifyTellsSchemesApart takes no signature of one scheme for one of another.
func TestVerifyTellsSchemesApart(t *testing.T) {
	key := privateKey(t, token.RSA2048)
	digest := make([]byte, 32)
	pss := &rsa.PSSOptions{Hash: crypto.SHA256, SaltLength: rsa.PSSSaltLengthEqualsHash}
	otherSalt := &rsa.PSSOptions{Hash: crypto.SHA256, SaltLength: 20}
	auto := &rsa.PSSOptions{Hash: crypto.SHA256, SaltLength: rsa.PSSSaltLengthAuto}
	for name, c := range map[string]struct {
		signed, wanted crypto.SignerOpts
		good           bool
	}{
		"PSS for v1.5":          {pss, crypto.SHA256, false},
		"v1.5 for PSS":          {crypto.SHA256, pss, false},
		"SHA-2 for SHA-3":       {crypto.SHA256, crypto.SHA3_256, false},
		"another salt length":   {otherSalt, pss, false},
		"automatic salt length": {pss, auto, true},
	} {
		signature := way{name, key, c.signed, digest}.sign(t)
		err := token.Verify(key.Public(), digest, c.wanted, signature)
		if c.good && err != nil || !c.good && !errors.Is(err, token.ErrBadSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestVerifyUnsupported(t *testing.T) {
	p256 := privateKey(t, token.P256)
	for name, err := range map[string]error{
		"nothing":      token.Verify(nil, make([]byte, 32), crypto.SHA256, nil),
		"P-224":        token.Verify(&curveKey(t, elliptic.P224()).PublicKey, make([]byte, 32), crypto.SHA256, nil),
		"SHA-1":        token.Verify(p256.Public(), make([]byte, 20), crypto.SHA1, nil),
		"no options":   token.Verify(p256.Public(), make([]byte, 32), nil, nil),
		"wrong digest": token.Verify(p256.Public(), make([]byte, 31), crypto.SHA256, nil),
	} {
		if !errors.Is(err, token.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// BenchmarkVerify tells what it costs to check each signature before it leaves.
func BenchmarkVerify(b *testing.B) {
	for _, w := range ways(b, token.Algorithms()...) {
		if w.opts.HashFunc() != crypto.SHA256 && w.opts.HashFunc() != 0 {
			continue
		}
		signature := w.sign(b)
		b.Run(w.name, func(b *testing.B) {
			for b.Loop() {
				if err := token.Verify(w.key.Public(), w.digest, w.opts, signature); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
