// Package tokentest is the contract of token.Token: what every driver must do,
// checked with the standard library and with openssl as independent verifiers.
package tokentest

import (
	"context"
	"crypto"
	"crypto/sha256"
	"testing"

	"chancery/token"
)

// Fixture is one token under test.
type Fixture struct {
	// Token is new, empty and open, without login. The test closes it.
	Token token.Token
	// PIN is its user PIN.
	PIN []byte
	// Reopen opens the same token anew. It is called after Token.Close.
	Reopen func(t testing.TB) token.Token
}

// Driver makes tokens for the contract.
type Driver struct {
	// Name is what Info().Driver must say.
	Name string
	// Hardware is what Info().Hardware must say.
	Hardware bool
	// Lacks tells which signatures the token must refuse with token.ErrUnsupported,
	// though others make them. Nil where it lacks none.
	Lacks func(a token.Algorithm, opts crypto.SignerOpts) bool
	// NoImport says that the token takes no keys from outside: Import must be token.ErrUnsupported.
	NoImport bool
	// OneKey says that a process can have one key of the token in use at a time, that it keeps a destroyed one until
	// Close, and that it changes the PIN only without any. The contract makes a token for each key then.
	OneKey bool
	// VagueChange says that ChangePIN may answer a wrong old PIN with another error than token.ErrPINIncorrect.
	VagueChange bool
	// New makes a token that has no keys yet, and removes it when the test ends.
	New func(t testing.TB) *Fixture
}

// Run checks the whole contract.
func Run(t *testing.T, driver Driver) {
	for _, part := range []struct {
		name string
		run  func(t *testing.T, driver Driver)
	}{
		{"info", testInfo},
		{"before login", testBeforeLogin},
		{"login", testLogin},
		{"generate", testGenerate},
		{"refusals", testRefusals},
		{"existing identifier", testKeyExists},
		{"import", testImport},
		{"destroy", testDestroy},
		{"signing what cannot be signed", testUnsignable},
		{"change PIN", testChangePIN},
		{"logout", testLogout},
		{"logout while signing", testLogoutWhileSigning},
		{"attestation", testAttestation},
		{"concurrency", testConcurrency},
		{"ended context", testEndedContext},
		{"close", testClose},
		{"reopen", testReopen},
	} {
		t.Run(part.name, func(t *testing.T) { part.run(t, driver) })
	}
}

// lacks tells whether the driver need not sign in this way.
func (d Driver) lacks(a token.Algorithm, way signing) bool {
	return d.Lacks != nil && d.Lacks(a, way.opts)
}

// fresh returns the fixture, or closes it and makes one without keys where the token bears no more than one.
func (d Driver) fresh(t testing.TB, fixture *Fixture) *Fixture {
	t.Helper()
	if !d.OneKey {
		return fixture
	}
	if err := fixture.Token.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	return openLoggedIn(t, d)
}

// some returns the algorithms among those that the token offers: one of them where it bears no more than one key.
func (d Driver) some(t testing.TB, tok token.Token, among ...token.Algorithm) []token.Algorithm {
	t.Helper()
	var offered []token.Algorithm
	for _, a := range among {
		if contains(info(t, tok).Algorithms, a) {
			offered = append(offered, a)
		}
	}
	if d.OneKey && len(offered) > 1 {
		offered = offered[:1]
	}
	return offered
}

// open makes a token, closed at the end of the test.
func open(t testing.TB, driver Driver) *Fixture {
	t.Helper()
	fixture := driver.New(t)
	t.Cleanup(func() {
		if err := fixture.Token.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return fixture
}

// openLoggedIn makes a token and logs in.
func openLoggedIn(t testing.TB, driver Driver) *Fixture {
	t.Helper()
	fixture := open(t, driver)
	login(t, fixture.Token, fixture.PIN)
	return fixture
}

func login(t testing.TB, tok token.Token, pin []byte) {
	t.Helper()
	if err := tok.Login(t.Context(), pin); err != nil {
		t.Fatalf("login: %v", err)
	}
}

func info(t testing.TB, tok token.Token) token.Info {
	t.Helper()
	i, err := tok.Info(t.Context())
	if err != nil {
		t.Fatalf("info: %v", err)
	}
	return i
}

func generate(t testing.TB, tok token.Token, id string, a token.Algorithm) token.Key {
	t.Helper()
	key, err := tok.Generate(t.Context(), token.KeySpec{ID: []byte(id), Label: "label of " + id, Algorithm: a})
	if err != nil {
		t.Fatalf("generate %s: %v", a, err)
	}
	return key
}

// quick returns an algorithm whose keys are made fast, for tests that are about something else.
func quick(t testing.TB, tok token.Token) token.Algorithm {
	t.Helper()
	offered := info(t, tok).Algorithms
	for _, a := range []token.Algorithm{token.P256, token.Ed25519, token.P384, token.P521} {
		if contains(offered, a) {
			return a
		}
	}
	if len(offered) == 0 {
		t.Fatal("the token offers no algorithm")
	}
	return offered[0]
}

// signOnce signs something that fits the key and checks the result.
func signOnce(ctx context.Context, key token.Key) error {
	c := cases(key.Algorithm())[0]
	return c.signAndVerify(ctx, key, sha256.Sum256([]byte("one signature")))
}

func contains(list []token.Algorithm, a token.Algorithm) bool {
	for _, b := range list {
		if a == b {
			return true
		}
	}
	return false
}
