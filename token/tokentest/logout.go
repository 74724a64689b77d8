package tokentest

import (
	"errors"
	"sync"
	"testing"

	"chancery/token"
)

func testLogout(t *testing.T, driver Driver) {
	fixture := open(t, driver)
	ctx, tok := t.Context(), fixture.Token
	if err := tok.Logout(ctx); err != nil {
		t.Fatalf("logout without login: %v", err)
	}
	login(t, tok, fixture.PIN)
	var keys []token.Key
	for _, a := range driver.some(t, tok, token.P256, token.Ed25519) {
		keys = append(keys, generate(t, tok, string(a), a))
	}
	for range 2 {
		if err := tok.Logout(ctx); err != nil {
			t.Fatalf("logout: %v", err)
		}
		if info(t, tok).LoggedIn {
			t.Error("still logged in")
		}
		for _, key := range keys {
			wantError(t, "sign after logout", signOnce(ctx, key), token.ErrLoginRequired)
			_, err := tok.Key(ctx, key.ID())
			wantError(t, "find after logout", err, token.ErrLoginRequired)
		}
		wantError(t, "wrong PIN", tok.Login(ctx, wrongPIN(fixture.PIN)), token.ErrPINIncorrect)
		login(t, tok, fixture.PIN)
		for _, key := range keys {
			if err := signOnce(ctx, key); err != nil {
				t.Errorf("sign after another login: %v", err)
			}
		}
	}
	testDestroyAfterLogout(t, fixture, keys[0])
}

// testDestroyAfterLogout destroys a key whose Key was handed out before a logout.
func testDestroyAfterLogout(t *testing.T, fixture *Fixture, key token.Key) {
	t.Helper()
	ctx, tok := t.Context(), fixture.Token
	if err := tok.Logout(ctx); err != nil {
		t.Fatalf("logout: %v", err)
	}
	login(t, tok, fixture.PIN)
	if err := tok.Destroy(ctx, key.ID()); err != nil {
		t.Fatalf("destroy: %v", err)
	}
	wantError(t, "sign with the destroyed key", signOnce(ctx, key), token.ErrNoKey)
}

// testLogoutWhileSigning logs out and in under signers: each gets a valid signature or is told to log in.
func testLogoutWhileSigning(t *testing.T, driver Driver) {
	fixture := openLoggedIn(t, driver)
	ctx, tok := t.Context(), fixture.Token
	key := generate(t, tok, "a", quick(t, tok))
	var signers sync.WaitGroup
	for range 8 {
		signers.Go(func() {
			for range 20 {
				if err := signOnce(ctx, key); err != nil && !errors.Is(err, token.ErrLoginRequired) && !errors.Is(err, token.ErrBusy) {
					t.Errorf("sign: %v", err)
				}
			}
		})
	}
	for range 5 {
		if err := tok.Logout(ctx); err != nil {
			t.Errorf("logout: %v", err)
		}
		login(t, tok, fixture.PIN)
	}
	signers.Wait()
	if err := signOnce(ctx, key); err != nil {
		t.Errorf("sign at the end: %v", err)
	}
}
