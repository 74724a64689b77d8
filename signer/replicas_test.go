package signer

import (
	"testing"

	"chancery/tunnel/wire"
	"chancery/users"
)

// TestChangedReplicasOpenTheTokenAnew has an operator add one, and remove it, while a session has a key unlocked.
func TestChangedReplicasOpenTheTokenAnew(t *testing.T) {
	w := newWorld(t)
	alice := w.unlockedClient("p256")
	for _, replicas := range [][]users.Replica{{{ID: 1, TokenID: 1, Name: "twin", Serial: "S2"}}, nil} {
		before := w.opened()
		w.change(func(s *fakeStore) { s.tokens[0].Replicas = replicas })
		w.eventually("the token to be opened anew", func() bool { return w.opened() == before+1 })
		w.awaitToken(StateReady)
		alice.refused(signRequest("p256"), wire.CodeNotUnlocked)
		want[*wire.UnlockReply](alice, alice.call(unlockRequest("p256", passphrase)))
		want[*wire.SignReply](alice, alice.call(signRequest("p256")))
	}
	before := w.opened()
	w.change(func(s *fakeStore) { s.tokens[0].PINVersion++ })
	want[*wire.SignReply](alice, alice.call(signRequest("p256")))
	if w.opened() != before {
		t.Error("the token was opened anew without need")
	}
}

// TestANewPINOpensATokenWithReplicasAnew has a replica that returns not be sent the PIN that was.
func TestANewPINOpensATokenWithReplicasAnew(t *testing.T) {
	w := newWorld(t, func(w *world, _ *Config) {
		w.store.tokens[0].Replicas = []users.Replica{{ID: 1, TokenID: 1, Name: "twin", Serial: "S2"}}
	})
	w.awaitToken(StateReady)
	w.change(func(s *fakeStore) { s.tokens[0].PINVersion++ })
	w.eventually("the token to be opened anew", func() bool { return w.opened() == 2 })
}

func (w *world) opened() (opens int) {
	w.token.change(func(f *fakeToken) { opens = f.opens })
	return opens
}
