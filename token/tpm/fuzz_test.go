package tpm_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"chancery/swtpm"
	"chancery/token"
	"chancery/token/tpm"
)

// FuzzKeyFile decodes what may lie in a token's directory.
func FuzzKeyFile(f *testing.F) {
	config, tok := fuzzed(f)
	info, err := tok.Info(f.Context())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(read(f, keyPath(f, config, "a")))
	f.Add([]byte("-----BEGIN TSS2 PRIVATE KEY-----\nMAA=\n-----END TSS2 PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		_ = tpm.DecodeKeyFile(data, info.Serial, []byte("a"))
	})
}

// FuzzManifest decodes token.json.
func FuzzManifest(f *testing.F) {
	config, _ := fuzzed(f)
	good := read(f, filepath.Join(config.Directory, "token.json"))
	f.Add(good)
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		_ = tpm.DecodeManifest(data)
	})
}

// FuzzAttestation verifies evidence that anybody may have sent: only the evidence that the TPM gave passes.
func FuzzAttestation(f *testing.F) {
	_, tok := fuzzed(f)
	key, err := tok.Key(f.Context(), []byte("a"))
	if err != nil {
		f.Fatal(err)
	}
	good, err := tok.Attest(f.Context(), []byte("a"))
	if err != nil {
		f.Fatal(err)
	}
	e := good.Evidence
	f.Add(e.Public, e.Statement, e.Signature, e.Signer)
	f.Add([]byte{0}, []byte{0}, []byte{0}, []byte{0})
	f.Fuzz(func(t *testing.T, public, statement, signature, signer []byte) {
		a := token.Attestation{Evidence: &token.Evidence{
			Format: token.EvidenceTPM2Certify, Public: public, Statement: statement, Signature: signature, Signer: signer,
		}}
		if tpm.VerifyAttestation(a, key.Public()) == nil && string(signer) == string(e.Signer) && string(statement) != string(e.Statement) {
			t.Error("verified what the TPM did not say")
		}
	})
}

// FuzzAnswer gives one answer to all that the driver asks. The seeds are a TPM's own.
func FuzzAnswer(f *testing.F) {
	made := swtpm.Start(f)
	p := swtpm.Interpose(f, made)
	config := newToken(f, made)
	config.Device = p.Device
	first := open(f, config)
	p.Set(func(_, answer []byte) []byte {
		f.Add(bytes.Clone(answer))
		return answer
	})
	login(f, first)
	generate(f, first, "a", token.P256)
	_, err := first.Attest(f.Context(), []byte("a"))
	p.Set(nil)
	if err = errors.Join(err, first.Close()); err != nil {
		f.Fatal(err)
	}
	tok := open(f, config)
	login(f, tok)
	f.Fuzz(func(t *testing.T, answer []byte) {
		tpm.AgainstAnswer(t.Context(), tok, []byte("a"), pin, answer)
	})
}

// fuzzed makes a token with one key. The TPM ends with the target.
func fuzzed(f *testing.F) (tpm.Config, *tpm.Token) {
	f.Helper()
	config := newToken(f, swtpm.Start(f))
	tok := open(f, config)
	login(f, tok)
	generate(f, tok, "a", token.P256)
	return config, tok
}

// TestManifestRefuses alters one field at a time.
func TestManifestRefuses(t *testing.T) {
	config := newToken(t, swtpm.Start(t))
	path := filepath.Join(config.Directory, "token.json")
	good := read(t, path)
	for name, alter := range map[string]func(map[string]any){
		"version":         func(m map[string]any) { m["version"] = 2 },
		"identity":        func(m map[string]any) { m["identity"] = "0123456789abcdef" },
		"generation":      func(m map[string]any) { m["generation"] = "../../../../etc" },
		"label":           func(m map[string]any) { m["label"] = "a\x1b[2J" },
		"salt":            func(m map[string]any) { m["salt"] = "AAAA" },
		"parent":          func(m map[string]any) { m["parent"] = m["pin_public"] },
		"PIN object":      func(m map[string]any) { m["pin_public"] = m["parent"] },
		"no PIN object":   func(m map[string]any) { delete(m, "pin_private") },
		"something extra": func(m map[string]any) { m["extra"] = true },
	} {
		var fields map[string]any
		if err := json.Unmarshal(good, &fields); err != nil {
			t.Fatal(err)
		}
		alter(fields)
		data, err := json.Marshal(fields)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := tpm.Open(config); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
}
