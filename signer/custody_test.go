package signer

import (
	"context"
	"slices"
	"testing"
	"time"

	"chancery/token/worker"
	"chancery/tunnel/wire"
	"chancery/users"
)

// custodian is a token's process as a test sees it.
type custodian struct {
	worker.Handler
	asked  chan worker.Unlock
	locked chan worker.Capability
	derive chan struct{} // where not nil, what a derivation waits for; the request ends when its time is over
}

// inCustodyOf has a world's token kept by a custodian.
func inCustodyOf(c *custodian) func(*world, *Config) {
	return func(w *world, cfg *Config) {
		cfg.Open = func(ctx context.Context, record users.Token) (h worker.Handler, err error) {
			c.Handler, err = w.token.open(ctx, record)
			return c, err
		}
	}
}

func newCustodian() *custodian {
	return &custodian{asked: make(chan worker.Unlock, 8), locked: make(chan worker.Capability, 8)}
}

func (c *custodian) Unlock(ctx context.Context, u worker.Unlock, ledger worker.Ledger) (worker.Capability, error) {
	c.asked <- u
	if c.derive == nil {
		return c.Handler.Unlock(ctx, u, ledger)
	}
	go func() {
		<-c.derive
		ledger.Derived()
	}()
	<-ctx.Done()
	return worker.Capability{}, context.Cause(ctx)
}

func (c *custodian) Lock(capability worker.Capability) {
	c.Handler.Lock(capability)
	c.locked <- capability
}

// A client that gives up early must not have more passphrases derived at once than the server allows.
func TestADerivationCountsUntilItHasEnded(t *testing.T) {
	c := newCustodian()
	c.derive = make(chan struct{})
	w := newWorld(t, inCustodyOf(c), func(_ *world, cfg *Config) { cfg.RequestTimeout = 50 * time.Millisecond; cfg.MaxDerivations = 1 })
	w.awaitToken(StateReady)
	alice, bob := w.connect("alice", true), w.connect("bob", true)
	want[*wire.Error](alice, alice.call(unlockRequest("p256", passphrase)))
	if n := len(w.server.derivations); n != 1 {
		t.Errorf("%d derivations are counted, and one goes on", n)
	}
	bob.refused(unlockRequest("p256", passphrase), wire.CodeBusy)
	close(c.derive)
	w.eventually("the derivation to end", func() bool { return len(w.server.derivations) == 0 })
}

// What is revoked while its unlock is being recorded must not stay unlocked in the token's process, with the PIN.
func TestRevocationDuringAnUnlockLocks(t *testing.T) {
	c := newCustodian()
	w := newWorld(t, inCustodyOf(c))
	w.awaitToken(StateReady)
	gate := make(chan struct{})
	w.audit.mu.Lock()
	w.audit.gate = gate
	w.audit.mu.Unlock()
	alice := w.connect("alice", true)
	alice.send(unlockRequest("p256", passphrase))
	<-c.asked
	w.eventually("the login", func() bool { return len(w.token.sent()) == 1 })
	w.change(func(s *fakeStore) {
		s.grants = slices.DeleteFunc(s.grants, func(g users.Grant) bool { return s.keys[g.KeyID-1].Name == "p256" })
	})
	w.server.lockVoid() // that of the change has certainly ended then
	close(gate)
	alice.receive()
	select {
	case <-c.locked:
	case <-time.After(patience):
		t.Error("the key stays unlocked")
	}
}
