package pkcs11_test

import (
	"context"
	"crypto"
	"errors"
	"sync"
	"testing"
	"time"

	"chancery/softhsm"
	"chancery/softhsm/faulty"
	"chancery/token"
	"chancery/token/pkcs11"
	"chancery/token/tokentest"
)

// bench is a token behind a faulty module.
type bench struct {
	faulty.Module
	hsm *softhsm.Token
}

func newBench(t *testing.T) *bench {
	t.Helper()
	hsm := softhsm.ForTest(t)
	return &bench{Module: faulty.Build(t), hsm: hsm}
}

func (b *bench) config() pkcs11.Config {
	return pkcs11.Config{Module: b.Path, Serial: b.hsm.Serial}
}

// open opens the token, logs in and makes keys of two kinds, which sign on sessions of two kinds.
func (b *bench) open(t *testing.T) (*pkcs11.Token, []token.Key) {
	t.Helper()
	tok := open(t, b.config())
	if err := tok.Login(t.Context(), b.hsm.PIN); err != nil {
		t.Fatal(err)
	}
	var keys []token.Key
	for i, a := range []token.Algorithm{token.P256, token.Ed25519} {
		id := []byte{byte(i)}
		key, err := tok.Key(t.Context(), id)
		if errors.Is(err, token.ErrNoKey) {
			key = generate(t, tok, id, a)
		} else if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, key)
	}
	return tok, keys
}

// TestPassingFaults meets each fault as often as the driver tries: the signature is made after all.
func TestPassingFaults(t *testing.T) {
	b := newBench(t)
	_, keys := b.open(t)
	for _, fault := range []string{
		"return CKR_GENERAL_ERROR C_Sign 2",
		"return CKR_HOST_MEMORY C_Sign 2",
		"return CKR_FUNCTION_FAILED C_Sign 2",
		"return CKR_DEVICE_ERROR C_Sign 2",
		"return CKR_DEVICE_ERROR C_SignInit 2",
		"return CKR_DEVICE_MEMORY C_Sign 2",
		"return CKR_SESSION_HANDLE_INVALID C_Sign 2",
		"return CKR_SESSION_HANDLE_INVALID C_SignInit 2",
		"return CKR_SESSION_CLOSED C_Sign 2",
		"return CKR_OBJECT_HANDLE_INVALID C_SignInit 2",
		"return CKR_KEY_HANDLE_INVALID C_SignInit 2",
		"return CKR_OPERATION_ACTIVE C_SignInit 2",
	} {
		for _, key := range keys {
			b.Set(t, fault)
			if err := signVerified(t.Context(), key); err != nil {
				t.Errorf("%s, %s: %v", fault, key.Algorithm(), err)
			}
		}
		b.Clear(t)
		tokentest.SignConcurrently(t, keys, 16, 2)
	}
}

// TestLastingFaults has faults that stay: each request ends in an error that says what helps, and when the fault is
// gone the same Keys sign again.
func TestLastingFaults(t *testing.T) {
	b := newBench(t)
	tok, keys := b.open(t)
	for _, fault := range []struct {
		command string
		want    error
		broken  bool
		tries   int // of C_Sign for one signature
	}{
		{"return CKR_GENERAL_ERROR C_Sign", token.ErrTokenAbsent, true, 3},
		{"return CKR_HOST_MEMORY C_Sign", token.ErrBroken, true, 3},
		{"return CKR_FUNCTION_FAILED C_Sign", token.ErrBroken, true, 3},
		{"return CKR_DEVICE_ERROR C_Sign", token.ErrBroken, true, 3},
		{"return CKR_DEVICE_MEMORY C_Sign", token.ErrBusy, false, 3},
		{"return CKR_SESSION_CLOSED C_Sign", token.ErrBroken, true, 3},
		{"return CKR_OBJECT_HANDLE_INVALID C_Sign", token.ErrBroken, true, 3},
		{"return CKR_CRYPTOKI_NOT_INITIALIZED C_Sign", token.ErrBroken, true, 1},
		{"return CKR_TOKEN_NOT_PRESENT C_Sign,C_OpenSession,C_GetTokenInfo", token.ErrTokenAbsent, false, 1},
		{"return CKR_DEVICE_REMOVED C_Sign,C_OpenSession,C_GetTokenInfo,C_GetSlotList", token.ErrTokenAbsent, false, 1},
		{"return CKR_USER_NOT_LOGGED_IN C_Sign", token.ErrLoginRequired, false, 1},
		{"return CKR_PIN_LOCKED C_Sign", token.ErrPINLocked, false, 1},
	} {
		b.Set(t, fault.command)
		before := b.Calls(t, "C_Sign")
		err := sign(t.Context(), keys[0])
		if !errors.Is(err, fault.want) || errors.Is(err, token.ErrBroken) != fault.broken {
			t.Errorf("%s: %v, want %v", fault.command, err, fault.want)
		}
		if tries := b.Calls(t, "C_Sign") - before; tries != fault.tries {
			t.Errorf("%s: tried %d times, not %d", fault.command, tries, fault.tries)
		}
		failConcurrently(t, keys, fault.want)
		b.Clear(t)
		if err := tok.Login(t.Context(), b.hsm.PIN); err != nil {
			t.Errorf("%s: login afterwards: %v", fault.command, err)
		}
		tokentest.SignConcurrently(t, keys, 16, 2)
	}
}

// failConcurrently has each of many signatures fail, and end.
func failConcurrently(t *testing.T, keys []token.Key, want error) {
	t.Helper()
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			err := sign(t.Context(), keys[i%len(keys)])
			if !errors.Is(err, want) && !errors.Is(err, token.ErrBusy) {
				t.Errorf("sign: %v, want %v", err, want)
			}
		})
	}
	group.Wait()
}

// TestReadingThroughFaults reads what a session's death must not hide.
func TestReadingThroughFaults(t *testing.T) {
	b := newBench(t)
	tok, keys := b.open(t)
	ctx := t.Context()
	for _, code := range []string{"CKR_DEVICE_ERROR", "CKR_SESSION_HANDLE_INVALID", "CKR_SESSION_CLOSED", "CKR_HOST_MEMORY", "CKR_FUNCTION_FAILED"} {
		set := func() { b.Set(t, "return "+code+" C_GetSessionInfo,C_FindObjectsInit,C_GetAttributeValue 1") }
		set()
		if _, err := tok.Info(ctx); err != nil {
			t.Errorf("%s: info: %v", code, err)
		}
		set()
		if list, err := tok.Keys(ctx); err != nil || len(list) != len(keys) {
			t.Errorf("%s: %d keys, %v", code, len(list), err)
		}
		b.Set(t, "return "+code+" C_GetSessionInfo,C_FindObjectsInit 1")
		if _, err := tok.Key(ctx, keys[0].ID()); err != nil {
			t.Errorf("%s: key: %v", code, err)
		}
	}
	b.Set(t, "return CKR_DEVICE_ERROR C_GetTokenInfo,C_GetSessionInfo,C_FindObjectsInit")
	_, err := tok.Info(ctx)
	wantError(t, "info", err, token.ErrBroken)
	_, err = tok.Keys(ctx)
	wantError(t, "keys", err, token.ErrBroken)
	b.Set(t, "return CKR_TOKEN_NOT_PRESENT C_GetTokenInfo,C_GetSessionInfo,C_FindObjectsInit")
	_, err = tok.Info(ctx)
	if !errors.Is(err, token.ErrTokenAbsent) || errors.Is(err, token.ErrBroken) {
		t.Errorf("info: %v, want absent and not broken", err)
	}
}

// TestDeniedLogin has a token deny a login that its module claims: Info says so, and the next Login is a real one.
func TestDeniedLogin(t *testing.T) {
	b := newBench(t)
	tok, keys := b.open(t)
	ctx := t.Context()
	for _, key := range keys {
		b.Set(t, "return CKR_USER_NOT_LOGGED_IN C_Sign 1")
		logins := b.Calls(t, "C_Login")
		wantError(t, "sign", sign(ctx, key), token.ErrLoginRequired)
		if i, err := tok.Info(ctx); err != nil || i.LoggedIn {
			t.Errorf("info says logged in %t, %v", i.LoggedIn, err)
		}
		for range 2 {
			if err := tok.Login(ctx, b.hsm.PIN); err != nil {
				t.Fatal(err)
			}
		}
		if n := b.Calls(t, "C_Login") - logins; n != 1 {
			t.Errorf("%d logins, not 1", n)
		}
		tokentest.SignConcurrently(t, keys, 8, 2)
	}
}

// TestPINIsSentOnce has every way in which C_Login may fail: another try could be the last one.
func TestPINIsSentOnce(t *testing.T) {
	b := newBench(t)
	tok := open(t, b.config())
	for code, want := range map[string]error{
		"CKR_PIN_INCORRECT": token.ErrPINIncorrect, "CKR_PIN_LOCKED": token.ErrPINLocked,
		"CKR_DEVICE_ERROR": token.ErrTokenAbsent, "CKR_GENERAL_ERROR": token.ErrTokenAbsent,
		"CKR_SESSION_CLOSED": token.ErrTokenAbsent, "CKR_HOST_MEMORY": token.ErrBusy,
		"CKR_FUNCTION_FAILED": token.ErrTokenAbsent, "CKR_TOKEN_NOT_PRESENT": token.ErrTokenAbsent,
	} {
		b.Set(t, "return "+code+" C_Login")
		before := b.Calls(t, "C_Login")
		wantError(t, code, tok.Login(t.Context(), b.hsm.PIN), want)
		if n := b.Calls(t, "C_Login") - before; n != 1 {
			t.Errorf("%s: the PIN was sent %d times", code, n)
		}
	}
	b.Clear(t)
	if err := tok.Login(t.Context(), b.hsm.PIN); err != nil {
		t.Error(err)
	}
}

// TestSessionCount has a token give fewer sessions than asked for.
func TestSessionCount(t *testing.T) {
	b := newBench(t)
	for _, c := range []struct {
		limit string
		want  int
	}{{"sessions 16", 16}, {"sessions 16 stated", 16}, {"sessions 7", 7}, {"sessions 7 stated", 7}, {"sessions 4", 4}, {"sessions 4 stated", 4}} {
		b.Set(t, c.limit)
		tok, keys := b.open(t)
		if i, err := tok.Info(t.Context()); err != nil || i.MaxSessions != c.want {
			t.Errorf("%s: %d sessions, %v", c.limit, i.MaxSessions, err)
		}
		tokentest.SignConcurrently(t, keys, 16, 2)
		b.Set(t, c.limit+"; return CKR_DEVICE_ERROR C_Sign 2")
		tokentest.SignConcurrently(t, keys, 1, 4) // new sessions find room
		if err := tok.Close(); err != nil {
			t.Errorf("%s: close: %v", c.limit, err)
		}
	}
	for limit, want := range map[string]error{"sessions 3": token.ErrBusy, "sessions 3 stated": token.ErrUnsupported} {
		b.Set(t, limit)
		_, err := pkcs11.Open(b.config())
		wantError(t, limit, err, want)
	}
	b.Clear(t)
	b.open(t)
}

// TestSessionsTakenByOthers replaces dead sessions when the token has fewer than before, and when it has more again.
func TestSessionsTakenByOthers(t *testing.T) {
	b := newBench(t)
	tok, keys := b.open(t)
	for _, limit := range []string{"sessions 10", "sessions 7", "sessions 100", "sessions 7"} {
		b.Set(t, limit+"; return CKR_DEVICE_ERROR C_Sign 2")
		tokentest.SignConcurrently(t, keys[:1], 1, 2)
		tokentest.SignConcurrently(t, keys, 16, 4)
		if err := tok.Logout(t.Context()); err != nil {
			t.Errorf("%s: logout: %v", limit, err)
		}
		if err := tok.Login(t.Context(), b.hsm.PIN); err != nil {
			t.Errorf("%s: login: %v", limit, err)
		}
	}
	b.Set(t, "sessions 1; return CKR_DEVICE_ERROR C_Sign 1") // none is left
	wantError(t, "sign without sessions", sign(t.Context(), keys[0]), token.ErrBusy)
	b.Clear(t)
	tokentest.SignConcurrently(t, keys, 16, 4)
}

// TestDuplicateHandles opens all sessions of two Tokens while the module hands out one handle twice when asked
// concurrently.
func TestDuplicateHandles(t *testing.T) {
	b := newBench(t)
	tok, keys := b.open(t)
	b.Set(t, "duplicate")
	var more []token.Key
	var group sync.WaitGroup
	var mu sync.Mutex
	for range 2 {
		group.Go(func() {
			second, err := pkcs11.Open(b.config())
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() { second.Close() })
			key, err := second.Key(t.Context(), keys[0].ID())
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			more = append(more, key)
		})
	}
	group.Wait()
	tokentest.SignConcurrently(t, append(more, keys...), 16, 4)
	if err := tok.DropRawSessions(t.Context()); err != nil {
		t.Fatal(err)
	}
	tokentest.SignConcurrently(t, append(more, keys...), 16, 4)
}

// TestCorruptSignature checks that a key whose signatures are wrong is not opened, and that Verify finds a wrong one later.
func TestCorruptSignature(t *testing.T) {
	b := newBench(t)
	tok, keys := b.open(t)
	for _, key := range keys {
		b.Set(t, "corrupt")
		_, err := tok.Key(t.Context(), key.ID())
		wantError(t, "open", err, token.ErrMismatch)
		wantError(t, "sign", signVerified(t.Context(), key), token.ErrBadSignature)
		b.Clear(t)
		if err := signVerified(t.Context(), key); err != nil {
			t.Error(err)
		}
	}
}

// TestHanging has the module hang: whoever waits for a session is answered, and nothing is taken from under the module.
func TestHanging(t *testing.T) {
	b := newBench(t)
	cfg := b.config()
	cfg.MaxSessions, cfg.SessionWait = pkcs11.MinSessions, 50*time.Millisecond
	tok := open(t, cfg)
	if err := tok.Login(t.Context(), b.hsm.PIN); err != nil {
		t.Fatal(err)
	}
	key := generate(t, tok, []byte{1}, token.P256)
	b.Set(t, "hang C_Sign")
	before := b.Calls(t, "C_Sign")
	hung := make(chan error)
	go func() { hung <- signVerified(t.Context(), key) }()
	for b.Calls(t, "C_Sign") == before {
		time.Sleep(time.Millisecond)
	}
	wantError(t, "sign", sign(t.Context(), key), token.ErrBusy)
	wantError(t, "logout", tok.Logout(t.Context()), token.ErrBusy)
	if i, err := tok.Info(t.Context()); err != nil || !i.LoggedIn {
		t.Errorf("info: logged in %t, %v", i.LoggedIn, err)
	}
	b.Clear(t)
	if err := <-hung; err != nil {
		t.Errorf("the signature that hung: %v", err)
	}
	if err := tok.Logout(t.Context()); err != nil {
		t.Errorf("logout: %v", err)
	}
}

// TestAHangingModuleStopsNoOther has one module hang where it is opened, and meanwhile a token behind another one replace its sessions,
// and be opened and closed.
func TestAHangingModuleStopsNoOther(t *testing.T) {
	hsm := softhsm.ForTest(t)
	hanging, good := &bench{faulty.BuildApart(t), hsm}, &bench{faulty.BuildApart(t), hsm}
	_, keys := good.open(t)
	t.Cleanup(func() { hanging.Clear(t) })
	for _, function := range []string{"C_GetSlotList", "C_GetTokenInfo", "C_OpenSession"} {
		hanging.Set(t, "hang "+function)
		before := hanging.Calls(t, function)
		opened := make(chan error, 1)
		go func() { opened <- openAndClose(hanging.config()) }()
		for hanging.Calls(t, function) == before {
			time.Sleep(time.Millisecond)
		}
		inTime(t, function+": open and close", func() error { return openAndClose(good.config()) })
		for _, key := range keys {
			good.Set(t, "return CKR_DEVICE_ERROR C_Sign 1")
			inTime(t, function+": sign on new sessions", func() error { return signVerified(t.Context(), key) })
		}
		hanging.Clear(t)
		if err := <-opened; err != nil {
			t.Errorf("%s: the one that hung: %v", function, err)
		}
	}
}

func openAndClose(cfg pkcs11.Config) error {
	tok, err := pkcs11.Open(cfg)
	if err != nil {
		return err
	}
	return tok.Close()
}

// inTime has something done that takes much less than the time it is given.
func inTime(t *testing.T, what string, do func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- do() }()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("%s: it hangs, too", what)
	}
}

// TestOpenAndCloseConcurrently has a module initialised and finalised again and again, while others use it or are about to.
func TestOpenAndCloseConcurrently(t *testing.T) {
	hsm := softhsm.ForTest(t)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 8 {
				if err := openAndClose(config(hsm)); err != nil {
					t.Error(err)
				}
				if _, err := pkcs11.List(hsm.Store.Module); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
}

// TestNotMadeTwice fails in the middle of what must not be repeated.
func TestNotMadeTwice(t *testing.T) {
	b := newBench(t)
	tok, _ := b.open(t)
	for _, code := range []string{"CKR_DEVICE_ERROR", "CKR_GENERAL_ERROR", "CKR_FUNCTION_FAILED", "CKR_SESSION_CLOSED"} {
		b.Set(t, "return "+code+" C_GenerateKeyPair")
		before := b.Calls(t, "C_GenerateKeyPair")
		for _, a := range []token.Algorithm{token.P256, token.Ed25519} {
			_, err := tok.Generate(t.Context(), token.KeySpec{ID: []byte("new"), Label: "new", Algorithm: a})
			wantError(t, code, err, token.ErrTokenAbsent)
		}
		if n := b.Calls(t, "C_GenerateKeyPair") - before; n != 2 {
			t.Errorf("%s: %d key pairs asked for, not 2", code, n)
		}
	}
	b.Clear(t)
	generate(t, tok, []byte("new"), token.P256)
}

// signVerified signs and checks the signature.
func signVerified(ctx context.Context, key token.Key) error {
	var opts crypto.SignerOpts = crypto.SHA256
	if key.Algorithm() == token.Ed25519 {
		opts = crypto.Hash(0)
	}
	digest := make([]byte, crypto.SHA256.Size())
	signature, err := key.Sign(ctx, digest, opts)
	if err != nil {
		return err
	}
	return token.Verify(key.Public(), digest, opts, signature)
}
