package pkcs11_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"maps"
	"testing"

	"chancery/softhsm"
	"chancery/token"
)

// TestAttestation tells a key that was born in the token from one that came into it.
func TestAttestation(t *testing.T) {
	tok := loggedIn(t, softhsm.ForTest(t))
	generate(t, tok, []byte{1}, token.P256)
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spec := token.KeySpec{ID: []byte{2}, Label: "a key", Algorithm: token.P256}
	if _, err := tok.Import(t.Context(), spec, private); err != nil {
		t.Fatal(err)
	}
	for id, born := range map[byte]bool{1: true, 2: false} {
		made, err := tok.Attest(t.Context(), []byte{id})
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]bool{"sensitive": true, "extractable": false,
			"always_sensitive": born, "never_extractable": born, "local": born}
		if !maps.Equal(made.Claims, want) || made.Evidence != nil {
			t.Errorf("key %d: %+v, want claims %v", id, made, want)
		}
	}
	if err := tok.Logout(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err = tok.Attest(t.Context(), []byte{1})
	wantError(t, "attest without login", err, token.ErrLoginRequired)
}
