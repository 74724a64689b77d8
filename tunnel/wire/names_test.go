package wire_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"math/big"
	"strings"
	"testing"

	"chancery/tunnel/wire"
)

func TestDigestAlgorithms(t *testing.T) {
	for name, want := range map[wire.DigestAlgorithm]struct {
		hash     crypto.Hash
		size     int
		version2 bool
	}{
		wire.SHA256:   {crypto.SHA256, 32, true},
		wire.SHA384:   {crypto.SHA384, 48, false},
		wire.SHA512:   {crypto.SHA512, 64, true},
		wire.SHA3_256: {crypto.SHA3_256, 32, true},
		wire.SHA3_512: {crypto.SHA3_512, 64, true},
		"sha256":      {0, 0, false},
	} {
		if name.Hash() != want.hash || name.Size() != want.size || name.Version2() != want.version2 {
			t.Errorf("%s: %v, %d bytes, version 2 %v", name, name.Hash(), name.Size(), name.Version2())
		}
		if want.hash == 0 {
			continue
		}
		if got, err := wire.DigestAlgorithmOf(want.hash); got != name || err != nil {
			t.Errorf("DigestAlgorithmOf(%v) = %s, %v", want.hash, got, err)
		}
	}
	if _, err := wire.DigestAlgorithmOf(crypto.SHA1); err == nil {
		t.Error("SHA-1 has a name on the wire")
	}
}

func TestKeyAlgorithms(t *testing.T) {
	curve := func(c elliptic.Curve) crypto.PublicKey {
		key, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key.Public()
	}
	modulus := func(bits uint) crypto.PublicKey {
		return &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), bits-1), E: 65537}
	}
	for want, c := range map[wire.KeyAlgorithm]struct {
		public   crypto.PublicKey
		tag      wire.SignatureTag
		version2 bool
	}{
		wire.RSA2K:   {modulus(2048), wire.TagRSA, true},
		wire.RSA3K:   {modulus(3072), wire.TagRSA, false},
		wire.RSA4K:   {modulus(4096), wire.TagRSA, true},
		wire.P256:    {curve(elliptic.P256()), wire.TagP256, true},
		wire.P384:    {curve(elliptic.P384()), wire.TagP384, false},
		wire.P521:    {curve(elliptic.P521()), wire.TagP521, false},
		wire.Ed25519: {ed25519.PublicKey(make([]byte, 32)), wire.TagEd25519, false},
	} {
		got, err := wire.KeyAlgorithmOf(c.public)
		if err != nil || got != want || got.Tag() != c.tag || got.Version2() != c.version2 {
			t.Errorf("%s: got %s, tag %s, version 2 %v, %v", want, got, got.Tag(), got.Version2(), err)
		}
	}
	for _, public := range []crypto.PublicKey{nil, modulus(1024), curve(elliptic.P224())} {
		if got, err := wire.KeyAlgorithmOf(public); err == nil {
			t.Errorf("%T is named %s", public, got)
		}
	}
	if wire.KeyAlgorithm("MlDsa65").Tag() != "" {
		t.Error("an unknown algorithm has a tag")
	}
}

func TestDigestBytes(t *testing.T) {
	sum, err := digest256.Bytes()
	if err != nil || strings.ToLower(hex256) != hex.EncodeToString(sum) {
		t.Errorf("Bytes = %x, %v", sum, err)
	}
	for _, bad := range []wire.Digest{{}, {wire.SHA256, ""}, {wire.SHA256, hex512}, {wire.SHA512, hex256}, {wire.SHA256, "zz" + hex256[2:]}, {wire.SHA256, hex256[1:]}, {"Md5", hex256}} {
		if _, err := bad.Bytes(); !errors.Is(err, wire.NewError(wire.CodeDigestInvalid)) {
			t.Errorf("%+v: %v, want %s", bad, err, wire.CodeDigestInvalid)
		}
	}
	if got := wire.NewDigest(wire.SHA256, sum); got.Hex != strings.ToLower(hex256) {
		t.Errorf("NewDigest = %+v", got)
	}
}

func TestHandle(t *testing.T) {
	spki, err := x509.MarshalPKIXPublicKey(ed25519.PublicKey(make([]byte, 32)))
	if err != nil {
		t.Fatal(err)
	}
	const want = "" // of the empty input, as FIPS 180-4's test data give it
	if got := wire.Handle([]byte(want)); got != "E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855" {
		t.Errorf("Handle of nothing = %s", got)
	}
	if got := wire.Handle(spki); len(got) != 64 || got != strings.ToUpper(got) {
		t.Errorf("Handle = %s", got)
	}
}

func TestCodes(t *testing.T) {
	seen := map[wire.Code]bool{}
	for _, code := range wire.Codes() {
		if seen[code] {
			t.Errorf("%s stands twice", code)
		}
		seen[code] = true
		failure := wire.NewError(code)
		if failure.Error() == "" || strings.Contains(failure.Error(), string(code)) && strings.Contains(string(code), "_") {
			t.Errorf("%s: message %q is not for users", code, failure)
		}
		switch failure.Retry {
		case wire.RetryNo, wire.RetryUnlock:
			if failure.RetryAfter != 0 {
				t.Errorf("%s: a pause of %v before no retry", code, failure.RetryAfter)
			}
		case wire.RetryLater, wire.RetryReconnect:
			if failure.RetryAfter <= 0 {
				t.Errorf("%s: a retry without a pause", code)
			}
		default:
			t.Errorf("%s: retry %q", code, failure.Retry)
		}
		if exit := code.Exit(); exit <= wire.ExitDone || exit == wire.ExitUsage || exit > wire.ExitToken {
			t.Errorf("%s: exit code %d", code, exit)
		}
	}
	own := wire.Errorf(wire.CodeBusy, "all %d places are taken", 3)
	if own.Error() != "all 3 places are taken" || own.Retry != wire.RetryLater || !errors.Is(own, wire.NewError(wire.CodeBusy)) || errors.Is(own, wire.NewError(wire.CodeInternal)) {
		t.Errorf("Errorf = %+v", own)
	}
}
