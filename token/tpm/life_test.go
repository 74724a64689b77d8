package tpm_test

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"chancery/swtpm"
	"chancery/token"
	"chancery/token/tokentest"
	"chancery/token/tpm"
)

const manySignatures = 10_000

// TestNothingIsLeftBehind counts the TPM's handles before and after.
func TestNothingIsLeftBehind(t *testing.T) {
	t.Parallel()
	made := swtpm.Start(t)
	config := newToken(t, made)
	if objects, sessions := made.Handles(); objects != 0 || sessions != 0 {
		t.Errorf("making a token left %d objects and %d sessions", objects, sessions)
	}
	tok := open(t, config)
	wantError(t, "wrong PIN", tok.Login(t.Context(), wrong), token.ErrPINIncorrect)
	login(t, tok)
	key := generate(t, tok, "a", token.P256)
	for n := range manySignatures {
		if err := sign(t, key); err != nil {
			t.Fatalf("signature %d: %v", n, err)
		}
	}
	everyOtherCall(t, made, tok)
	if err := tok.Close(); err != nil {
		t.Error(err)
	}
	if objects, sessions := made.Handles(); objects != 0 || sessions != 0 {
		t.Errorf("%d objects and %d sessions are left", objects, sessions)
	}
}

// everyOtherCall makes calls that end well and calls that the TPM refuses.
func everyOtherCall(t *testing.T, made *swtpm.TPM, tok *tpm.Token) {
	t.Helper()
	generate(t, tok, "b", token.P384)
	if _, err := tok.Attest(t.Context(), []byte("a")); err != nil {
		t.Error(err)
	}
	_, err := tok.Key(t.Context(), []byte("absent"))
	wantError(t, "an absent key", err, token.ErrNoKey)
	wantError(t, "wrong old PIN", tok.ChangePIN(t.Context(), wrong, pin), token.ErrPINIncorrect)
	made.ClearLockout()
	if err := tok.ChangePIN(t.Context(), pin, []byte("next PIN")); err != nil {
		t.Error(err)
	}
	wantError(t, "destroy", tok.Destroy(t.Context(), []byte("b")), nil)
}

// TestIdleConnection has two programs use one emulator in turn.
func TestIdleConnection(t *testing.T) {
	t.Parallel()
	made := swtpm.Start(t)
	first, second := open(t, newToken(t, made)), open(t, newToken(t, made))
	var group sync.WaitGroup
	for _, tok := range []*tpm.Token{first, second} {
		login(t, tok)
		key := generate(t, tok, "a", token.P256)
		group.Go(func() {
			for end := time.Now().Add(3 * time.Second); time.Now().Before(end); { // longer than one may hold the connection
				if err := sign(t, key); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	if objects, sessions := made.Handles(); objects != 0 || sessions != 0 {
		t.Errorf("%d objects and %d sessions are left", objects, sessions)
	}
}

// TestMoreKeysThanSlots signs with five keys from many goroutines.
func TestMoreKeysThanSlots(t *testing.T) {
	t.Parallel()
	tok := open(t, newToken(t, swtpm.Start(t)))
	login(t, tok)
	var keys []token.Key
	for n := range 5 {
		keys = append(keys, generate(t, tok, fmt.Sprint(n), []token.Algorithm{token.P256, token.P384}[n%2]))
	}
	tokentest.SignConcurrently(t, keys, 16, 20)
}

// TestPowerCycle takes the TPM's power under a token that is logged in.
func TestPowerCycle(t *testing.T) {
	t.Parallel()
	made := swtpm.Start(t)
	made.SetLockout(10, time.Hour)
	tok := open(t, newToken(t, made))
	login(t, tok)
	key := generate(t, tok, "a", token.P256)
	for range 3 {
		made.Restart()
		wantError(t, "sign after the power cycle", sign(t, key), nil)
	}
	made.Stop()
	wantError(t, "sign without a TPM", sign(t, key), token.ErrTokenAbsent)
	_, err := tok.Info(t.Context())
	wantError(t, "info without a TPM", err, token.ErrTokenAbsent)
	if keys, err := tok.Keys(t.Context()); err != nil || len(keys) != 1 {
		t.Errorf("keys without a TPM: %v, %v", keys, err)
	}
	made.Restart()
	wantError(t, "sign with the TPM again", sign(t, key), nil)
}

// TestOrderlyPowerCycle costs no try.
func TestOrderlyPowerCycle(t *testing.T) {
	made := swtpm.Start(t)
	tok := open(t, newToken(t, made))
	login(t, tok)
	key := generate(t, tok, "a", token.P256)
	made.Shutdown()
	made.Restart()
	wantError(t, "sign", sign(t, key), nil)
	if n := made.LockoutCounter(); n != 0 {
		t.Errorf("%d tries were spent", n)
	}
}

// TestAnotherTPM moves the directory to a machine where it is useless.
func TestAnotherTPM(t *testing.T) {
	config := newToken(t, swtpm.Start(t))
	other := swtpm.Start(t)
	config.Device = other.Device()
	tok := open(t, config)
	wantError(t, "login", tok.Login(t.Context(), wrong), token.ErrTokenAbsent)
	if n := other.LockoutCounter(); n != 0 {
		t.Errorf("%d tries of the other TPM were spent", n)
	}
}

func TestOpenRefuses(t *testing.T) {
	_, err := tpm.Open(tpm.Config{Directory: t.TempDir()})
	wantError(t, "an empty directory", err, token.ErrTokenAbsent)
	config := newToken(t, swtpm.Start(t))
	if err := os.Chmod(config.Directory, 0o750); err != nil {
		t.Fatal(err)
	}
	if _, err := tpm.Open(config); err == nil {
		t.Error("opened a directory that others can read")
	}
}

func TestCreateRefuses(t *testing.T) {
	made := swtpm.Start(t)
	config := newToken(t, made)
	if err := tpm.Create(config, "another", pin); err == nil {
		t.Error("made a token over another one")
	}
	fresh := tpm.Config{Device: made.Device(), Directory: filepath.Join(t.TempDir(), "new")}
	wantError(t, "short PIN", tpm.Create(fresh, "label", []byte("123")), token.ErrPINInvalid)
	if err := tpm.Create(fresh, "", pin); err == nil {
		t.Error("made a token without a label")
	}
	fresh.Device = "unix:" + filepath.Join(t.TempDir(), "absent")
	wantError(t, "no TPM", tpm.Create(fresh, "label", pin), token.ErrTokenAbsent)
	fresh.Device = made.Device()
	wantError(t, "at last", tpm.Create(fresh, "label", pin), nil)
}
