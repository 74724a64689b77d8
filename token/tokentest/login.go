package tokentest

import (
	"bytes"
	"errors"
	"testing"

	"chancery/token"
)

func testInfo(t *testing.T, driver Driver) {
	fixture := open(t, driver)
	i := info(t, fixture.Token)
	if i.Driver != driver.Name || i.Hardware != driver.Hardware {
		t.Errorf("driver %q, hardware %v; want %q, %v", i.Driver, i.Hardware, driver.Name, driver.Hardware)
	}
	if i.Label == "" || i.Serial == "" || i.MaxSessions < 1 || len(i.Algorithms) == 0 {
		t.Errorf("incomplete: %+v", i)
	}
	if i.LoggedIn || i.PIN != (token.PINState{}) {
		t.Errorf("a new token is logged in or counts wrong PINs: %+v", i)
	}
	if again := info(t, fixture.Token); again.Serial != i.Serial {
		t.Errorf("serial changed from %q to %q", i.Serial, again.Serial)
	}
}

func testBeforeLogin(t *testing.T, driver Driver) {
	fixture := open(t, driver)
	ctx, tok := t.Context(), fixture.Token
	if keys, err := tok.Keys(ctx); err != nil || len(keys) != 0 {
		t.Errorf("keys of a new token: %v, %v", keys, err)
	}
	spec := token.KeySpec{ID: []byte("a"), Label: "a", Algorithm: quick(t, tok)}
	_, err := tok.Key(ctx, spec.ID)
	wantError(t, "Key", err, token.ErrLoginRequired)
	_, err = tok.Generate(ctx, spec)
	wantError(t, "Generate", err, token.ErrLoginRequired)
	_, err = tok.Import(ctx, spec, privateKey(t, spec.Algorithm))
	wantError(t, "Import", err, token.ErrLoginRequired)
	wantError(t, "Destroy", tok.Destroy(ctx, spec.ID), token.ErrLoginRequired)
}

func testLogin(t *testing.T, driver Driver) {
	fixture := open(t, driver)
	ctx, tok := t.Context(), fixture.Token
	wrong := wrongPIN(fixture.PIN)
	wantError(t, "wrong PIN", tok.Login(ctx, wrong), token.ErrPINIncorrect)
	wantError(t, "empty PIN", tok.Login(ctx, nil), token.ErrPINIncorrect)
	if info(t, tok).LoggedIn {
		t.Error("logged in by a wrong PIN")
	}
	pin := bytes.Clone(fixture.PIN)
	login(t, tok, pin)
	clear(pin)
	if !info(t, tok).LoggedIn {
		t.Error("not logged in after Login")
	}
	login(t, tok, fixture.PIN)
	if err := signOnce(ctx, generate(t, tok, "a", quick(t, tok))); err != nil {
		t.Errorf("sign: %v", err)
	}
}

func testChangePIN(t *testing.T, driver Driver) {
	fixture := openLoggedIn(t, driver)
	ctx, tok := t.Context(), fixture.Token
	next := []byte("another PIN 4711")
	key := generate(t, tok, "a", quick(t, tok))
	if driver.OneKey {
		tok = reopen(t, fixture)
		login(t, tok, fixture.PIN)
		fixture.Token = tok
	}

	if err := tok.ChangePIN(ctx, wrongPIN(fixture.PIN), next); err == nil || !driver.VagueChange && !errors.Is(err, token.ErrPINIncorrect) {
		t.Errorf("wrong old PIN: %v", err)
	}
	wantError(t, "empty new PIN", tok.ChangePIN(ctx, fixture.PIN, nil), token.ErrPINInvalid)
	if err := tok.ChangePIN(ctx, fixture.PIN, next); err != nil {
		t.Fatalf("change PIN: %v", err)
	}
	if !driver.OneKey {
		if err := signOnce(ctx, key); err != nil {
			t.Errorf("the login made with the old PIN is gone: %v", err)
		}
	}
	reopened := reopen(t, fixture)
	wantError(t, "old PIN", reopened.Login(ctx, fixture.PIN), token.ErrPINIncorrect)
	login(t, reopened, next)
	found, err := reopened.Key(ctx, []byte("a"))
	if err != nil {
		t.Fatalf("key after the change: %v", err)
	}
	if err := signOnce(ctx, found); err != nil {
		t.Errorf("sign after the change: %v", err)
	}
}

func wrongPIN(pin []byte) []byte {
	wrong := bytes.Clone(pin)
	wrong[0] ^= 1
	return wrong
}

// reopen closes the token and opens it anew.
func reopen(t testing.TB, fixture *Fixture) token.Token {
	t.Helper()
	if err := fixture.Token.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	tok := fixture.Reopen(t)
	t.Cleanup(func() { tok.Close() })
	return tok
}

func wantError(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}
