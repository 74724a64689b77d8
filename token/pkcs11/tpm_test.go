package pkcs11_test

import (
	"crypto"
	"crypto/rsa"
	"os/exec"
	"strings"
	"testing"

	"chancery/internal/testtool"
	"chancery/swtpm"
	"chancery/token"
	"chancery/token/pkcs11"
	"chancery/token/tokentest"
)

const tpmPIN, tpmLabel = "correct PIN", "chancery test"

// newTPMToken makes a token in a TPM of its own, through tpm2-pkcs11.
func newTPMToken(t testing.TB) (*swtpm.TPM, pkcs11.Config) {
	t.Helper()
	module := swtpm.PKCS11Module(t)
	tpm := swtpm.Start(t)
	tpm.SetEnv()
	serial, err := pkcs11.Initialize(pkcs11.NewTokenConfig{Module: module, Label: tpmLabel, SOPIN: []byte("SO PIN 4711"), PIN: []byte(tpmPIN)})
	if err != nil {
		t.Fatal(err)
	}
	return tpm, pkcs11.Config{Module: module, Serial: serial, Label: tpmLabel, MaxSessions: pkcs11.MinSessions}
}

func run(t testing.TB, program string, arguments ...string) {
	t.Helper()
	if out, err := exec.Command(testtool.Need(t, program), arguments...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(arguments, " "), err, out)
	}
}

// tpmDriver says what tpm2-pkcs11 cannot do without a resource manager: a TPM holds three objects at a time, and
// this module keeps both halves of a key in it. It has no RSA-PSS for its callers, and makes all keys itself.
var tpmDriver = tokentest.Driver{Name: "pkcs11", Hardware: true, Lacks: isPSS, NoImport: true, OneKey: true, VagueChange: true, New: func(t testing.TB) *tokentest.Fixture {
	_, cfg := newTPMToken(t)
	return &tokentest.Fixture{
		Token: open(t, cfg),
		PIN:   []byte(tpmPIN),
		Reopen: func(t testing.TB) token.Token {
			run(t, "tpm2_flushcontext", "--transient-object") // of keys that the module has forgotten
			return open(t, cfg)
		},
	}
}}

func isPSS(_ token.Algorithm, opts crypto.SignerOpts) bool {
	_, is := opts.(*rsa.PSSOptions)
	return is
}

func TestTPMContract(t *testing.T) { tokentest.Run(t, tpmDriver) }

// TestTPMCountsWrongPINs reads the TPM's own counter of wrong authorisations: it has one for all of its keys.
func TestTPMCountsWrongPINs(t *testing.T) {
	tpm, cfg := newTPMToken(t)
	for _, c := range []struct {
		pin     string
		want    error
		counter int
	}{
		{"", token.ErrPINIncorrect, 0}, // never sent
		{tpmPIN, nil, 0},
		{"wrong PIN", token.ErrPINIncorrect, 1},
		{tpmPIN, nil, 1}, // time heals it, not the right PIN
		{"wrong PIN", token.ErrPINIncorrect, 2},
		{"wrong PIN", token.ErrPINIncorrect, 3},
		{tpmPIN, token.ErrPINLocked, 3},
	} {
		tok, err := pkcs11.Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		wantError(t, "login with "+c.pin, tok.Login(t.Context(), []byte(c.pin)), c.want)
		if err := tok.Close(); err != nil { // others get at the TPM only now
			t.Fatal(err)
		}
		if n := tpm.LockoutCounter(); n != c.counter {
			t.Errorf("after %q: the TPM counts %d, not %d", c.pin, n, c.counter)
		}
	}
	tpm.ClearLockout()
	if err := open(t, cfg).Login(t.Context(), []byte(tpmPIN)); err != nil {
		t.Errorf("after the lock was opened: %v", err)
	}
}

// TestTPMHandles signs many times and closes: a key that was found leaves nothing in the TPM's three places for objects.
// Of one that was made the module leaves the public half, which has to be flushed.
func TestTPMHandles(t *testing.T) {
	tpm, cfg := newTPMToken(t)
	makeKey := func(tok *pkcs11.Token) (token.Key, error) {
		return tok.Generate(t.Context(), token.KeySpec{ID: []byte{1}, Label: "a key", Algorithm: token.P256})
	}
	findKey := func(tok *pkcs11.Token) (token.Key, error) { return tok.Key(t.Context(), []byte{1}) }
	for _, round := range []struct {
		name string
		key  func(tok *pkcs11.Token) (token.Key, error)
		left int
	}{{"made", makeKey, 1}, {"found", findKey, 0}, {"found again", findKey, 0}} {
		signManyTimes(t, cfg, round.key)
		if objects, sessions := tpm.Handles(); objects != round.left || sessions != 0 {
			t.Errorf("%s: %d objects and %d sessions are left in the TPM", round.name, objects, sessions)
		}
		run(t, "tpm2_flushcontext", "--transient-object")
	}
}

// signManyTimes opens the token, signs with a key in several logins, and closes it.
func signManyTimes(t *testing.T, cfg pkcs11.Config, key func(tok *pkcs11.Token) (token.Key, error)) {
	t.Helper()
	tok := open(t, cfg)
	if err := tok.Login(t.Context(), []byte(tpmPIN)); err != nil {
		t.Fatal(err)
	}
	k, err := key(tok)
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		tokentest.SignConcurrently(t, []token.Key{k}, 8, 5)
		if err := tok.Logout(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := tok.Login(t.Context(), []byte(tpmPIN)); err != nil {
			t.Fatal(err)
		}
	}
	if err := tok.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestTPMTwoKeys signs with as many keys as fit in a TPM beside what the module needs there itself.
func TestTPMTwoKeys(t *testing.T) {
	_, cfg := newTPMToken(t)
	for id := range byte(2) {
		tok := open(t, cfg)
		if err := tok.Login(t.Context(), []byte(tpmPIN)); err != nil {
			t.Fatal(err)
		}
		generate(t, tok, []byte{id}, token.P256)
		if err := tok.Close(); err != nil {
			t.Fatal(err)
		}
		run(t, "tpm2_flushcontext", "--transient-object")
	}
	tok := open(t, cfg)
	if err := tok.Login(t.Context(), []byte(tpmPIN)); err != nil {
		t.Fatal(err)
	}
	var keys []token.Key
	for id := range byte(2) {
		key, err := tok.Key(t.Context(), []byte{id})
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, key)
	}
	tokentest.SignConcurrently(t, keys, 8, 4)
}
