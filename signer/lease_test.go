package signer

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"chancery/audit"
	"chancery/token"
	"chancery/tunnel/wire"
	"chancery/users"
)

// leased makes the grant on p256 a lease.
func leased(lasts time.Duration, uses int) func(*world, *Config) {
	return func(w *world, _ *Config) {
		i := slices.IndexFunc(w.store.keys, func(k users.Key) bool { return k.Name == "p256" })
		w.store.grants[i].Lease, w.store.grants[i].LeaseUses = lasts, uses
	}
}

func batchOf(n int) *wire.SignAll {
	batch := &wire.SignAll{Key: "p256"}
	for i := range n {
		batch.Digests = append(batch.Digests, digestOf(wire.SHA256, fmt.Sprint(i)))
	}
	return batch
}

func TestAnUnlockIsGoodForSomeSignatures(t *testing.T) {
	w := newWorld(t, leased(0, 5))
	c := w.unlockedClient("p256")
	want[*wire.SignAllReply](c, c.call(batchOf(3)))
	if got := c.refused(batchOf(6), wire.CodeBatchTooLarge); got.Retry != wire.RetryNo {
		t.Errorf("advice %+v", got)
	}
	want[*wire.SignReply](c, c.call(signRequest("p256")))
	want[*wire.SignReply](c, c.call(signRequest("p256")))
	if got := c.refused(signRequest("p256"), wire.CodeNotUnlocked); got.Retry != wire.RetryUnlock {
		t.Errorf("advice %+v", got)
	}
	if refused := w.audit.of(audit.KindRefused); refused[len(refused)-1].Outcome != "lease_used" {
		t.Errorf("recorded %+v", refused)
	}
	want[*wire.UnlockReply](c, c.call(unlockRequest("p256", passphrase)))
	want[*wire.SignAllReply](c, c.call(batchOf(5)))
	c.refused(signRequest("p256"), wire.CodeNotUnlocked)
	if signed := w.keys[token.P256].signed.Load(); signed != 10 {
		t.Errorf("%d signatures were made", signed)
	}
}

// leaseOf is what the server's only session has for a key.
func (w *world) leaseOf(key string) *lease {
	w.t.Helper()
	w.server.mu.Lock()
	defer w.server.mu.Unlock()
	for t := range w.server.sessions {
		if opened, ok := t.lookUp(key); ok {
			return opened.lease
		}
	}
	w.t.Fatalf("no session has %q unlocked", key)
	return nil
}

func TestWhatTheTokenIsNotAskedForUsesNoLease(t *testing.T) {
	late := signRequest("p256")
	late.Deadline = 20 * time.Millisecond
	lateBatch := batchOf(3)
	lateBatch.Deadline = late.Deadline
	for name, test := range map[string]struct {
		request wire.RequestBody
		waiting int // requests of others in the queue
		code    wire.Code
	}{
		"the queue is full":                 {signRequest("p256"), 2, wire.CodeBusy},
		"the queue is full for a batch":     {batchOf(3), 2, wire.CodeBusy},
		"the deadline passes":               {late, 0, wire.CodeDeadlineExceeded},
		"the deadline passes for the batch": {lateBatch, 0, wire.CodeDeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, leased(0, 10), func(_ *world, cfg *Config) { cfg.TokenQueueUser, cfg.BatchConcurrency = 2, 2 })
			c := w.unlockedClient("p256")
			w.server.tokens.slots[1].queue.Resize(1)
			release := w.holdSignatures()
			ids := []uint64{c.send(signRequest("p256"))}
			w.eventually("the first to be at the token", func() bool { return w.keys[token.P256].busy.Load() == 1 })
			for range test.waiting {
				ids = append(ids, c.send(signRequest("p256")))
			}
			w.eventually("the next to wait", func() bool { return w.server.Status().Tokens[0].Queue.Waiting == test.waiting })
			c.refused(test.request, test.code)
			close(release)
			for _, body := range c.receiveAll(ids) {
				want[*wire.SignReply](c, body)
			}
			if left, signed := w.leaseOf("p256").left.Load(), w.keys[token.P256].signed.Load(); left != 10-signed {
				t.Errorf("%d of 10 uses are left after %d signatures", left, signed)
			}
		})
	}
}

func TestABatchThatFailsUsesOfItsLeaseWhatTheTokenWasAskedFor(t *testing.T) {
	w := newWorld(t, leased(0, 10), func(_ *world, cfg *Config) { cfg.BatchConcurrency = 1 })
	c := w.unlockedClient("p256")
	w.keys[token.P256].before(func(context.Context, []byte) error {
		if w.keys[token.P256].signed.Load() == 2 {
			return token.ErrUnsupported
		}
		return nil
	})
	c.refused(batchOf(6), wire.CodeAlgorithmMismatch)
	if left := w.leaseOf("p256").left.Load(); left != 7 { // two signatures, and the one that failed
		t.Errorf("%d of 10 uses are left", left)
	}
}

func TestARevocationInTheQueueUsesNoLease(t *testing.T) {
	w := newWorld(t, leased(0, 10))
	c := w.unlockedClient("p256")
	w.server.tokens.slots[1].queue.Resize(1)
	release := w.holdSignatures()
	first := c.send(signRequest("p256"))
	w.eventually("the first to be at the token", func() bool { return w.keys[token.P256].busy.Load() == 1 })
	second := c.send(signRequest("p256"))
	w.eventually("the second to wait", func() bool { return w.server.Status().Tokens[0].Queue.Waiting == 1 })
	taken := w.leaseOf("p256")
	w.change(func(s *fakeStore) {
		s.keys[slices.IndexFunc(s.keys, func(k users.Key) bool { return k.Name == "p256" })].Disabled = true
	})
	close(release)
	c.receiveAll([]uint64{first, second})
	if left := taken.left.Load(); left != 9 {
		t.Errorf("%d of 10 uses are left", left)
	}
}

func TestManyAtOnceDoNotOverdrawALease(t *testing.T) {
	l := (&Server{}).newLease(&users.Grant{LeaseUses: 1000}, time.Now())
	var group sync.WaitGroup
	var mu sync.Mutex
	taken := 0
	for range 8 {
		group.Go(func() {
			for l.take(7) == nil {
				mu.Lock()
				taken += 7
				mu.Unlock()
			}
		})
	}
	group.Wait()
	if taken != 994 {
		t.Errorf("%d were taken of 1000", taken)
	}
}

func TestAnUnlockLastsForSomeTime(t *testing.T) {
	const short = 150 * time.Millisecond
	for name, adjust := range map[string]func(*world, *Config){
		"of the grant":      leased(short, 0),
		"of all":            func(_ *world, cfg *Config) { cfg.Lease = short },
		"the grant's wins":  func(w *world, cfg *Config) { cfg.Lease = time.Hour; leased(short, 0)(w, cfg) },
		"the shorter loses": func(w *world, cfg *Config) { cfg.Lease = time.Nanosecond; leased(short, 0)(w, cfg) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, adjust)
			c := w.unlockedClient("p256")
			w.eventually("the lease to end", func() bool {
				failure, refused := c.call(signRequest("p256")).(*wire.Error)
				return refused && failure.Code == wire.CodeNotUnlocked
			})
			if refused := w.audit.of(audit.KindRefused); refused[len(refused)-1].Outcome != "lease_ended" {
				t.Errorf("recorded %+v", refused)
			}
			want[*wire.UnlockReply](c, c.call(unlockRequest("p256", passphrase)))
		})
	}
}
