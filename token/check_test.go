package token_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"strings"
	"testing"

	"chancery/token"
)

func TestParseAlgorithm(t *testing.T) {
	for _, a := range token.Algorithms() {
		for _, typed := range []string{string(a), strings.ToUpper(string(a))} {
			if got, err := token.ParseAlgorithm(typed); got != a || err != nil {
				t.Errorf("%q: %q, %v", typed, got, err)
			}
		}
	}
	for _, typed := range []string{"", "rsa", "rsa1024", "p-256", "rsa2048 "} {
		if got, err := token.ParseAlgorithm(typed); err == nil || !strings.Contains(err.Error(), "ed25519") {
			t.Errorf("%q: %q, %v; want an error that lists what is known", typed, got, err)
		}
	}
}

func TestAlgorithmOf(t *testing.T) {
	for _, a := range []token.Algorithm{token.P256, token.P384, token.P521} {
		key := curveKey(t, a.Curve())
		if got, err := token.AlgorithmOf(&key.PublicKey); got != a || err != nil {
			t.Errorf("%s: %s, %v", a, got, err)
		}
	}
	small, err := rsa.GenerateKey(rand.Reader, 2056)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.PublicKey{
		"odd RSA size": &small.PublicKey,
		"P-224":        &curveKey(t, elliptic.P224()).PublicKey,
		"nothing":      nil,
		"private key":  small,
	} {
		if got, err := token.AlgorithmOf(key); !errors.Is(err, token.ErrUnsupported) {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
}

func TestCheckDigest(t *testing.T) {
	pss := func(hash crypto.Hash, salt int) *rsa.PSSOptions {
		return &rsa.PSSOptions{Hash: hash, SaltLength: salt}
	}
	for name, c := range map[string]struct {
		algorithm token.Algorithm
		length    int
		opts      crypto.SignerOpts
		fine      bool
	}{
		"RSA SHA-256":          {token.RSA2048, 32, crypto.SHA256, true},
		"RSA SHA3-512":         {token.RSA4096, 64, crypto.SHA3_512, true},
		"P-256 SHA-512":        {token.P256, 64, crypto.SHA512, true},
		"PSS, salt as hash":    {token.RSA2048, 48, pss(crypto.SHA384, rsa.PSSSaltLengthEqualsHash), true},
		"PSS, automatic salt":  {token.RSA2048, 48, pss(crypto.SHA384, rsa.PSSSaltLengthAuto), true},
		"PSS, salt in number":  {token.RSA2048, 48, pss(crypto.SHA384, 48), true},
		"Ed25519":              {token.Ed25519, 1000, crypto.Hash(0), true},
		"Ed25519 options":      {token.Ed25519, 0, &ed25519.Options{}, true},
		"PSS, other salt":      {token.RSA2048, 48, pss(crypto.SHA384, 32), false},
		"PSS SHA3":             {token.RSA2048, 32, pss(crypto.SHA3_256, rsa.PSSSaltLengthEqualsHash), false},
		"PSS with P-256":       {token.P256, 32, pss(crypto.SHA256, rsa.PSSSaltLengthEqualsHash), false},
		"SHA-1":                {token.RSA2048, 20, crypto.SHA1, false},
		"SHA-224":              {token.P256, 28, crypto.SHA224, false},
		"no hash":              {token.RSA2048, 32, crypto.Hash(0), false},
		"digest too short":     {token.P256, 31, crypto.SHA256, false},
		"digest empty":         {token.P256, 0, crypto.SHA256, false},
		"Ed25519 digest":       {token.Ed25519, 64, crypto.SHA512, false},
		"Ed25519ph":            {token.Ed25519, 64, &ed25519.Options{Hash: crypto.SHA512}, false},
		"Ed25519 with context": {token.Ed25519, 64, &ed25519.Options{Context: "x"}, false},
		"no options":           {token.P256, 32, nil, false},
	} {
		err := token.CheckDigest(c.algorithm, make([]byte, c.length), c.opts)
		if c.fine && err != nil || !c.fine && !errors.Is(err, token.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCheckPrivate(t *testing.T) {
	p256 := curveKey(t, elliptic.P256())
	other := curveKey(t, elliptic.P256())
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	twisted := *p256
	twisted.PublicKey = other.PublicKey
	broken := rsa.PrivateKey{PublicKey: rsa.PublicKey{N: rsaKey.N, E: 3}, D: rsaKey.D, Primes: rsaKey.Primes}
	brokenEd := append(ed25519.PrivateKey{}, ed...)
	brokenEd[40] ^= 1
	for name, c := range map[string]struct {
		algorithm token.Algorithm
		key       crypto.PrivateKey
		want      error
	}{
		"P-256":               {token.P256, p256, nil},
		"Ed25519":             {token.Ed25519, ed, nil},
		"RSA":                 {token.RSA2048, rsaKey, nil},
		"another algorithm":   {token.P384, p256, token.ErrMismatch},
		"another size":        {token.RSA4096, rsaKey, token.ErrMismatch},
		"another public half": {token.P256, &twisted, token.ErrMismatch},
		"RSA damaged":         {token.RSA2048, &broken, token.ErrMismatch},
		"Ed25519 damaged":     {token.Ed25519, brokenEd, token.ErrMismatch},
		"Ed25519 cut":         {token.Ed25519, ed[:32], token.ErrMismatch},
		"public key":          {token.P256, &p256.PublicKey, token.ErrUnsupported},
		"nothing":             {token.P256, nil, token.ErrUnsupported},
	} {
		public, err := token.CheckPrivate(c.algorithm, c.key)
		if !errors.Is(err, c.want) || (public != nil) != (c.want == nil) {
			t.Errorf("%s: %v, %v", name, public, err)
		}
	}
}

func curveKey(t *testing.T, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}
