package signer

import (
	"context"
	"crypto"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/token"
	"chancery/token/soft"
	"chancery/token/worker"
	"chancery/tunnel/wire"
	"chancery/users"
)

func TestAnAbsentTokenIsLookedForAgain(t *testing.T) {
	w := newWorld(t, func(w *world, cfg *Config) { w.token.absent, cfg.FailurePause = true, 10*patience }) // no pause is made
	w.awaitToken(StateAbsent)
	c := w.connect("alice", true)
	if got := c.refused(unlockRequest("p256", passphrase), wire.CodeTokenAbsent); got.Retry != wire.RetryLater {
		t.Errorf("advice %+v", got)
	}
	if status := w.server.Status(); status.Tokens[0].Error == "" || status.Sessions != 1 {
		t.Errorf("status %+v", status)
	}
	w.token.change(func(f *fakeToken) { f.absent = false })
	w.awaitToken(StateReady)
	want[*wire.UnlockReply](c, c.call(unlockRequest("p256", passphrase)))
	want[*wire.SignReply](c, c.call(signRequest("p256")))
}

func TestATokenThatLostItsSessionsIsOpenedAnew(t *testing.T) {
	for name, c := range map[string]struct {
		lost  error
		first wire.Code
	}{
		"absent":     {token.ErrTokenAbsent, wire.CodeTokenAbsent},
		"broken":     {token.ErrBroken, wire.CodeTokenUnavailable},
		"logged out": {token.ErrLoginRequired, wire.CodeTokenUnavailable},
		"closed":     {token.ErrClosed, wire.CodeTokenUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			alice := w.unlockedClient("p256")
			before := w.opens()
			w.keys[token.P256].before(func(context.Context, []byte) error { return fmt.Errorf("fake: %w", c.lost) })
			alice.refused(signRequest("p256"), c.first)
			w.keys[token.P256].before(func(context.Context, []byte) error { return nil })
			w.eventually("the token to be opened again", func() bool { return w.opens() == before+1 })
			w.awaitToken(StateReady)
			alice.refused(signRequest("p256"), wire.CodeNotUnlocked)
			want[*wire.UnlockReply](alice, alice.call(unlockRequest("p256", passphrase)))
			want[*wire.SignReply](alice, alice.call(signRequest("p256")))
		})
	}
}

func (w *world) opens() (n int) {
	w.token.change(func(f *fakeToken) { n = f.opens })
	return n
}

func TestATokenUnpluggedAndPluggedInAgain(t *testing.T) {
	w := newWorld(t)
	c := w.unlockedClient("p256")
	w.token.change(func(f *fakeToken) { f.absent = true })
	c.refused(signRequest("p256"), wire.CodeTokenAbsent)
	w.awaitToken(StateAbsent)
	c.refused(unlockRequest("p256", passphrase), wire.CodeTokenAbsent)
	w.token.change(func(f *fakeToken) { f.absent = false })
	w.awaitToken(StateReady)
	want[*wire.UnlockReply](c, c.call(unlockRequest("p256", passphrase)))
}

func TestAKeyThatIsNotTheRegisteredOneIsRefused(t *testing.T) {
	for name, hidden := range map[string]bool{"listed": false, "hidden without login": true} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, func(w *world, _ *Config) {
				w.keys[token.P256].private = newPrivate(token.P256)
				w.keys[token.P256].hidden = hidden
			})
			c := w.unlockedClient("rsa2048")
			c.refused(unlockRequest("p256", passphrase), wire.CodeKeyMismatch)
			want[*wire.SignReply](c, c.call(signRequest("rsa2048")))
			if refused := w.server.Status().Tokens[0].Refused; !hidden && !slices.Equal(refused, []string{"p256"}) {
				t.Errorf("refused keys %v", refused)
			}
			w.awaitLog("another public half")
		})
	}
}

func TestAKeyMissingOnTheToken(t *testing.T) {
	w := newWorld(t, func(w *world, _ *Config) { w.keys[token.P256].id = []byte("moved") })
	w.awaitToken(StateReady)
	w.connect("alice", true).refused(unlockRequest("p256", passphrase), wire.CodeKeyMismatch)
}

// A module that lists its keys only once does not show one that an operator's command has made since.
func TestATokenIsOpenedAnewForAKeyThatIsNewerThanItsOpening(t *testing.T) {
	w := newWorld(t, func(w *world, _ *Config) { w.keys[token.P256].id = []byte("not yet shown") })
	w.awaitToken(StateReady)
	w.change(func(s *fakeStore) { s.keys[w.keyID("p256")-1].CreatedAt = time.Now().Add(time.Second) })
	c := w.connect("alice", true)
	c.refused(unlockRequest("p256", passphrase), wire.CodeTokenUnavailable)
	w.eventually("the token to be opened again", func() bool { return w.opens() == 2 })
	w.awaitToken(StateReady)
	c.refused(unlockRequest("p256", passphrase), wire.CodeKeyMismatch) // and not again and again
	if n := w.opens(); n != 2 {
		t.Errorf("the token was opened %d times", n)
	}
}

func TestAnotherTokenInThePlaceOfTheRegisteredOne(t *testing.T) {
	w := newWorld(t, func(w *world, _ *Config) { w.token.serial = "S2" })
	w.awaitToken(StateAbsent)
	w.connect("alice", true).refused(unlockRequest("p256", passphrase), wire.CodeTokenAbsent)
	if status := w.server.Status().Tokens[0]; !strings.Contains(status.Error, "S2") {
		t.Errorf("status %+v", status)
	}
}

func TestTokensComeAndGoWithTheStore(t *testing.T) {
	w := newWorld(t)
	c := w.unlockedClient("p256")
	var removed users.Token
	w.change(func(s *fakeStore) { removed, s.tokens = s.tokens[0], nil })
	w.eventually("the token to be closed", func() bool {
		body, refused := c.call(signRequest("p256")).(*wire.Error)
		return refused && body.Code == wire.CodeNotUnlocked
	})
	if tokens := w.server.Status().Tokens; len(tokens) != 0 {
		t.Errorf("tokens %+v", tokens)
	}
	w.change(func(s *fakeStore) { s.tokens = []users.Token{removed} })
	w.awaitToken(StateReady)
	want[*wire.UnlockReply](c, c.call(unlockRequest("p256", passphrase)))
}

func TestReloadOpensTheTokenAnew(t *testing.T) {
	w := newWorld(t)
	c := w.unlockedClient("p256")
	w.change(func(s *fakeStore) { s.tokens[0].Reload++ })
	w.eventually("the token to be opened again", func() bool { return w.opens() == 2 })
	w.awaitToken(StateReady)
	c.refused(signRequest("p256"), wire.CodeNotUnlocked)
	want[*wire.UnlockReply](c, c.call(unlockRequest("p256", passphrase)))
	want[*wire.SignReply](c, c.call(signRequest("p256")))
}

// An operator who reloads a token time and again waits for none of the pauses that are for tokens which fail.
func TestReloadsCauseNoPause(t *testing.T) {
	w := newWorld(t, func(_ *world, cfg *Config) { cfg.ReopenMin, cfg.ReopenMax = 10*patience, 10*patience })
	for i := range 4 {
		w.awaitToken(StateReady)
		w.eventually("the token to be opened again", func() bool { return w.opens() == 2*i+1 })
		w.change(func(s *fakeStore) { s.tokens[0].Reload++ })
		w.eventually("the token to be opened again", func() bool { return w.opens() == 2*i+2 })
		w.awaitToken(StateReady)
		w.server.Reopen()
	}
}

func TestReopeningKeepsRejections(t *testing.T) {
	w := newWorld(t, func(w *world, _ *Config) { w.token.pin = "another" })
	w.awaitToken(StateReady)
	w.connect("alice", true).refused(unlockRequest("p256", passphrase), wire.CodeTokenPINRejected)
	w.server.Reopen()
	w.eventually("the token to be opened again", func() bool { return w.opens() == 2 })
	w.awaitToken(StateReady)
	w.connect("alice", true).refused(unlockRequest("p256", passphrase), wire.CodeTokenPINRejected)
	if tries := w.token.sent(); len(tries) != 1 {
		t.Errorf("the token saw %q", tries)
	}
}

func TestReopeningLocksKeysAndLooksForAbsentTokensAtOnce(t *testing.T) {
	w := newWorld(t, func(_ *world, cfg *Config) { cfg.ReopenMin, cfg.ReopenMax = patience, patience })
	c := w.unlockedClient("p256")
	w.token.change(func(f *fakeToken) { f.absent = true })
	w.server.Reopen()
	w.awaitToken(StateAbsent)
	c.refused(signRequest("p256"), wire.CodeNotUnlocked)
	w.token.change(func(f *fakeToken) { f.absent = false })
	w.server.Reopen()
	w.awaitToken(StateReady)
	want[*wire.UnlockReply](c, c.call(unlockRequest("p256", passphrase)))
}

func TestATokenThatIsBeingOpenedIsOpenedAnewToo(t *testing.T) {
	opening, proceed := make(chan struct{}), make(chan struct{})
	w := newWorld(t, func(w *world, cfg *Config) {
		cfg.Open = func(ctx context.Context, record users.Token) (worker.Handler, error) {
			opened, err := w.token.open(ctx, record)
			opening <- struct{}{}
			<-proceed
			return opened, err
		}
	})
	<-opening
	w.server.Reopen()
	proceed <- struct{}{}
	<-opening
	close(proceed)
	w.awaitToken(StateReady)
}

func TestAKeyRegisteredLaterCanBeUsedAtOnce(t *testing.T) {
	w := newWorld(t, func(w *world, _ *Config) { w.store.keys, w.store.grants = w.store.keys[:6], w.store.grants[:6] })
	c := w.unlockedClient()
	c.refused(unlockRequest("ed25519", passphrase), wire.CodeNoSuchKey)
	full := &world{t: t, token: &fakeToken{}, keys: map[token.Algorithm]*fakeKey{}, store: &fakeStore{}}
	full.populate()
	w.change(func(s *fakeStore) { s.keys, s.grants = full.store.keys, full.store.grants })
	want[*wire.UnlockReply](c, c.call(unlockRequest("ed25519", passphrase)))
	want[*wire.SignReply](c, c.call(&wire.Sign{Key: "ed25519", Message: []byte("text")}))
	if w.opens() != 1 {
		t.Errorf("the token was opened %d times", w.opens())
	}
}

func TestRowsThatCannotBeReadAreLoggedOnce(t *testing.T) {
	w := newWorld(t)
	c := w.unlockedClient("p256")
	w.change(func(s *fakeStore) {
		s.unreadable = []users.Unreadable{{Kind: "grant", ID: 77, Err: users.ErrUnreadable}}
		s.keys[w.keyID("p256")-1].Disabled = true
	})
	c.refused(signRequest("p256"), wire.CodeKeyDisabled) // what else has changed is seen
	w.change(func(s *fakeStore) {})
	w.change(func(s *fakeStore) {
		s.unreadable = append(s.unreadable, users.Unreadable{Kind: "key", ID: 78, Err: users.ErrUnreadable})
	})
	for _, row := range []string{"row=grant id=77", "row=key id=78"} {
		if n := strings.Count(w.logs.String(), row); n != 1 {
			t.Errorf("%s is logged %d times", row, n)
		}
	}
}

func TestAPanicOverATokenIsThatTokensTrouble(t *testing.T) {
	for _, operation := range []string{"open", "info", "keys"} {
		t.Run(operation, func(t *testing.T) {
			w := newWorld(t, func(w *world, _ *Config) { w.token.panics = operation })
			w.awaitToken(StateAbsent)
			c := w.connect("alice", true)
			want[*wire.WhoAmIReply](c, c.call(&wire.WhoAmI{}))
			c.refused(unlockRequest("p256", passphrase), wire.CodeTokenAbsent)
			if status := w.server.Status().Tokens[0]; !strings.Contains(status.Error, "driver panicked") {
				t.Errorf("status %+v", status)
			}
			w.token.change(func(f *fakeToken) { f.panics = "" })
			w.awaitToken(StateReady)
			want[*wire.UnlockReply](c, c.call(unlockRequest("p256", passphrase)))
		})
	}
}

func TestAPanicWhileComparingOrClosingOpensTheTokenAnew(t *testing.T) {
	for name, start := range map[string]func(*world){
		"keys":  func(w *world) { w.change(func(s *fakeStore) { s.keys[0].TokenKeyID = []byte("moved") }) },
		"close": func(w *world) { w.server.Reopen() },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.awaitToken(StateReady)
			w.token.change(func(f *fakeToken) { f.panics = name })
			start(w)
			w.awaitLog("panic over a token")
			w.token.change(func(f *fakeToken) { f.panics = "" })
			w.eventually("the token to be opened again", func() bool { return w.opens() > 1 })
			w.awaitToken(StateReady)
			c := w.unlockedClient("p256")
			want[*wire.SignReply](c, c.call(signRequest("p256")))
		})
	}
}

func TestTheSoftToken(t *testing.T) {
	directory := filepath.Join(t.TempDir(), "token")
	info, public := makeSoftToken(t, directory)
	w := newWorld(t, func(w *world, cfg *Config) {
		cfg.Open = func(context.Context, users.Token) (worker.Handler, error) {
			open, err := soft.Open(directory)
			return worker.NewVault(open, cfg.Log), err
		}
		w.store.tokens[0].Serial, w.store.tokens[0].Hardware = info.Serial, info.Hardware
		der := spki(public)
		key := &w.store.keys[0]
		key.Name, key.TokenKeyID, key.Algorithm, key.Public, key.Handle = "soft", []byte("soft-1"), token.P384, der, wire.Handle(der)
		w.store.keys = w.store.keys[:1]
		w.store.grants = w.store.grants[:1]
		g := &w.store.grants[0]
		g.Wrapped = wrapFor(t, info.Serial, key.Handle, string(g.Role), tokenPIN)
	})
	c := w.unlockedClient("soft")
	for _, hash := range allHashes {
		d := digestOf(hash, "text")
		got := want[*wire.SignReply](c, c.call(&wire.Sign{Key: "soft", Digest: d})).Signature
		if err := verified(public, "", d, nil, got.Bytes); err != nil || got.Tag != wire.TagP384 {
			t.Errorf("%s: %+v: %v", hash, got, err)
		}
	}
	key := want[*wire.GetKeyReply](c, c.call(&wire.GetKey{Key: "soft"})).Key
	if key.Hardware == nil || *key.Hardware {
		t.Error("a software key is listed as hardware")
	}
}

func makeSoftToken(t *testing.T, directory string) (token.Info, crypto.PublicKey) {
	t.Helper()
	fail := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	fail(soft.Create(directory, "test", []byte(tokenPIN)))
	opened, err := soft.Open(directory)
	fail(err)
	fail(opened.Login(t.Context(), []byte(tokenPIN)))
	key, err := opened.Generate(t.Context(), token.KeySpec{ID: []byte("soft-1"), Label: "soft", Algorithm: token.P384})
	fail(err)
	info, err := opened.Info(t.Context())
	fail(err)
	fail(opened.Close())
	return info, key.Public()
}
