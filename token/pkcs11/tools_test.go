package pkcs11_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"chancery/internal/testtool"
	"chancery/softhsm"
	"chancery/token"
	"chancery/token/pkcs11"
	"chancery/token/tokentest"
)

// pkcs11Tool runs OpenSC's pkcs11-tool, logged in, in a process of its own.
func pkcs11Tool(t *testing.T, hsm *softhsm.Token, arguments ...string) string {
	t.Helper()
	tool := testtool.Need(t, "pkcs11-tool")
	command := exec.Command(tool, append([]string{"--module", hsm.Store.Module,
		"--token-label", hsm.Label, "--login", "--pin", string(hsm.PIN)}, arguments...)...)
	command.Env = append(os.Environ(), hsm.Env()...)
	out, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("pkcs11-tool %s: %v\n%s", strings.Join(arguments, " "), err, out)
	}
	return string(out)
}

// TestPKCS11ToolSeesGeneratedKeys has another program look at our keys.
func TestPKCS11ToolSeesGeneratedKeys(t *testing.T) {
	hsm := softhsm.ForTest(t)
	tok := loggedIn(t, hsm)
	for i, a := range []token.Algorithm{token.RSA2048, token.P256, token.Ed25519} {
		id := []byte{0xc0, byte(i)}
		generate(t, tok, id, a)
		seen := pkcs11Tool(t, hsm, "--list-objects", "--type", "privkey", "--id", hex.EncodeToString(id))
		for _, want := range []string{"label:      a key", "Usage:      sign\n",
			"Access:     sensitive, always sensitive, never extractable, local"} {
			if !strings.Contains(seen, want) {
				t.Errorf("%s: no %q in\n%s", a, want, seen)
			}
		}
	}
}

// TestPKCS11ToolUsesGeneratedKey signs with our key outside of this program.
func TestPKCS11ToolUsesGeneratedKey(t *testing.T) {
	hsm := softhsm.ForTest(t)
	key := generate(t, loggedIn(t, hsm), []byte{0xca}, token.P256)
	dir := t.TempDir()
	digest := sha256.Sum256([]byte("signed elsewhere"))
	input, output := filepath.Join(dir, "digest"), filepath.Join(dir, "signature")
	if err := os.WriteFile(input, digest[:], 0o600); err != nil {
		t.Fatal(err)
	}
	pkcs11Tool(t, hsm, "--sign", "--mechanism", "ECDSA", "--id", "ca", "--input-file", input, "--output-file", output)
	raw, err := os.ReadFile(output)
	if err != nil || len(raw) != 64 {
		t.Fatalf("signature of %d bytes, %v", len(raw), err)
	}
	r, s := new(big.Int).SetBytes(raw[:32]), new(big.Int).SetBytes(raw[32:])
	if !ecdsa.Verify(key.Public().(*ecdsa.PublicKey), digest[:], r, s) {
		t.Error("pkcs11-tool signed with another key")
	}
}

// TestAdoption finds keys that another program makes while the token is open.
func TestAdoption(t *testing.T) {
	hsm := softhsm.ForTest(t)
	tok := loggedIn(t, hsm)
	for i, kind := range []struct {
		pkcs11Tool string
		algorithm  token.Algorithm
	}{{"rsa:2048", token.RSA2048}, {"EC:secp384r1", token.P384}, {"EC:edwards25519", token.Ed25519}} {
		id := []byte{0xad, byte(i)}
		pkcs11Tool(t, hsm, "--keypairgen", "--key-type", kind.pkcs11Tool, "--id", hex.EncodeToString(id), "--label", "adopted")
		info := listed(t, tok, id)
		if info.Label != "adopted" || info.Algorithm != kind.algorithm {
			t.Errorf("listed as %q, %s", info.Label, info.Algorithm)
		}
		key, err := tok.Key(t.Context(), id)
		if err != nil {
			t.Errorf("adopt %s: %v", kind.algorithm, err)
			continue
		}
		tokentest.SignConcurrently(t, []token.Key{key}, 4, 2)
	}
}

// TestPlantedPublicKey puts another public key object in the place of a key's
// own, which takes no more than access to the token.
func TestPlantedPublicKey(t *testing.T) {
	hsm := softhsm.ForTest(t)
	tok := loggedIn(t, hsm)
	victim, other := generate(t, tok, []byte{0xbb, 1}, token.P256), generate(t, tok, []byte{0xbb, 2}, token.P256)
	der, err := x509.MarshalPKIXPublicKey(other.Public())
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "planted.der")
	if err := os.WriteFile(path, der, 0o600); err != nil {
		t.Fatal(err)
	}
	pkcs11Tool(t, hsm, "--write-object", path, "--type", "pubkey", "--id", "bb01", "--label", "planted")
	_, err = tok.Key(t.Context(), victim.ID())
	wantError(t, "two public halves", err, token.ErrMismatch)

	pkcs11Tool(t, hsm, "--delete-object", "--type", "pubkey", "--id", "bb01")
	if info := listedOrNone(t, tok, victim.ID()); info != nil && equal(info.Public, victim.Public()) {
		pkcs11Tool(t, hsm, "--delete-object", "--type", "pubkey", "--id", "bb01")
		pkcs11Tool(t, hsm, "--write-object", path, "--type", "pubkey", "--id", "bb01", "--label", "planted")
	}
	_, err = tok.Key(t.Context(), victim.ID())
	wantError(t, "another key's public half", err, token.ErrMismatch)
}

// TestLessProtectedKey refuses what Generate must never leave behind.
func TestLessProtectedKey(t *testing.T) {
	hsm := softhsm.ForTest(t)
	tok := loggedIn(t, hsm)
	pkcs11Tool(t, hsm, "--keypairgen", "--key-type", "EC:secp256r1", "--id", "ee", "--label", "open", "--extractable")
	wantError(t, "extractable", tok.CheckProtection(t.Context(), []byte{0xee}), token.ErrUnsupported)
	// It may still be adopted: whoever made it so had a reason.
	if _, err := tok.Key(t.Context(), []byte{0xee}); err != nil {
		t.Errorf("adopt: %v", err)
	}
}

func TestImportedKeyIsProtected(t *testing.T) {
	hsm := softhsm.ForTest(t)
	tok := loggedIn(t, hsm)
	openssl := testtool.Need(t, "openssl")
	out, err := exec.Command(openssl, "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048").Output()
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(out)
	private, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	spec := token.KeySpec{ID: []byte{0xaa}, Label: "a key", Algorithm: token.RSA2048}
	if _, err := tok.Import(t.Context(), spec, private); err != nil {
		t.Fatal(err)
	}
	seen := pkcs11Tool(t, hsm, "--list-objects", "--type", "privkey", "--id", "aa")
	if !strings.Contains(seen, "Access:     sensitive\n") || !strings.Contains(seen, "Usage:      sign\n") {
		t.Errorf("imported as\n%s", seen)
	}
}

// spyModules are where distributions keep OpenSC's module that logs each call.
var spyModules = []string{
	"/usr/lib/x86_64-linux-gnu/pkcs11-spy.so", "/usr/lib/aarch64-linux-gnu/pkcs11-spy.so",
	"/usr/lib/x86_64-linux-gnu/pkcs11/pkcs11-spy.so", "/usr/lib64/pkcs11/pkcs11-spy.so",
	"/usr/lib64/pkcs11-spy.so", "/usr/lib/pkcs11/pkcs11-spy.so", "/usr/lib/pkcs11-spy.so",
}

// TestCallsPerSignature counts what a signature costs the module.
func TestCallsPerSignature(t *testing.T) {
	const sessions, signatures = 5, 40
	hsm := softhsm.ForTest(t)
	log := filepath.Join(t.TempDir(), "spy.log")
	t.Setenv("PKCS11SPY", hsm.Store.Module)
	t.Setenv("PKCS11SPY_OUTPUT", log)
	cfg := config(hsm)
	cfg.Module, cfg.MaxSessions = spyModule(t), sessions
	tok := open(t, cfg)
	if err := tok.Login(t.Context(), hsm.PIN); err != nil {
		t.Fatal(err)
	}
	keys := []token.Key{generate(t, tok, []byte{1}, token.RSA2048),
		generate(t, tok, []byte{2}, token.P256), generate(t, tok, []byte{3}, token.Ed25519)}

	before := calls(t, log)
	tokentest.SignConcurrently(t, keys, signatures, 1)
	after := calls(t, log)
	for _, call := range []string{"C_Login", "C_OpenSession", "C_FindObjectsInit", "C_GetAttributeValue", "C_GetTokenInfo", "C_GetSessionInfo"} {
		if after[call] != before[call] {
			t.Errorf("%d signatures made %d calls of %s", signatures, after[call]-before[call], call)
		}
	}
	if made := after["C_SignInit"] - before["C_SignInit"]; made != signatures {
		t.Errorf("%d signatures began %d", signatures, made)
	}
	if after["C_Login"] != 1 || after["C_OpenSession"] != sessions {
		t.Errorf("%d logins and %d sessions, want 1 and %d", after["C_Login"], after["C_OpenSession"], sessions)
	}
}

func spyModule(t *testing.T) string {
	t.Helper()
	for _, path := range spyModules {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	testtool.Missing(t, "pkcs11-spy.so of OpenSC")
	return ""
}

// calls counts the calls in a log of pkcs11-spy, whose lines are "12: C_Sign".
func calls(t *testing.T, log string) map[string]int {
	t.Helper()
	data, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string]int{}
	for line := range strings.Lines(string(data)) {
		var number int
		var name string
		if n, _ := fmt.Sscanf(line, "%d: %s", &number, &name); n == 2 {
			counts[name]++
		}
	}
	return counts
}

func loggedIn(t *testing.T, hsm *softhsm.Token) *pkcs11.Token {
	t.Helper()
	tok := open(t, config(hsm))
	if err := tok.Login(t.Context(), hsm.PIN); err != nil {
		t.Fatal(err)
	}
	return tok
}

func generate(t *testing.T, tok token.Token, id []byte, a token.Algorithm) token.Key {
	t.Helper()
	key, err := tok.Generate(t.Context(), token.KeySpec{ID: id, Label: "a key", Algorithm: a})
	if err != nil {
		t.Fatalf("generate %s: %v", a, err)
	}
	return key
}

func listed(t *testing.T, tok token.Token, id []byte) token.KeyInfo {
	t.Helper()
	info := listedOrNone(t, tok, id)
	if info == nil {
		t.Fatalf("key %x is not listed", id)
	}
	return *info
}

func listedOrNone(t *testing.T, tok token.Token, id []byte) *token.KeyInfo {
	t.Helper()
	keys, err := tok.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		if string(k.ID) == string(id) {
			return &k
		}
	}
	return nil
}

func equal(a, b crypto.PublicKey) bool {
	return a.(interface{ Equal(crypto.PublicKey) bool }).Equal(b)
}
