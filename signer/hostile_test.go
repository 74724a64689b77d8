package signer

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/access"
	"chancery/token"
	"chancery/tunnel/wire"
	"chancery/users"
)

// forged is a grant for bob on alice's key, as somebody makes it who can write to the
// database and does not know the PIN: the wrap holds another one.
func (w *world) forged(keyID int64, pin string) users.Grant {
	g := users.Grant{ID: 200 + keyID, UserID: 2, TokenID: 1, KeyID: keyID, Role: users.RoleSigner, Generation: 1, PINVersion: 1, Access: accessKey().Public()}
	wrapped, err := access.Wrap([]byte(pin), g.Access, access.Binding{
		TokenSerial: "S1", KeyHandle: w.store.keys[keyID-1].Handle, User: "bob", Role: string(g.Role),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	g.Wrapped = wrapped
	return g
}

func TestAForgedGrantDoesNotRideOnAnothersLogin(t *testing.T) {
	w := newWorld(t)
	alice := w.unlockedClient("p256")
	id := w.keyID("p256")
	w.change(func(s *fakeStore) { s.grants = append(s.grants, w.forged(id, "no-such-pin")) })
	bob := w.connect("bob", true)
	bob.refused(unlockRequest("p256", passphrase), wire.CodeWrongPassphrase)
	bob.refused(signRequest("p256"), wire.CodeNotUnlocked)
	if tries := w.token.sent(); len(tries) != 1 {
		t.Errorf("the token saw %q", tries)
	}
	want[*wire.SignReply](alice, alice.call(signRequest("p256")))
	w.change(func(s *fakeStore) { s.grants[len(s.grants)-1] = w.forged(id, tokenPIN) })
	want[*wire.UnlockReply](bob, bob.call(unlockRequest("p256", passphrase)))
}

func (w *world) keyID(name string) int64 {
	for _, k := range w.store.keys {
		if k.Name == name {
			return k.ID
		}
	}
	w.t.Fatalf("no key %q", name)
	return 0
}

func TestAPINChangedSinceTheLoginIsProvenByAnother(t *testing.T) {
	const newPIN = "pin-new-123456"
	w := newWorld(t)
	alice := w.unlockedClient("p256")
	w.token.change(func(f *fakeToken) { f.pin = newPIN })
	w.change(func(s *fakeStore) {
		s.tokens[0].PINVersion = 3
		for i := range s.grants {
			s.grants[i].PINVersion, s.grants[i].Wrapped = 3, w.wrap(s.grants[i], newPIN)
		}
	})
	want[*wire.SignReply](alice, alice.call(signRequest("p256")))
	second := w.connect("alice", true)
	want[*wire.UnlockReply](second, second.call(unlockRequest("p256", passphrase)))
	if tries := w.token.sent(); !slices.Equal(tries, []string{tokenPIN, newPIN}) {
		t.Errorf("the token saw %q", tries)
	}
	want[*wire.SignReply](second, second.call(signRequest("p256")))
	alice.refused(signRequest("p256"), wire.CodeNotUnlocked)
}

func TestExchangedRowsDoNotLendOnesHandleToTheOther(t *testing.T) {
	w := newWorld(t)
	first, second := w.keyID("p256"), w.keyID("p384")
	w.change(func(s *fakeStore) { // bob holds p384 alone
		s.grants = append(s.grants, w.forged(second, tokenPIN))
	})
	alice := w.unlockedClient("p256")
	want[*wire.SignReply](alice, alice.call(signRequest("p256")))
	w.change(func(s *fakeStore) {
		a, b := &s.keys[first-1], &s.keys[second-1]
		*a, *b = *b, *a
		a.ID, b.ID = first, second
		s.grants[len(s.grants)-1].KeyID = first
	})
	bob := w.connect("bob", true)
	want[*wire.UnlockReply](bob, bob.call(unlockRequest("p384", passphrase)))
	made := want[*wire.SignReply](bob, bob.call(signRequest("p384"))).Signature
	if err := verified(w.keys[token.P384].Public(), "", digestOf(wire.SHA256, "text"), nil, made.Bytes); err != nil || made.Tag != wire.TagP384 {
		t.Errorf("bob, who holds p384 alone, got %+v: %v", made, err)
	}
	alice.refused(signRequest("p256"), wire.CodeNotUnlocked)
}

func TestHangingUpDoesNotShortenThePauseAfterAGuess(t *testing.T) {
	const pause = 500 * time.Millisecond
	w := newWorld(t, func(_ *world, cfg *Config) { cfg.FailurePause = pause })
	w.awaitToken(StateReady)
	begin := time.Now()
	guess := w.connect("alice", true)
	guess.send(unlockRequest("p256", "wrong-passphrase"))
	w.eventually("the guess to be looked at", func() bool { return len(w.server.derivations) == 1 })
	guess.cut()
	next := w.connect("alice", true)
	want[*wire.UnlockReply](next, next.call(unlockRequest("p256", passphrase)))
	if took := time.Since(begin); took < pause {
		t.Errorf("the next guess was looked at after %v", took)
	}
}

func TestOneUserDoesNotTakeTheServersRequests(t *testing.T) {
	w := newWorld(t, func(_ *world, cfg *Config) {
		cfg.SessionRequests, cfg.ServerRequests, cfg.FailurePause = 4, 16, time.Minute
		cfg.RequestTimeout, cfg.DrainTimeout = time.Minute, time.Millisecond
	})
	w.awaitToken(StateReady)
	for range 8 {
		c := w.connect("alice", true)
		var frames []byte
		for range 4 {
			frames, _ = c.encode(frames, unlockRequest("p256", "wrong-passphrase"))
		}
		go c.conn.Write(frames)
	}
	w.eventually("alice's requests to wait", func() bool { return w.server.Status().InFlight >= 4 })
	time.Sleep(20 * time.Millisecond) // for more of them, if they were let in
	bob := w.connect("bob", true)
	want[*wire.WhoAmIReply](bob, bob.call(&wire.WhoAmI{}))
	if n := w.server.Status().InFlight; n > 4 {
		t.Errorf("%d of alice's requests are in flight", n)
	}
}

func TestRevocationStopsABatchInTheMiddle(t *testing.T) {
	w := newWorld(t, func(_ *world, cfg *Config) { cfg.BatchConcurrency = 1 })
	alice := w.unlockedClient("p256")
	reached, revoked := make(chan struct{}, 1), make(chan struct{})
	w.keys[token.P256].before(func(context.Context, []byte) error {
		select {
		case reached <- struct{}{}:
			<-revoked
		default:
		}
		return nil
	})
	batch := &wire.SignAll{Key: "p256"}
	for range 10 {
		batch.Digests = append(batch.Digests, digestOf(wire.SHA256, "text"))
	}
	alice.send(batch)
	<-reached
	w.change(func(s *fakeStore) { s.grants = nil })
	close(revoked)
	if failed := want[*wire.Error](alice, alice.receive().Body); failed.Code != wire.CodeNoSuchKey {
		t.Errorf("answer %+v", failed)
	}
	if signed := w.keys[token.P256].signed.Load(); signed != 1 {
		t.Errorf("%d signatures were made", signed)
	}
}

func TestPeersDoNotChooseTheSizeOfLogsAndRefusals(t *testing.T) {
	w := newWorld(t)
	c := w.connect("alice", true)
	name := strings.Repeat("\x00é", 100_000)
	if got := c.refused(&wire.GetKey{Key: name}, wire.CodeNoSuchKey); len(got.Message) > 1000 {
		t.Errorf("a message of %d bytes", len(got.Message))
	}
	c.refused(signRequest(name), wire.CodeNoSuchKey)
	frame := `{"session_id":"` + c.session.String() + `","request_id":9,"request":{"` + strings.Repeat("x", 500_000) + `":{}}}`
	c.write(wire.AppendFrame(nil, []byte(frame)))
	want[*wire.UnsupportedReply](c, c.receive().Body)
	if size := len(w.logs.String()); size > 10_000 {
		t.Errorf("a log of %d bytes", size)
	}
}
