package tpm_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
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

// withOldPINsFiles makes a token with keys, changes its PIN and puts the keys' files from before the change
// in their places, as a restore of a part does.
func withOldPINsFiles(t *testing.T, config tpm.Config, next []byte, ids ...string) *tpm.Token {
	t.Helper()
	tok := open(t, config)
	login(t, tok)
	old := map[string][]byte{}
	for _, id := range ids {
		generate(t, tok, id, token.P256)
		old[id] = read(t, keyPath(t, config, id))
	}
	if err := tok.ChangePIN(t.Context(), pin, next); err != nil {
		t.Fatal(err)
	}
	for id, file := range old {
		write(t, keyPath(t, config, id), file)
	}
	return tok
}

// TestOldPINsFile puts a key's file from before a change of PIN in its place:
// the TPM loads it and rejects the authorisation, once.
func TestOldPINsFile(t *testing.T) {
	made := swtpm.Start(t)
	made.SetLockout(10, time.Hour)
	tok := withOldPINsFiles(t, newToken(t, made), []byte("next PIN"), "a")
	for range 5 {
		key, err := tok.Key(t.Context(), []byte("a"))
		if err != nil {
			t.Fatal(err)
		}
		_, err = tok.Attest(t.Context(), []byte("a"))
		wantError(t, "attest", err, token.ErrMismatch)
		wantError(t, "sign", sign(t, key), token.ErrMismatch)
	}
	if n := made.LockoutCounter(); n != 1 {
		t.Errorf("%d tries were spent, want 1", n)
	}
}

// TestOldPINsFilesSpareTheLastTry has the right PIN meet more files from before a change of PIN than the TPM has tries,
// which are 3 as it comes.
func TestOldPINsFilesSpareTheLastTry(t *testing.T) {
	t.Parallel()
	next, ids := []byte("next PIN"), []string{"a", "b", "c", "d"}
	foreachKey := func(use func(t *testing.T, tok *tpm.Token, id string) error) func(*testing.T, *tpm.Token) {
		return func(t *testing.T, tok *tpm.Token) {
			for n, want := range []error{token.ErrMismatch, token.ErrMismatch, token.ErrPINLocked, token.ErrPINLocked} {
				wantError(t, "key "+ids[n], use(t, tok, ids[n]), want)
			}
		}
	}
	for name, use := range map[string]func(*testing.T, *tpm.Token){
		"sign": foreachKey(func(t *testing.T, tok *tpm.Token, id string) error {
			key, err := tok.Key(t.Context(), []byte(id))
			if err != nil {
				t.Fatal(err)
			}
			return sign(t, key)
		}),
		"attest": foreachKey(func(t *testing.T, tok *tpm.Token, id string) error {
			_, err := tok.Attest(t.Context(), []byte(id))
			return err
		}),
		"change the PIN": func(t *testing.T, tok *tpm.Token) {
			err := tok.ChangePIN(t.Context(), next, []byte("third PIN"))
			wantError(t, "change", err, token.ErrPINLocked)
			if err != nil && !strings.Contains(err.Error(), "61.pem, 62.pem") {
				t.Errorf("it does not say which files to move: %v", err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			made := swtpm.Start(t)
			config := newToken(t, made)
			tok := withOldPINsFiles(t, config, next, ids...)
			good := generate(t, tok, "good", token.P256)
			wantError(t, "sign before", sign(t, good), nil)
			use(t, tok)
			if n := made.LockoutCounter(); n != 2 {
				t.Errorf("%d tries were spent, want 2", n)
			}
			wantError(t, "sign with a key that the TPM has taken", sign(t, good), nil)
			made.ClearLockout()
			wantWhole(t, config, next, "good")
		})
	}
}

// TestSigningAsksForTheLockoutOnce counts questions: only the first use of a key reads the TPM's counter.
func TestSigningAsksForTheLockoutOnce(t *testing.T) {
	p, _, _, key, _ := hostile(t)
	const properties = 6 // TPM_CAP_TPM_PROPERTIES, first parameter of TPM2_GetCapability
	for n, want := range []int{3, 0, 0} {
		var questions int
		p.With(func(command, answer []byte) []byte {
			if swtpm.IsCommand(command, ccGetCapability) && binary.BigEndian.Uint32(command[10:]) == properties {
				questions++
			}
			return answer
		}, func() { wantError(t, "sign", sign(t, key), nil) })
		if questions != want {
			t.Errorf("signature %d: %d questions, want %d", n, questions, want)
		}
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
		p.With(func(_, answer []byte) []byte {
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
