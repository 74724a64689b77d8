package tokentest

import (
	"encoding/json"
	"maps"
	"testing"
	"time"

	"chancery/token"
)

func testAttestation(t *testing.T, driver Driver) {
	fixture := openLoggedIn(t, driver)
	ctx, tok := t.Context(), fixture.Token
	attester, ok := tok.(token.Attester)
	if !ok {
		t.Fatal("the driver cannot say where its keys live")
	}
	key := generate(t, tok, "a", quick(t, tok))
	made, err := attester.Attest(ctx, key.ID())
	if err != nil {
		t.Fatalf("attest: %v", err)
	}
	if made.Driver != driver.Name || made.Serial != info(t, tok).Serial || time.Since(made.Made).Abs() > time.Hour {
		t.Errorf("attestation of another token or time: %+v", made)
	}
	if len(made.Claims) == 0 {
		t.Error("nothing is claimed")
	}
	checkJSON(t, made)
	for name, id := range map[string][]byte{"absent": []byte("nowhere"), "empty": nil} {
		_, err := attester.Attest(ctx, id)
		wantError(t, "attest "+name, err, token.ErrNoKey)
	}
}

// checkJSON stores an attestation and reads it again, as it is kept with its key.
func checkJSON(t *testing.T, made token.Attestation) {
	t.Helper()
	stored, err := json.Marshal(made)
	if err != nil {
		t.Fatal(err)
	}
	var read token.Attestation
	if err := json.Unmarshal(stored, &read); err != nil {
		t.Fatal(err)
	}
	if !read.Made.Equal(made.Made) || read.Driver != made.Driver || read.Serial != made.Serial || !maps.Equal(read.Claims, made.Claims) {
		t.Errorf("stored %+v, read %+v", made, read)
	}
}
