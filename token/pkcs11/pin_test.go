package pkcs11_test

import (
	"testing"

	"chancery/softhsm"
	"chancery/softhsm/faulty"
	"chancery/token"
	"chancery/token/pkcs11"
)

// TestPINFlags reads the flags that the token itself keeps. SoftHSM sets CKF_USER_PIN_COUNT_LOW with the first wrong
// PIN, keeps it over processes and clears it with the next right one; it has no last try and locks nothing.
func TestPINFlags(t *testing.T) {
	hsm := softhsm.ForTest(t)
	tok := open(t, config(hsm))
	ctx := t.Context()
	low := token.PINState{CountLow: true}
	wantPIN(t, "new", tok, token.PINState{})
	for range 5 {
		wantError(t, "wrong PIN", tok.Login(ctx, []byte("wrong PIN")), token.ErrPINIncorrect)
		wantPIN(t, "after a wrong PIN", tok, low)
	}
	if err := tok.Close(); err != nil {
		t.Fatal(err)
	}
	tok = open(t, config(hsm))
	wantPIN(t, "opened anew", tok, low)
	if infos, err := pkcs11.List(hsm.Store.Module); err != nil || len(infos) != 1 || infos[0].PIN != low {
		t.Errorf("listed as %+v, %v", infos, err)
	}
	if err := tok.Login(ctx, hsm.PIN); err != nil {
		t.Fatal(err)
	}
	wantPIN(t, "after the right PIN", tok, token.PINState{})
	wantError(t, "change with a wrong PIN", tok.ChangePIN(ctx, []byte("wrong PIN"), []byte("new PIN")), token.ErrPINIncorrect)
	wantPIN(t, "after a change with a wrong PIN", tok, low)
}

// TestRefusedPINsAreNotCounted has logins that are refused before the token sees the PIN.
func TestRefusedPINsAreNotCounted(t *testing.T) {
	hsm := softhsm.ForTest(t)
	module := faulty.Build(t)
	tok := open(t, pkcs11.Config{Module: module.Path, Serial: hsm.Serial})
	for _, pin := range []string{"", "123"} {
		wantError(t, "PIN of no possible length", tok.Login(t.Context(), []byte(pin)), token.ErrPINIncorrect)
	}
	wantPIN(t, "after refusals", tok, token.PINState{})
	if n := module.Calls(t, "C_Login"); n != 0 {
		t.Errorf("the token was sent %d PINs", n)
	}
}

func wantPIN(t *testing.T, when string, tok token.Token, want token.PINState) {
	t.Helper()
	if i, err := tok.Info(t.Context()); err != nil || i.PIN != want {
		t.Errorf("%s: PIN flags %+v, %v; want %+v", when, i.PIN, err, want)
	}
}
