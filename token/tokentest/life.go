package tokentest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"testing"

	"chancery/token"
)

const (
	concurrentSigners = 64
	signaturesEach    = 4
)

func testConcurrency(t *testing.T, driver Driver) {
	fixture := openLoggedIn(t, driver)
	var keys []token.Key
	for _, a := range driver.some(t, fixture.Token, token.RSA2048, token.P256, token.Ed25519) {
		keys = append(keys, generate(t, fixture.Token, string(a), a))
	}
	SignConcurrently(t, keys, concurrentSigners, signaturesEach)
}

// SignConcurrently has many goroutines sign different inputs with keys in
// turn, and checks each signature.
func SignConcurrently(t testing.TB, keys []token.Key, goroutines, each int) {
	t.Helper()
	var group sync.WaitGroup
	failures := make(chan error, goroutines*each)
	for g := range goroutines {
		group.Go(func() {
			for n := range each {
				key := keys[(g+n)%len(keys)]
				way := cases(key.Algorithm())[0]
				message := sha256.Sum256(fmt.Appendf(nil, "%d of %d", n, g))
				if err := way.signAndVerify(t.Context(), key, message); err != nil {
					failures <- fmt.Errorf("signature %d of goroutine %d, %s: %w", n, g, key.Algorithm(), err)
				}
			}
		})
	}
	group.Wait()
	close(failures)
	for err := range failures {
		t.Error(err)
	}
}

func testEndedContext(t *testing.T, driver Driver) {
	fixture := openLoggedIn(t, driver)
	key := generate(t, fixture.Token, "a", quick(t, fixture.Token))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for what, err := range everyCall(ended, fixture.Token, key, fixture.PIN) {
		wantError(t, what, err, context.Canceled)
	}
	if err := signOnce(t.Context(), key); err != nil {
		t.Errorf("sign after ended contexts: %v", err)
	}
	if keys, err := fixture.Token.Keys(t.Context()); err != nil || len(keys) != 1 {
		t.Errorf("calls with an ended context changed the token: %v, %v", keys, err)
	}
}

func testClose(t *testing.T, driver Driver) {
	fixture := openLoggedIn(t, driver)
	key := generate(t, fixture.Token, "a", quick(t, fixture.Token))
	var group sync.WaitGroup
	for range 8 { // signatures under way while the token closes
		group.Go(func() {
			for range 50 {
				if err := signOnce(context.Background(), key); err != nil {
					wantError(t, "sign while closing", err, token.ErrClosed)
				}
			}
		})
	}
	if err := fixture.Token.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	group.Wait()
	if err := fixture.Token.Close(); err != nil {
		t.Errorf("close again: %v", err)
	}
	for what, err := range everyCall(t.Context(), fixture.Token, key, fixture.PIN) {
		wantError(t, what, err, token.ErrClosed)
	}
}

// everyCall makes every call of the interface and returns what each answered.
func everyCall(ctx context.Context, tok token.Token, key token.Key, pin []byte) map[string]error {
	spec := token.KeySpec{ID: []byte("new"), Label: "new", Algorithm: key.Algorithm()}
	private, keyErr := newPrivateKey(key.Algorithm())
	_, infoErr := tok.Info(ctx)
	_, listErr := tok.Keys(ctx)
	_, findErr := tok.Key(ctx, key.ID())
	_, makeErr := tok.Generate(ctx, spec)
	_, importErr := tok.Import(ctx, spec, private)
	return map[string]error{
		"sign": signOnce(ctx, key), "info": infoErr, "keys": listErr, "key": findErr,
		"generate": makeErr, "import": errors.Join(importErr, keyErr),
		"destroy":    tok.Destroy(ctx, key.ID()),
		"login":      tok.Login(ctx, pin),
		"logout":     tok.Logout(ctx),
		"change PIN": tok.ChangePIN(ctx, pin, []byte("another PIN")),
	}
}

func testReopen(t *testing.T, driver Driver) {
	fixture := openLoggedIn(t, driver)
	ctx := t.Context()
	before := info(t, fixture.Token)
	key := generate(t, fixture.Token, "a", quick(t, fixture.Token))
	for range 2 {
		fixture.Token = reopen(t, fixture)
		after := info(t, fixture.Token)
		if after.Serial != before.Serial || after.Label != before.Label || after.LoggedIn {
			t.Errorf("reopened as %+v, was %+v", after, before)
		}
		if k := listed(t, fixture.Token, key.ID()); !equal(k.Public, key.Public()) {
			t.Error("the key changed")
		}
		login(t, fixture.Token, fixture.PIN)
		found, err := fixture.Token.Key(ctx, key.ID())
		if err != nil {
			t.Fatalf("find: %v", err)
		}
		if err := signOnce(ctx, found); err != nil {
			t.Errorf("sign: %v", err)
		}
		wantError(t, "a key of the closed token", signOnce(ctx, key), token.ErrClosed)
	}
}
