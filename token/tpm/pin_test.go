package tpm_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"errors"
	"strings"
	"testing"
	"time"

	"chancery/swtpm"
	"chancery/token"
	"chancery/token/tpm"
)

// TestWrongPINCostsOneTry asks the TPM itself what was spent.
func TestWrongPINCostsOneTry(t *testing.T) {
	t.Parallel()
	made := swtpm.Start(t)
	made.SetLockout(10, time.Hour)
	config := newToken(t, made)
	tok := open(t, config)
	for n, try := range []struct {
		what string
		call func() error
		want error
		cost int
	}{
		{"right PIN", func() error { return tok.Login(t.Context(), pin) }, nil, 0},
		{"again while logged in", func() error { return tok.Login(t.Context(), wrong) }, nil, 0},
		{"logout", func() error { return tok.Logout(t.Context()) }, nil, 0},
		{"wrong PIN", func() error { return tok.Login(t.Context(), wrong) }, token.ErrPINIncorrect, 1},
		{"no PIN", func() error { return tok.Login(t.Context(), nil) }, token.ErrPINIncorrect, 0},
		{"impossible PIN", func() error { return tok.Login(t.Context(), make([]byte, 256)) }, token.ErrPINIncorrect, 0},
		{"wrong old PIN", func() error { return tok.ChangePIN(t.Context(), wrong, pin) }, token.ErrPINIncorrect, 1},
		{"short new PIN", func() error { return tok.ChangePIN(t.Context(), wrong, []byte("1")) }, token.ErrPINInvalid, 0},
		{"right PIN after wrong ones", func() error { return tok.Login(t.Context(), pin) }, nil, 0},
	} {
		before := made.LockoutCounter()
		err := try.call()
		if !errors.Is(err, try.want) {
			t.Errorf("%d, %s: %v, want %v", n, try.what, err, try.want)
		}
		if cost := made.LockoutCounter() - before; cost != try.cost {
			t.Errorf("%d, %s: cost %d tries, want %d", n, try.what, cost, try.cost)
		}
	}
}

var wrong = []byte("wrong PIN")

// TestLastTryIsNotSpent uses the lockout of a TPM as it comes: 3 tries.
func TestLastTryIsNotSpent(t *testing.T) {
	made := swtpm.Start(t)
	tok := open(t, newToken(t, made))
	states := []token.PINState{{}, {CountLow: true}, {CountLow: true, FinalTry: true}}
	for n, want := range states {
		if got := pinState(t, tok); got != want {
			t.Errorf("after %d wrong PINs: %+v, want %+v", n, got, want)
		}
		if n < 2 {
			wantError(t, "wrong PIN", tok.Login(t.Context(), wrong), token.ErrPINIncorrect)
		}
	}
	wantError(t, "the last try", tok.Login(t.Context(), pin), token.ErrPINLocked)
	wantError(t, "the last try by a change", tok.ChangePIN(t.Context(), pin, []byte("another")), token.ErrPINLocked)
	if n := made.LockoutCounter(); n != 2 {
		t.Errorf("%d tries are spent, want 2", n)
	}
	made.ClearLockout()
	login(t, tok)
}

// TestLockout locks the TPM under a token that is logged in, and lets it recover.
func TestLockout(t *testing.T) {
	t.Parallel()
	made := swtpm.Start(t)
	made.SetLockout(10, time.Hour)
	config := newToken(t, made)
	tok, other := open(t, config), open(t, config)
	login(t, tok)
	key := generate(t, tok, "a", token.P256)
	for range 3 {
		wantError(t, "wrong PIN", other.Login(t.Context(), wrong), token.ErrPINIncorrect)
	}
	made.SetLockout(3, time.Hour)
	if state := pinState(t, tok); !state.Locked || state.FinalTry {
		t.Errorf("state of a locked TPM: %+v", state)
	}
	wantError(t, "login", other.Login(t.Context(), pin), token.ErrPINLocked)
	wantError(t, "sign", sign(t, key), token.ErrPINLocked)
	made.ClearLockout()
	login(t, other)
	wantError(t, "sign after the recovery", sign(t, key), nil)
}

// TestAuthorisationVectors holds what other programs computed by HKDF with SHA-256 (RFC 5869). Key files open with nothing else.
func TestAuthorisationVectors(t *testing.T) {
	salt := make([]byte, 32)
	for i := range salt {
		salt[i] = byte(i)
	}
	for pin, want := range map[string]string{
		"1234":                   "5Ea76NLUHYfuG7f47RwYOaHhDXotoUhj",
		"correct PIN":            "8BlILtv4Ct2fYvgPCQHz40AlP1SPEYp8",
		strings.Repeat("7", 255): "CfA/x9z3N/PEiKLSNbP6zs8690gxopFA",
	} {
		if got := tpm.AuthorisationOf([]byte("storage key"), "0123456789abcdef", salt, []byte(pin)); string(got) != want {
			t.Errorf("PIN of %d bytes: %s, want %s", len(pin), got, want)
		}
	}
}

// TestLogout keeps keys unusable until the next login, and usable from then on.
func TestLogout(t *testing.T) {
	tok := open(t, newToken(t, swtpm.Start(t)))
	wantError(t, "logout before login", tok.Logout(t.Context()), nil)
	login(t, tok)
	key := generate(t, tok, "a", token.P256)
	for range 2 {
		wantError(t, "logout", tok.Logout(t.Context()), nil)
		wantError(t, "sign", sign(t, key), token.ErrLoginRequired)
		_, err := tok.Key(t.Context(), key.ID())
		wantError(t, "key", err, token.ErrLoginRequired)
		login(t, tok)
		wantError(t, "sign after the next login", sign(t, key), nil)
	}
}

// TestPINChangedElsewhere has another program change the PIN.
func TestPINChangedElsewhere(t *testing.T) {
	t.Parallel()
	made := swtpm.Start(t)
	config := newToken(t, made)
	tok, other := open(t, config), open(t, config)
	login(t, tok)
	key := generate(t, tok, "a", token.P256)
	next := []byte("next PIN")
	if err := other.ChangePIN(t.Context(), pin, next); err != nil {
		t.Fatal(err)
	}
	wantError(t, "a key in use", sign(t, key), nil)
	_, err := tok.Key(t.Context(), key.ID())
	wantError(t, "find", err, token.ErrLoginRequired)
	wantLoggedIn(t, tok, false)
	_, err = tok.Generate(t.Context(), token.KeySpec{ID: []byte("b"), Algorithm: token.P256})
	wantError(t, "generate", err, token.ErrLoginRequired)
	wantError(t, "login with the old PIN", tok.Login(t.Context(), pin), token.ErrPINIncorrect)
	wantError(t, "login with the new PIN", tok.Login(t.Context(), next), nil)
	wantLoggedIn(t, tok, true)
	wantError(t, "sign", sign(t, key), nil)
	if n := made.LockoutCounter(); n != 1 {
		t.Errorf("%d tries were spent, want the one", n)
	}
}

func login(t testing.TB, tok *tpm.Token) {
	t.Helper()
	if err := tok.Login(t.Context(), pin); err != nil {
		t.Fatalf("login: %v", err)
	}
}

func pinState(t testing.TB, tok *tpm.Token) token.PINState {
	t.Helper()
	info, err := tok.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return info.PIN
}

func wantLoggedIn(t testing.TB, tok *tpm.Token, want bool) {
	t.Helper()
	info, err := tok.Info(t.Context())
	if err != nil || info.LoggedIn != want {
		t.Errorf("logged in %t, %v, want %t", info.LoggedIn, err, want)
	}
}

func generate(t testing.TB, tok *tpm.Token, id string, a token.Algorithm) token.Key {
	t.Helper()
	key, err := tok.Generate(t.Context(), token.KeySpec{ID: []byte(id), Label: "label of " + id, Algorithm: a})
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// sign makes a signature by a P-256 key and verifies it.
func sign(t testing.TB, key token.Key) error {
	digest := sha256.Sum256([]byte("message"))
	signature, err := key.Sign(t.Context(), digest[:], crypto.SHA256)
	if err != nil {
		return err
	}
	if !ecdsa.VerifyASN1(key.Public().(*ecdsa.PublicKey), digest[:], signature) {
		return errWrong
	}
	return nil
}

var errWrong = errors.New("the signature is wrong")

func wantError(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}
