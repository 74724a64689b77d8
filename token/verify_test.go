package token_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha3"
	"errors"
	"fmt"
	"testing"

	"chancery/token"
)

func TestVerify(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, hash := range token.Hashes() {
		check(t, fmt.Sprint("RSA ", hash), rsaKey, hash, hash.Size())
		check(t, fmt.Sprint("P-256 ", hash), p256, hash, hash.Size())
	}
	for _, hash := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		check(t, fmt.Sprint("PSS ", hash), rsaKey, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash}, hash.Size())
	}
	check(t, "Ed25519", edwards, crypto.Hash(0), 1000)
}

func check(t *testing.T, name string, key crypto.Signer, opts crypto.SignerOpts, size int) {
	t.Run(name, func(t *testing.T) {
		input := make([]byte, size)
		rand.Read(input)
		signature, err := key.Sign(rand.Reader, input, opts)
		if err != nil {
			t.Fatal(err)
		}
		if err := token.Verify(key.Public(), input, opts, signature); err != nil {
			t.Errorf("good signature: %v", err)
		}
		signature[len(signature)/2] ^= 1
		if err := token.Verify(key.Public(), input, opts, signature); !errors.Is(err, token.ErrBadSignature) {
			t.Errorf("damaged signature: %v, want ErrBadSignature", err)
		}
		if err := token.Verify(key.Public(), input, opts, nil); !errors.Is(err, token.ErrBadSignature) {
			t.Errorf("no signature: %v, want ErrBadSignature", err)
		}
		signature[len(signature)/2] ^= 1
		input[0] ^= 1
		if err := token.Verify(key.Public(), input, opts, signature); !errors.Is(err, token.ErrBadSignature) {
			t.Errorf("another input: %v, want ErrBadSignature", err)
		}
	})
}

func TestVerifyKnowsNoOtherKeys(t *testing.T) {
	if err := token.Verify("no key", nil, crypto.SHA256, nil); !errors.Is(err, token.ErrUnsupported) {
		t.Errorf("%v, want ErrUnsupported", err)
	}
}
