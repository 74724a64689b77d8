package signer

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"chancery/audit"
	"chancery/token/worker"
	"chancery/tunnel/wire"
	"chancery/users"
)

func TestGuessingGetsSlower(t *testing.T) {
	g := newGuesses(&Config{FailurePause: time.Second, FailureMax: 5 * time.Minute})
	for count, want := range map[int]time.Duration{
		0: 0, 1: 0, 3: 0, 4: 2 * time.Second, 5: 4 * time.Second, 6: 8 * time.Second, 11: 256 * time.Second, 12: 5 * time.Minute, 1 << 40: 5 * time.Minute,
	} {
		if got := g.delay(count); got != want {
			t.Errorf("after %d: %v, want %v", count, got, want)
		}
	}
}

// slow makes every wrong passphrase beyond the free ones cost an hour.
func slow(_ *world, cfg *Config) {
	cfg.FailurePause = time.Millisecond
	cfg.FailureMax = time.Hour
}

// guessUntilBusy tries wrong passphrases until the server looks at none any more, which wants failureMax to be long.
func (c *client) guessUntilBusy(key string) *wire.Error {
	c.t.Helper()
	for range 40 {
		if got := want[*wire.Error](c, c.call(unlockRequest(key, "wrong-passphrase"))); got.Code == wire.CodeBusy {
			return got
		}
	}
	c.t.Fatal("guessing is never slowed down")
	return nil
}

func TestTooManyWrongPassphrasesAreNotLookedAt(t *testing.T) {
	w := newWorld(t, slow, func(w *world, cfg *Config) {
		cfg.FailurePause = 200 * time.Millisecond
		bob := w.grant(4, tokenPIN)
		bob.ID, bob.UserID = 100, 2
		w.store.grants = append(w.store.grants, bob)
	})
	w.awaitToken(StateReady)
	alice := w.connect("alice", true)
	got := alice.guessUntilBusy("p256")
	if got.Retry != wire.RetryLater || got.RetryAfter <= 0 || !strings.Contains(got.Message, `"p256"`) || !strings.Contains(got.Message, "wrong passphrases") {
		t.Errorf("answer %+v", got)
	}
	// Neither the right one nor another connection helps, and nobody else is concerned.
	w.connect("alice", true).refused(unlockRequest("p256", passphrase), wire.CodeBusy)
	want[*wire.UnlockReply](alice, alice.call(unlockRequest("p384", passphrase)))
	bob := w.connect("bob", true)
	bob.refused(unlockRequest("p256", "wrong-passphrase"), wire.CodeWrongPassphrase)
	if len(w.audit.of(audit.KindUnlockFailed)) != 5 {
		t.Errorf("recorded %s", w.audit.text())
	}
	w.eventually("the time to be over", func() bool {
		_, unlocked := alice.call(unlockRequest("p256", passphrase)).(*wire.UnlockReply)
		return unlocked
	})
	alice.refused(unlockRequest("p256", "wrong-passphrase"), wire.CodeWrongPassphrase) // counted from one again
	if kept, err := w.store.UnlockFailures(t.Context()); err != nil || len(kept) != 2 || kept[1].Count != 1 {
		t.Errorf("the store keeps %+v, %v", kept, err)
	}
}

func TestHangingUpDoesNotMakeAGuessUncounted(t *testing.T) {
	const guesses = 3
	w := newWorld(t, slow, inProcess)
	w.awaitToken(StateReady)
	for n := range guesses {
		c := w.connect("alice", true)
		c.send(unlockRequest("p256", "wrong-passphrase"))
		w.eventually("the guess to be looked at", func() bool { return len(w.server.derivations) == 1 })
		c.cut()
		w.eventually("the guess to be recorded", func() bool { return len(w.audit.of(audit.KindUnlockFailed)) == n+1 })
	}
	if r := w.audit.of(audit.KindUnlockFailed)[guesses-1]; r.Outcome != "wrong_passphrase" {
		t.Errorf("recorded %+v", r)
	}
	if kept, err := w.store.UnlockFailures(t.Context()); err != nil || len(kept) != 1 || kept[0].Count != guesses {
		t.Errorf("the store keeps %+v, %v", kept, err)
	}
}

// lockCounter counts what a vault is asked to lock.
type lockCounter struct {
	worker.Handler
	locked atomic.Int64
}

func (l *lockCounter) Lock(c worker.Capability) {
	l.Handler.Lock(c)
	l.locked.Add(1)
}

func TestAnUnlockWhoseClientHungUpLeavesNothingUnlocked(t *testing.T) {
	var home *lockCounter
	w := newWorld(t, func(w *world, cfg *Config) {
		cfg.Open = func(ctx context.Context, record users.Token) (worker.Handler, error) {
			opened, err := w.token.open(ctx, record)
			home = &lockCounter{Handler: distant{opened}}
			return home, err
		}
	})
	w.awaitToken(StateReady)
	c := w.connect("alice", true)
	c.send(unlockRequest("p256", passphrase))
	w.eventually("the passphrase to be looked at", func() bool { return len(w.server.derivations) == 1 })
	c.cut()
	w.eventually("the session to end", func() bool { return w.server.Status().Sessions == 0 })
	if unlocks := w.audit.of(audit.KindUnlock); len(unlocks) != 1 || home.locked.Load() != 1 {
		t.Errorf("recorded %+v, and %d keys were locked", unlocks, home.locked.Load())
	}
}

func TestAnUnlockDoesNotKeepAServerFromEnding(t *testing.T) {
	hold := make(chan struct{})
	defer close(hold)
	w := newWorld(t, func(w *world, cfg *Config) {
		cfg.DrainTimeout, cfg.RequestTimeout = 20*time.Millisecond, time.Hour
		cfg.Open = func(ctx context.Context, record users.Token) (worker.Handler, error) {
			opened, err := w.token.open(ctx, record)
			return distant{held{opened, hold}}, err
		}
	})
	w.awaitToken(StateReady)
	c := w.connect("alice", true)
	c.send(unlockRequest("p256", passphrase))
	w.eventually("the unlock to be at the token", func() bool { return w.server.Status().InFlight == 1 && len(w.server.derivations) == 1 })
	w.stop()
	if got := want[*wire.Error](c, c.receive().Body); got.Code != wire.CodeShuttingDown {
		t.Errorf("answer %+v", got)
	}
}

// held is a token that does not answer an unlock before it may.
type held struct {
	worker.Handler
	until <-chan struct{}
}

func (h held) Unlock(ctx context.Context, u worker.Unlock, ledger worker.Ledger) (worker.Capability, error) {
	<-h.until
	return h.Handler.Unlock(ctx, u, ledger)
}

func TestGuessingStaysSlowAfterARestart(t *testing.T) {
	w := newWorld(t, slow, func(w *world, cfg *Config) {
		cfg.FailurePause = time.Second
		w.store.failures = []users.UnlockFailures{{UserID: 1, KeyID: 4, Count: 20, Last: time.Now().Add(-time.Minute)}}
	})
	w.awaitToken(StateReady)
	key := w.store.keys[3].Name
	got := w.connect("alice", true).refused(unlockRequest(key, passphrase), wire.CodeBusy)
	if got.RetryAfter > 59*time.Minute || got.RetryAfter < 50*time.Minute {
		t.Errorf("answer %+v", got)
	}
}

func TestAClockThatJumpsLocksNobodyOut(t *testing.T) {
	now := time.Now()
	for name, last := range map[string]time.Time{"ahead": now.Add(1000 * time.Hour), "far back": now.Add(-1000 * time.Hour)} {
		store := &fakeStore{failures: []users.UnlockFailures{{UserID: 1, KeyID: 1, Count: 5, Last: last}}}
		g := newGuesses(&Config{Store: store, FailurePause: time.Second, FailureMax: time.Hour})
		if err := g.load(t.Context(), now); err != nil {
			t.Fatal(err)
		}
		if err := g.check(target{1, 1}, "k", now.Add(4*time.Second)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
