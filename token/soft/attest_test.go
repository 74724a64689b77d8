package soft_test

import (
	"testing"

	"chancery/token"
)

// TestAttestIsHonest checks that nothing good is claimed of a key in a file.
func TestAttestIsHonest(t *testing.T) {
	tok := open(t, newToken(t))
	if err := tok.Login(t.Context(), pin); err != nil {
		t.Fatal(err)
	}
	key, err := tok.Generate(t.Context(), token.KeySpec{ID: []byte{1}, Label: "a key", Algorithm: token.P256})
	if err != nil {
		t.Fatal(err)
	}
	made, err := tok.Attest(t.Context(), key.ID())
	if err != nil {
		t.Fatal(err)
	}
	for name, claimed := range made.Claims {
		if claimed != (name == "extractable") {
			t.Errorf("claims %s %t", name, claimed)
		}
	}
	if made.Evidence != nil || len(made.Claims) == 0 {
		t.Errorf("attestation %+v", made)
	}
}
