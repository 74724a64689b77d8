package tpm_test

import (
	"bytes"
	"encoding/json"
	"testing"

	"chancery/swtpm"
	"chancery/token"
	"chancery/token/tpm"
)

// TestAttest certifies keys of each kind and keeps that as JSON, as it is kept with keys.
func TestAttest(t *testing.T) {
	t.Parallel()
	tok := open(t, newToken(t, swtpm.Start(t)))
	_, err := tok.Attest(t.Context(), []byte("a"))
	wantError(t, "before login", err, token.ErrLoginRequired)
	login(t, tok)
	_, err = tok.Attest(t.Context(), []byte("absent"))
	wantError(t, "an absent key", err, token.ErrNoKey)
	var signer []byte
	for id, a := range map[string]token.Algorithm{"a": token.P256, "b": token.P384, "c": token.RSA2048} {
		key := generate(t, tok, id, a)
		kept := throughJSON(t, attest(t, tok, id))
		if err := tpm.VerifyAttestation(kept, key.Public()); err != nil {
			t.Errorf("%s: %v", a, err)
		}
		for _, claim := range []string{"fixed_tpm", "fixed_parent", "sensitive_data_origin"} {
			if !kept.Claims[claim] {
				t.Errorf("%s: no claim of %s", a, claim)
			}
		}
		if kept.Claims["no_da"] {
			t.Errorf("%s: without the lockout's protection", a)
		}
		if signer != nil && !bytes.Equal(signer, kept.Evidence.Signer) {
			t.Error("the attestation key changed")
		}
		signer = kept.Evidence.Signer
	}
}

// TestAttestImported tells that a key came from outside.
func TestAttestImported(t *testing.T) {
	tok := open(t, newToken(t, swtpm.Start(t)))
	login(t, tok)
	private := privateScalar(t).key
	if _, err := tok.Import(t.Context(), token.KeySpec{ID: []byte("i"), Algorithm: token.P256}, private); err != nil {
		t.Fatal(err)
	}
	a := attest(t, tok, "i")
	if a.Claims["fixed_tpm"] || a.Claims["sensitive_data_origin"] {
		t.Errorf("claims of an imported key: %v", a.Claims)
	}
	wantError(t, "imported", tpm.VerifyAttestation(a, private.Public()), token.ErrMismatch)
}

// TestVerifyAttestationRefuses alters one thing at a time.
func TestVerifyAttestationRefuses(t *testing.T) {
	tok := open(t, newToken(t, swtpm.Start(t)))
	login(t, tok)
	key, other := generate(t, tok, "a", token.P256), generate(t, tok, "b", token.P256)
	good, others := attest(t, tok, "a"), attest(t, tok, "b")
	for name, alter := range map[string]func(*token.Attestation){
		"another key's evidence":  func(a *token.Attestation) { a.Evidence = others.Evidence },
		"another key's public":    func(a *token.Attestation) { a.Evidence.Public = others.Evidence.Public },
		"another key's statement": func(a *token.Attestation) { a.Evidence.Statement = others.Evidence.Statement },
		"another key's signature": func(a *token.Attestation) { a.Evidence.Signature = others.Evidence.Signature },
		"a key as the signer":     func(a *token.Attestation) { a.Evidence.Signer = others.Evidence.Public },
		"magic":                   func(a *token.Attestation) { a.Evidence.Statement[0] ^= 1 },
		"type":                    func(a *token.Attestation) { a.Evidence.Statement[5] ^= 1 },
		"end of the statement":    func(a *token.Attestation) { a.Evidence.Statement = append(a.Evidence.Statement, 0) },
		"no statement":            func(a *token.Attestation) { a.Evidence.Statement = nil },
		"no signature":            func(a *token.Attestation) { a.Evidence.Signature = nil },
		"no signer":               func(a *token.Attestation) { a.Evidence.Signer = nil },
		"a claim too much":        func(a *token.Attestation) { a.Claims["never_extractable"] = true },
		"a claim turned round":    func(a *token.Attestation) { a.Claims["no_da"] = true },
	} {
		altered := throughJSON(t, good)
		alter(&altered)
		wantError(t, name, tpm.VerifyAttestation(altered, key.Public()), token.ErrMismatch)
	}
	for i := range good.Evidence.Statement {
		altered := throughJSON(t, good)
		altered.Evidence.Statement[i] ^= 0x10
		wantError(t, "a flipped bit", tpm.VerifyAttestation(altered, key.Public()), token.ErrMismatch)
	}
	wantError(t, "about another key", tpm.VerifyAttestation(good, other.Public()), token.ErrMismatch)
	wantError(t, "about no key", tpm.VerifyAttestation(good, nil), token.ErrMismatch)
	good.Evidence = nil
	wantError(t, "claims only", tpm.VerifyAttestation(good, key.Public()), token.ErrUnsupported)
}

func attest(t *testing.T, tok *tpm.Token, id string) token.Attestation {
	t.Helper()
	a, err := tok.Attest(t.Context(), []byte(id))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func throughJSON(t *testing.T, a token.Attestation) token.Attestation {
	t.Helper()
	data, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	var back token.Attestation
	if err := json.Unmarshal(data, &back); err != nil {
		t.Fatal(err)
	}
	return back
}
