package signer

import (
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
