package tpm_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/hex"
	"os"
	"path/filepath"
	"testing"
	"time"

	"chancery/swtpm"
	"chancery/token"
	"chancery/token/tpm"
)

type scalarKey struct {
	key    *ecdsa.PrivateKey
	scalar []byte
}

func privateScalar(t testing.TB) scalarKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	scalar, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return scalarKey{key, scalar}
}

func keyPath(t testing.TB, config tpm.Config, id string) string {
	t.Helper()
	dir, err := tpm.KeysDir(config)
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, hex.EncodeToString([]byte(id))+".pem")
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func write(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestAlteredKeyFiles puts other contents in a key's place. Each is refused, costs no
// try, and leaves the other key alone.
func TestAlteredKeyFiles(t *testing.T) {
	t.Parallel()
	made := swtpm.Start(t)
	config, other := newToken(t, made), newToken(t, made)
	tok, second := open(t, config), open(t, other)
	login(t, tok)
	login(t, second)
	victim, kept := generate(t, tok, "a", token.P256), generate(t, tok, "b", token.P256)
	generate(t, second, "a", token.P256) // the same identifier and label, in another token
	path := keyPath(t, config, "a")
	good := read(t, path)
	flipped := bytes.Clone(good)
	flipped[len(flipped)-60] ^= 1 // a base64 digit of the private area
	for name, content := range map[string][]byte{
		"nothing":             nil,
		"garbage":             []byte("garbage"),
		"cut":                 good[:len(good)/2],
		"something behind":    append(bytes.Clone(good), good...),
		"another key's":       read(t, keyPath(t, config, "b")),
		"another token's":     read(t, keyPath(t, other, "a")),
		"altered private key": flipped,
	} {
		write(t, path, content)
		fresh := open(t, config)
		login(t, fresh)
		if _, err := fresh.Key(t.Context(), victim.ID()); err == nil {
			t.Errorf("%s: opened", name)
		}
		if _, err := fresh.Key(t.Context(), kept.ID()); err != nil {
			t.Errorf("%s: the other key: %v", name, err)
		}
		fresh.Close()
	}
	write(t, path, good)
	if _, err := tok.Key(t.Context(), victim.ID()); err != nil {
		t.Errorf("the right file: %v", err)
	}
	if n := made.LockoutCounter(); n != 0 {
		t.Errorf("%d tries were spent", n)
	}
}

// TestOldPINsFile puts a key's file from before a change of PIN in its place:
// the TPM loads it and rejects the authorisation, once.
func TestOldPINsFile(t *testing.T) {
	made := swtpm.Start(t)
	made.SetLockout(10, time.Hour)
	config := newToken(t, made)
	tok := open(t, config)
	login(t, tok)
	generate(t, tok, "a", token.P256)
	old := read(t, keyPath(t, config, "a"))
	if err := tok.ChangePIN(t.Context(), pin, []byte("next PIN")); err != nil {
		t.Fatal(err)
	}
	write(t, keyPath(t, config, "a"), old)
	for range 5 {
		key, err := tok.Key(t.Context(), []byte("a"))
		if err != nil {
			t.Fatal(err)
		}
		wantError(t, "sign", sign(t, key), token.ErrMismatch)
	}
	if n := made.LockoutCounter(); n != 1 {
		t.Errorf("%d tries were spent, want 1", n)
	}
}

// TestCutChangesOfPIN breaks the connection after each command of a change of
// PIN in turn, and wants one PIN to open the whole token.
func TestCutChangesOfPIN(t *testing.T) {
	t.Parallel()
	p, made, tok, _, config := hostile(t)
	generate(t, tok, "b", token.P256)
	pins := [2][]byte{pin, []byte("another PIN")}
	for cut := range 40 {
		left := cut
		var err error
		p.with(func(_, answer []byte) []byte {
			if left--; left < 0 {
				return nil
			}
			return answer
		}, func() { err = open(t, config).ChangePIN(t.Context(), pins[0], pins[1]) })
		if err == nil {
			pins[0], pins[1] = pins[1], pins[0]
		}
		made.ClearLockout()
		wantWhole(t, config, pins[0], "a", "b")
	}
	if !bytes.Equal(pins[0], pin) && !bytes.Equal(pins[0], []byte("another PIN")) {
		t.Error("no PIN")
	}
}

// wantWhole opens the token with the PIN, signs with each key and looks for
// generations that nobody needs.
func wantWhole(t *testing.T, config tpm.Config, pin []byte, ids ...string) {
	t.Helper()
	tok := open(t, config)
	defer tok.Close()
	if err := tok.Login(t.Context(), pin); err != nil {
		t.Fatalf("login: %v", err)
	}
	for _, id := range ids {
		key, err := tok.Key(t.Context(), []byte(id))
		if err != nil {
			t.Fatalf("key %s: %v", id, err)
		}
		if err := sign(t, key); err != nil {
			t.Fatalf("sign with %s: %v", id, err)
		}
	}
}
