package signer

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/token"
	"chancery/tunnel/wire"
	"chancery/users"
)

func TestAWrongPassphraseNeverReachesTheToken(t *testing.T) {
	w := newWorld(t)
	w.awaitToken(StateReady)
	c := w.connect("alice", true)
	for _, wrong := range []string{"wrong-passphrase", "", strings.Repeat("x", 5000)} {
		got := c.refused(unlockRequest("p256", wrong), wire.CodeWrongPassphrase)
		if !strings.Contains(got.Message, `"p256"`) || got.Retry != wire.RetryNo {
			t.Errorf("answer %+v", got)
		}
	}
	if tries := w.token.sent(); len(tries) != 0 {
		t.Errorf("the token saw %d PINs", len(tries))
	}
	want[*wire.UnlockReply](c, c.call(unlockRequest("p256", passphrase)))
}

func TestUnknownAndUngrantedKeysLookAlike(t *testing.T) {
	w := newWorld(t)
	w.awaitToken(StateReady)
	bob := w.connect("bob", true)
	requests := func(key string) []wire.RequestBody {
		return []wire.RequestBody{&wire.GetKey{Key: key}, unlockRequest(key, passphrase), signRequest(key), &wire.SignAll{Key: key, Digests: []wire.Digest{}}}
	}
	for i, there := range requests("p256") {
		notThere := requests("p999")[i]
		granted := bob.refused(there, wire.CodeNoSuchKey)
		unknown := bob.refused(notThere, wire.CodeNoSuchKey)
		if strings.ReplaceAll(granted.Message, "p256", "p999") != unknown.Message {
			t.Errorf("%s: %q and %q", there.Name(), granted.Message, unknown.Message)
		}
	}
	if keys := want[*wire.ListKeysReply](bob, bob.call(&wire.ListKeys{})).Keys; len(keys) != 0 {
		t.Errorf("bob sees %v", keys)
	}
	w.awaitLog("the key is not granted")
	w.awaitLog("no such key")
}

func TestKeysAreListedInOrderWithTheirHome(t *testing.T) {
	w := newWorld(t)
	c := w.connect("alice", true)
	var names []string
	for _, key := range want[*wire.ListKeysReply](c, c.call(&wire.ListKeys{})).Keys {
		names = append(names, key.Name)
		if key.Hardware == nil || !*key.Hardware {
			t.Errorf("%s: hardware %v", key.Name, key.Hardware)
		}
	}
	var all []string
	for _, a := range token.Algorithms() {
		all = append(all, string(a))
	}
	if !slices.Equal(names, all) {
		t.Errorf("listed %v, want %v", names, all)
	}
}

func TestRevocationReachesLiveSessions(t *testing.T) {
	grantOf := func(s *fakeStore) *users.Grant {
		i := slices.IndexFunc(s.grants, func(g users.Grant) bool { return s.keys[g.KeyID-1].Name == "p256" })
		return &s.grants[i]
	}
	keyOf := func(s *fakeStore) *users.Key {
		return &s.keys[slices.IndexFunc(s.keys, func(k users.Key) bool { return k.Name == "p256" })]
	}
	for name, c := range map[string]struct {
		change func(*fakeStore)
		code   wire.Code
		listed bool
	}{
		"grant revoked": {func(s *fakeStore) {
			s.grants = slices.DeleteFunc(s.grants, func(g users.Grant) bool { return s.keys[g.KeyID-1].Name == "p256" })
		}, wire.CodeNoSuchKey, false},
		"grant changed":   {func(s *fakeStore) { grantOf(s).Generation++ }, wire.CodeNotUnlocked, true},
		"grant made anew": {func(s *fakeStore) { grantOf(s).ID = 100 }, wire.CodeNotUnlocked, true},
		"grant expired":   {func(s *fakeStore) { grantOf(s).Expires = time.Now().Add(-time.Second) }, wire.CodeGrantExpired, false},
		"key disabled":    {func(s *fakeStore) { keyOf(s).Disabled = true }, wire.CodeKeyDisabled, false},
		"key renamed":     {func(s *fakeStore) { keyOf(s).Name = "other" }, wire.CodeNoSuchKey, false},
		"user disabled":   {func(s *fakeStore) { s.users[0].Disabled = true }, wire.CodeUserDisabled, false},
		"user deleted":    {func(s *fakeStore) { s.users = s.users[1:] }, wire.CodeUserDisabled, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			alice := w.unlockedClient("p256")
			want[*wire.SignReply](alice, alice.call(signRequest("p256")))
			w.change(c.change)
			alice.refused(signRequest("p256"), c.code)
			keys := want[*wire.ListKeysReply](alice, alice.call(&wire.ListKeys{})).Keys
			listed := slices.ContainsFunc(keys, func(k wire.Key) bool { return k.Name == "p256" })
			if listed != c.listed {
				t.Errorf("listed: %v", listed)
			}
			if signed := w.keys[token.P256].signed.Load(); signed != 1 {
				t.Errorf("%d signatures were made", signed)
			}
		})
	}
}

func TestUnlocksBelongToTheirSession(t *testing.T) {
	w := newWorld(t)
	w.unlockedClient("p256")
	second := w.connect("alice", true)
	if got := second.refused(signRequest("p256"), wire.CodeNotUnlocked); got.Retry != wire.RetryUnlock {
		t.Errorf("advice %+v", got)
	}
}

func TestAPINThatTheTokenRejectedIsNotSentAgain(t *testing.T) {
	w := newWorld(t, func(w *world, _ *Config) { w.token.pin = "another" })
	w.awaitToken(StateReady)
	for _, key := range []string{"p256", "p256", "rsa2048"} { // the store's view does not change meanwhile
		w.connect("alice", true).refused(unlockRequest(key, passphrase), wire.CodeTokenPINRejected)
	}
	if tries := w.token.sent(); !slices.Equal(tries, []string{tokenPIN}) {
		t.Errorf("the token saw %q", tries)
	}
	if events := w.store.ledger(); !slices.Equal(events, []string{"reject 1/1 false"}) {
		t.Errorf("the store was told %q", events)
	}
	w.token.change(func(f *fakeToken) { f.pin = tokenPIN })
	w.change(func(s *fakeStore) { s.tokens[0].Reload++ })
	w.awaitToken(StateReady)
	c := w.connect("alice", true)
	w.eventually("the reload to be over", func() bool {
		_, unlocked := c.call(unlockRequest("p256", passphrase)).(*wire.UnlockReply)
		return unlocked
	})
	if tries := w.token.sent(); len(tries) != 2 {
		t.Errorf("after the reload the token has seen %q", tries)
	}
}

// TestAPINRejectedElsewhereIsNotSent has another process write what the server has not looked at yet.
func TestAPINRejectedElsewhereIsNotSent(t *testing.T) {
	w := newWorld(t, func(_ *world, cfg *Config) { cfg.PollEvery = time.Hour })
	w.awaitToken(StateReady)
	w.unseen(func(s *fakeStore) { s.tokens[0].PINRejected = true })
	w.connect("alice", true).refused(unlockRequest("p256", passphrase), wire.CodeTokenPINRejected)
	if tries := w.token.sent(); len(tries) != 0 {
		t.Errorf("the token saw %q", tries)
	}
}

// TestAPINChangedElsewhereIsReadAgain has another process change the PIN before the server has looked.
func TestAPINChangedElsewhereIsReadAgain(t *testing.T) {
	const newPIN = "pin-new-123456"
	w := newWorld(t, func(_ *world, cfg *Config) { cfg.PollEvery = time.Hour })
	w.awaitToken(StateReady)
	w.token.change(func(f *fakeToken) { f.pin = newPIN })
	w.unseen(func(s *fakeStore) {
		s.tokens[0].PINVersion = 3
		for i := range s.grants {
			s.grants[i].PINVersion, s.grants[i].Wrapped = 3, w.wrap(s.grants[i], newPIN)
		}
	})
	c := w.connect("alice", true)
	want[*wire.UnlockReply](c, c.call(unlockRequest("p256", passphrase)))
	if tries := w.token.sent(); !slices.Equal(tries, []string{newPIN}) {
		t.Errorf("the token saw %q", tries)
	}
}

// unseen alters the store without waiting for the server.
func (w *world) unseen(how func(*fakeStore)) {
	w.store.mu.Lock()
	defer w.store.mu.Unlock()
	how(w.store)
	w.store.revision++
}

func TestNoPINIsSentToATokenAboutToLock(t *testing.T) {
	for code, state := range map[wire.Code]token.PINState{wire.CodeTokenFinalTry: {FinalTry: true}, wire.CodeTokenLocked: {Locked: true}} {
		t.Run(string(code), func(t *testing.T) {
			w := newWorld(t, func(w *world, _ *Config) { w.token.pinState = state })
			w.awaitToken(StateReady)
			w.connect("alice", true).refused(unlockRequest("p256", passphrase), code)
			if tries := w.token.sent(); len(tries) != 0 {
				t.Errorf("the token saw %q", tries)
			}
		})
	}
}

func TestAPINChangeInFlightIsCompleted(t *testing.T) {
	w := newWorld(t, func(w *world, _ *Config) {
		w.token.pin = "pin-staged"
		w.store.tokens[0].PINStaged = true
		for i := range w.store.grants {
			w.store.grants[i].Staged = w.wrap(w.store.grants[i], "pin-staged")
		}
	})
	c := w.unlockedClient("p256", "rsa2048")
	want[*wire.SignReply](c, c.call(signRequest("p256")))
	if tries := w.token.sent(); !slices.Equal(tries, []string{tokenPIN, "pin-staged"}) {
		t.Errorf("the token saw %q", tries)
	}
	if events := w.store.ledger(); !slices.Equal(events, []string{"reject 1/1 false", "commit 1/1"}) {
		t.Errorf("the store was told %q", events)
	}
}

func TestUnlocksAreBounded(t *testing.T) {
	w := newWorld(t, func(_ *world, cfg *Config) { cfg.RequestTimeout = 50 * time.Millisecond; cfg.MaxDerivations = 1 })
	w.awaitToken(StateReady)
	w.server.derivations <- struct{}{} // somebody else's
	c := w.connect("alice", true)
	for _, key := range []string{"p256", "no-such-key"} {
		if got := c.refused(unlockRequest(key, passphrase), wire.CodeBusy); got.Retry != wire.RetryLater {
			t.Errorf("%s: advice %+v", key, got)
		}
	}
	<-w.server.derivations
}

func TestGuessingIsSlow(t *testing.T) {
	w := newWorld(t, func(_ *world, cfg *Config) { cfg.FailurePause = 50 * time.Millisecond })
	w.awaitToken(StateReady)
	begin := time.Now()
	first, second := w.connect("alice", true), w.connect("alice", true)
	for _, key := range []string{"p256", "no-such-key"} {
		first.send(unlockRequest(key, "wrong-passphrase"))
		second.send(unlockRequest(key, "wrong-passphrase"))
	}
	for range 2 {
		want[*wire.Error](first, first.receive().Body)
		want[*wire.Error](second, second.receive().Body)
	}
	if took := time.Since(begin); took < 200*time.Millisecond {
		t.Errorf("four guesses by one user took %v", took)
	}
}

func TestTheErrorTableIsSound(t *testing.T) {
	for _, answer := range answers {
		got := toWire(errors.Join(errors.New("outer"), answer.err), "release")
		if got.Code != answer.code || !strings.Contains(got.Message, `"release"`) {
			t.Errorf("%v: answered %+v", answer.err, got)
		}
	}
	if got := toWire(errors.New("secret cause"), "release"); got.Code != wire.CodeInternal || strings.Contains(got.Message, "secret") {
		t.Errorf("unknown errors are answered %+v", got)
	}
}
