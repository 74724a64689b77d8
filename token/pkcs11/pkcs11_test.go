package pkcs11_test

import (
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"chancery/softhsm"
	"chancery/token"
	"chancery/token/pkcs11"
	"chancery/token/tokentest"
)

func wantError(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func sign(ctx context.Context, key token.Key) error {
	var opts crypto.SignerOpts = crypto.SHA256
	if key.Algorithm() == token.Ed25519 {
		opts = crypto.Hash(0)
	}
	digest := sha256.Sum256([]byte("x"))
	_, err := key.Sign(ctx, digest[:], opts)
	return err
}

func TestOpenRefuses(t *testing.T) {
	hsm := softhsm.ForTest(t)
	notModule := filepath.Join(t.TempDir(), "module.so")
	if err := os.WriteFile(notModule, []byte("not a library"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		cfg    pkcs11.Config
		absent bool
		says   string
	}{
		"no module":       {pkcs11.Config{Label: "x"}, false, "no module"},
		"no selection":    {pkcs11.Config{Module: hsm.Store.Module}, false, "neither serial nor label"},
		"few sessions":    {pkcs11.Config{Module: hsm.Store.Module, Label: "x", MaxSessions: 2}, false, "too low"},
		"missing module":  {pkcs11.Config{Module: "/nonexistent/module.so", Label: "x"}, true, "not installed"},
		"not a module":    {pkcs11.Config{Module: notModule, Label: "x"}, true, "cannot be loaded"},
		"unknown label":   {pkcs11.Config{Module: hsm.Store.Module, Label: "x"}, true, hsm.Serial},
		"unknown serial":  {pkcs11.Config{Module: hsm.Store.Module, Serial: "x"}, true, hsm.Label},
		"label of serial": {pkcs11.Config{Module: hsm.Store.Module, Serial: hsm.Serial, Label: "x"}, true, hsm.Label},
	} {
		_, err := pkcs11.Open(c.cfg)
		if err == nil || errors.Is(err, token.ErrTokenAbsent) != c.absent || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want absent %t and %q", name, err, c.absent, c.says)
		}
	}
	open(t, config(hsm)) // failures have left the module usable
}

// TestSeveralTokens opens two tokens of one module at once.
func TestSeveralTokens(t *testing.T) {
	first := softhsm.ForTest(t)
	second, err := first.Store.AddToken("second", []byte("second PIN"))
	if err != nil {
		t.Fatal(err)
	}
	a, b := loggedIn(t, first), loggedIn(t, second)
	third, err := first.Store.AddToken("third", []byte("third PIN")) // while the module is in use
	if err != nil {
		t.Fatal(err)
	}
	infos, err := pkcs11.List(first.Store.Module)
	if err != nil || len(infos) != 3 {
		t.Fatalf("list: %v, %v", infos, err)
	}
	keyA, keyB := generate(t, a, []byte{1}, token.P256), generate(t, b, []byte{1}, token.P256)
	tokentest.SignConcurrently(t, []token.Key{keyA, keyB, generate(t, loggedIn(t, third), []byte{1}, token.P256)}, 8, 4)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := sign(t.Context(), keyB); err != nil {
		t.Errorf("closing one token ended the other: %v", err)
	}
}

// TestSharedLogin has two Tokens open on one token of one process.
func TestSharedLogin(t *testing.T) {
	hsm := softhsm.ForTest(t)
	one, other := loggedIn(t, hsm), open(t, config(hsm))
	ctx := t.Context()
	if i, err := other.Info(ctx); err != nil || !i.LoggedIn {
		t.Errorf("the other Token: logged in %t, %v", i.LoggedIn, err)
	}
	var keys []token.Key
	for i, a := range []token.Algorithm{token.P256, token.Ed25519} {
		generate(t, one, []byte{byte(i)}, a)
		key, err := other.Key(ctx, []byte{byte(i)})
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, key)
	}
	if err := one.Logout(ctx); err != nil {
		t.Fatal(err)
	}
	for _, key := range keys {
		wantError(t, "sign after the other's logout", sign(ctx, key), token.ErrLoginRequired)
	}
	if err := one.Login(ctx, hsm.PIN); err != nil {
		t.Fatal(err)
	}
	tokentest.SignConcurrently(t, keys, 8, 2)
}

func TestAmbiguousLabel(t *testing.T) {
	first := softhsm.ForTest(t)
	second, err := first.Store.AddToken(first.Label, first.PIN)
	if err != nil {
		t.Fatal(err)
	}
	_, err = pkcs11.Open(pkcs11.Config{Module: first.Store.Module, Label: first.Label})
	if err == nil || !strings.Contains(err.Error(), first.Serial) || !strings.Contains(err.Error(), second.Serial) {
		t.Errorf("the error must list both candidates: %v", err)
	}
	open(t, config(second))
}

// TestSessionLimit has many goroutines share the fewest sessions that work.
func TestSessionLimit(t *testing.T) {
	hsm := softhsm.ForTest(t)
	cfg := config(hsm)
	cfg.MaxSessions = pkcs11.MinSessions
	tok := open(t, cfg)
	if err := tok.Login(t.Context(), hsm.PIN); err != nil {
		t.Fatal(err)
	}
	tokentest.SignConcurrently(t, []token.Key{generate(t, tok, []byte{1}, token.P256),
		generate(t, tok, []byte{2}, token.Ed25519), generate(t, tok, []byte{3}, token.RSA2048)}, 32, 4)
	if i, err := tok.Info(t.Context()); err != nil || i.MaxSessions != cfg.MaxSessions {
		t.Errorf("info says %d sessions, %v", i.MaxSessions, err)
	}
}

// TestDroppedSessions has the token drop sessions behind the driver's back.
func TestDroppedSessions(t *testing.T) {
	hsm := softhsm.ForTest(t)
	tok := loggedIn(t, hsm)
	ctx := t.Context()
	keys := []token.Key{generate(t, tok, []byte{1}, token.P256), generate(t, tok, []byte{2}, token.Ed25519)}

	if err := tok.DropCryptoSessions(ctx); err != nil {
		t.Fatal(err)
	}
	tokentest.SignConcurrently(t, keys, 16, 4)
	if err := tok.DropRawSessions(ctx); err != nil {
		t.Fatal(err)
	}
	tokentest.SignConcurrently(t, keys, 16, 4)
	if err := tok.JamCryptoSessions(ctx); err != nil {
		t.Fatal(err)
	}
	tokentest.SignConcurrently(t, keys, 16, 4)
	if i, err := tok.Info(ctx); err != nil || !i.LoggedIn {
		t.Errorf("the login did not outlive single sessions: %v, %v", i.LoggedIn, err)
	}

	if err := tok.DropAllSessions(); err != nil {
		t.Fatal(err)
	}
	for _, key := range keys {
		wantError(t, "sign without login", sign(ctx, key), token.ErrLoginRequired)
	}
	if i, err := tok.Info(ctx); err != nil || i.LoggedIn {
		t.Errorf("still logged in: %v, %v", i.LoggedIn, err)
	}
	if err := tok.Login(ctx, hsm.PIN); err != nil {
		t.Fatal(err)
	}
	tokentest.SignConcurrently(t, keys, 16, 4) // the Keys at hand work again
}

// TestBusy has all sessions taken.
func TestBusy(t *testing.T) {
	hsm := softhsm.ForTest(t)
	cfg := config(hsm)
	cfg.SessionWait = 50 * time.Millisecond
	tok := open(t, cfg)
	if err := tok.Login(t.Context(), hsm.PIN); err != nil {
		t.Fatal(err)
	}
	keys := []token.Key{generate(t, tok, []byte{1}, token.P256), generate(t, tok, []byte{2}, token.Ed25519)}
	free, err := tok.Occupy(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range keys {
		wantError(t, "sign", sign(t.Context(), key), token.ErrBusy)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		err := sign(ctx, key)
		cancel()
		wantError(t, "sign under a deadline", err, token.ErrBusy)
		wantError(t, "sign under a deadline", err, context.DeadlineExceeded)
	}
	_, err = tok.Info(t.Context())
	wantError(t, "info", err, token.ErrBusy)
	wantError(t, "close", tok.Close(), token.ErrBusy)
	free()
	if err := tok.Close(); err != nil {
		t.Errorf("close when all sessions are back: %v", err)
	}
	wantError(t, "sign after close", sign(t.Context(), keys[0]), token.ErrClosed)
}

func TestExplained(t *testing.T) {
	for code, want := range map[p11.Error]error{
		p11.CKR_PIN_INCORRECT:          token.ErrPINIncorrect,
		p11.CKR_PIN_LOCKED:             token.ErrPINLocked,
		p11.CKR_PIN_LEN_RANGE:          token.ErrPINInvalid,
		p11.CKR_PIN_INVALID:            token.ErrPINInvalid,
		p11.CKR_TOKEN_NOT_PRESENT:      token.ErrTokenAbsent,
		p11.CKR_DEVICE_REMOVED:         token.ErrTokenAbsent,
		p11.CKR_DEVICE_ERROR:           token.ErrTokenAbsent,
		p11.CKR_SLOT_ID_INVALID:        token.ErrTokenAbsent,
		p11.CKR_SESSION_HANDLE_INVALID: token.ErrTokenAbsent,
		p11.CKR_SESSION_CLOSED:         token.ErrTokenAbsent,
		p11.CKR_SESSION_COUNT:          token.ErrBusy,
		p11.CKR_USER_NOT_LOGGED_IN:     token.ErrLoginRequired,
		p11.CKR_MECHANISM_INVALID:      token.ErrUnsupported,
		p11.CKR_KEY_HANDLE_INVALID:     token.ErrNoKey,
	} {
		err := pkcs11.Explained(fmt.Errorf("wrapped: %w", code))
		if !errors.Is(err, want) || !errors.Is(err, code) {
			t.Errorf("%v: %v, want %v and the code itself", code, err, want)
		}
	}
	plain := errors.New("plain")
	if err := pkcs11.Explained(plain); err != plain {
		t.Errorf("an error without a code became %v", err)
	}
}

// TestRefusal checks when a PIN is not even sent.
func TestRefusal(t *testing.T) {
	const ready = p11.CKF_USER_PIN_INITIALIZED
	for name, c := range map[string]struct {
		flags uint
		pin   string
		want  error
	}{
		"ready":           {ready, "1234", nil},
		"count low":       {ready | p11.CKF_USER_PIN_COUNT_LOW, "1234", nil},
		"final try":       {ready | p11.CKF_USER_PIN_COUNT_LOW | p11.CKF_USER_PIN_FINAL_TRY, "1234", token.ErrPINLocked},
		"locked":          {ready | p11.CKF_USER_PIN_LOCKED, "1234", token.ErrPINLocked},
		"not initialised": {0, "1234", token.ErrPINLocked},
		"empty":           {ready, "", token.ErrPINIncorrect},
		"short":           {ready, "123", token.ErrPINIncorrect},
		"long":            {ready, "123456789", token.ErrPINIncorrect},
	} {
		err := pkcs11.Refusal(p11.TokenInfo{Flags: c.flags, MinPinLen: 4, MaxPinLen: 8}, []byte(c.pin))
		wantError(t, name, err, c.want)
	}
}

func TestSessionLimitOfToken(t *testing.T) {
	for _, c := range []struct {
		wanted          int
		stated, writing uint
		want            int
	}{
		{16, p11.CK_EFFECTIVELY_INFINITE, p11.CK_UNAVAILABLE_INFORMATION, 16},
		{16, 16, 16, 16},
		{16, 100, 8, 8},
		{4, 16, p11.CK_EFFECTIVELY_INFINITE, 4},
		{16, 4, 4, 4},
		{16, 3, 3, 0},
	} {
		got, err := pkcs11.SessionLimit(c.wanted, p11.TokenInfo{MaxSessionCount: c.stated, MaxRwSessionCount: c.writing})
		if got != c.want || (err != nil) != (c.want == 0) {
			t.Errorf("%+v: %d, %v", c, got, err)
		}
	}
}

func TestAlgorithmsOfMechanisms(t *testing.T) {
	generate := func(low, high uint) p11.MechanismInfo {
		return p11.MechanismInfo{MinKeySize: low, MaxKeySize: high, Flags: p11.CKF_GENERATE_KEY_PAIR}
	}
	sign := func(low, high uint) p11.MechanismInfo {
		return p11.MechanismInfo{MinKeySize: low, MaxKeySize: high, Flags: p11.CKF_SIGN}
	}
	for name, c := range map[string]struct {
		offered map[uint]p11.MechanismInfo
		want    []token.Algorithm
	}{
		"nothing": {nil, nil},
		"small RSA": {map[uint]p11.MechanismInfo{
			p11.CKM_RSA_PKCS_KEY_PAIR_GEN: generate(1024, 2048), p11.CKM_RSA_PKCS: sign(1024, 4096),
		}, []token.Algorithm{token.RSA2048}},
		"generates and cannot sign": {map[uint]p11.MechanismInfo{
			p11.CKM_EC_KEY_PAIR_GEN: generate(256, 521), p11.CKM_ECDSA: {MinKeySize: 256, MaxKeySize: 521, Flags: p11.CKF_VERIFY},
		}, nil},
		"two curves": {map[uint]p11.MechanismInfo{
			p11.CKM_EC_KEY_PAIR_GEN: generate(256, 384), p11.CKM_ECDSA: sign(256, 521),
		}, []token.Algorithm{token.P256, token.P384}},
		"sizes not stated": {map[uint]p11.MechanismInfo{
			0x1055: generate(0, 0), 0x1057: sign(0, 0),
		}, []token.Algorithm{token.Ed25519}},
		"Ed25519 as 255 bits": {map[uint]p11.MechanismInfo{
			0x1055: generate(255, 255), 0x1057: sign(255, 255),
		}, []token.Algorithm{token.Ed25519}},
	} {
		if got := pkcs11.Algorithms(c.offered); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}
