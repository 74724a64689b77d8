package signer

import (
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chancery/audit"
	"chancery/token"
	"chancery/tunnel/wire"
	"chancery/users"
)

func TestASessionBeyondTheLimitIsToldToComeBack(t *testing.T) {
	for _, extended := range []bool{false, true} {
		t.Run(fmt.Sprint("extended ", extended), func(t *testing.T) {
			w := newWorld(t, func(_ *world, cfg *Config) { cfg.MaxSessionsPerUser = 2 })
			w.awaitToken(StateReady)
			first, second := w.connect("alice", true), w.connect("alice", extended)
			want[*wire.WhoAmIReply](first, first.call(&wire.WhoAmI{}))
			want[*wire.WhoAmIReply](second, second.call(&wire.WhoAmI{}))
			third := w.connect("alice", extended)
			for _, request := range []wire.RequestBody{&wire.WhoAmI{}, unlockRequest("p256", passphrase), signRequest("p256")} {
				got := want[*wire.Error](third, third.call(request))
				if extended && (got.Code != wire.CodeBusy || got.Retry != wire.RetryLater || got.RetryAfter == 0 || !strings.Contains(got.Message, "2 sessions")) {
					t.Errorf("answer %+v", got)
				}
			}
			if r := w.audit.of(audit.KindRefused)[0]; r.Outcome != "too_many_sessions" {
				t.Errorf("recorded %+v", r)
			}
			bob := w.connect("bob", true)
			want[*wire.WhoAmIReply](bob, bob.call(&wire.WhoAmI{}))
			second.conn.Close()
			w.eventually("the third to be let in", func() bool {
				_, served := third.call(&wire.WhoAmI{}).(*wire.WhoAmIReply)
				return served
			})
			fourth := w.connect("alice", true)
			fourth.refused(&wire.WhoAmI{}, wire.CodeBusy)
		})
	}
}

func TestSessionsFarBeyondTheLimitAreClosed(t *testing.T) {
	w := newWorld(t, func(_ *world, cfg *Config) { cfg.MaxSessionsPerUser, cfg.FrameTimeout = 1, 200*time.Millisecond })
	c := w.connect("alice", true)
	want[*wire.WhoAmIReply](c, c.call(&wire.WhoAmI{}))
	for range excessSessions {
		w.connect("alice", true).refused(&wire.WhoAmI{}, wire.CodeBusy)
	}
	w.connect("alice", true).closed()
	w.eventually("silent ones to be closed soon", func() bool { return w.server.Status().Sessions == 1 })
	want[*wire.WhoAmIReply](c, c.call(&wire.WhoAmI{}))
}

func TestTheRateOfOneUserIsLimited(t *testing.T) {
	w := newWorld(t, func(_ *world, cfg *Config) { cfg.UserRate = 10 })
	w.awaitToken(StateReady)
	bob := w.connect("bob", true)
	c := w.connect("alice", true)
	var failure *wire.Error
	for i := 0; failure == nil; i++ {
		if i > 1000 {
			t.Fatal("the rate is not limited")
		}
		failure, _ = c.call(&wire.WhoAmI{}).(*wire.Error)
	}
	if failure.Code != wire.CodeBusy || failure.RetryAfter <= 0 || failure.RetryAfter > time.Second || !strings.Contains(failure.Message, "10 times a second") {
		t.Errorf("answer %+v", failure)
	}
	c.conn.Close()
	c = w.connect("alice", true) // which renews nothing
	busy := 0
	for range 20 {
		if _, refused := c.call(&wire.WhoAmI{}).(*wire.Error); refused {
			busy++
		}
	}
	if busy == 0 {
		t.Error("a new connection has a rate of its own")
	}
	want[*wire.WhoAmIReply](bob, bob.call(&wire.WhoAmI{}))
	time.Sleep(failure.RetryAfter)
	w.eventually("the rate to recover", func() bool {
		_, served := c.call(&wire.WhoAmI{}).(*wire.WhoAmIReply)
		return served
	})
}

func TestTheRateHoldsForRequestsThatTheServerDoesNotKnow(t *testing.T) {
	w := newWorld(t, func(_ *world, cfg *Config) { cfg.UserRate = 1 })
	c := w.connect("alice", true)
	frame := wire.AppendFrame(nil, fmt.Appendf(nil, `{"session_id":%q,"request_id":7,"request":{"reboot":{}}}`, c.session))
	const requests = 20
	busy := 0
	for range requests {
		c.write(frame)
		response := c.receive()
		if failure, refused := response.Body.(*wire.Error); refused && failure.Code == wire.CodeBusy && failure.RetryAfter > 0 && response.ID == 7 {
			busy++
		}
	}
	if busy == 0 {
		t.Errorf("%d requests were answered at once", requests)
	}
}

// A plain version 2 peer has no word for coming back, so that it waits.
func TestVersion2PeersWaitForTheirRate(t *testing.T) {
	w := newWorld(t, func(_ *world, cfg *Config) { cfg.UserRate = 20 })
	c := w.connect("alice", false)
	for range 45 {
		want[*wire.WhoAmIReply](c, c.call(&wire.WhoAmI{}))
	}
}

func TestRequestsInFlightOfOneUserAreLimited(t *testing.T) {
	w := newWorld(t, func(_ *world, cfg *Config) { cfg.SessionRequests, cfg.UserRequests = 4, 4 })
	first := w.unlockedClient("p256")
	second := w.unlockedClient("p256")
	release := make(chan struct{})
	w.keys[token.P256].before(waitFor(release))
	for range 4 {
		first.send(signRequest("p256"))
	}
	w.eventually("the requests to arrive", func() bool { return w.keys[token.P256].busy.Load() == 4 })
	if got := second.refused(signRequest("p256"), wire.CodeBusy); got.RetryAfter <= 0 || !strings.Contains(got.Message, "under way") {
		t.Errorf("answer %+v", got)
	}
	bob := w.connect("bob", true)
	want[*wire.WhoAmIReply](bob, bob.call(&wire.WhoAmI{}))
	close(release)
	for range 4 {
		want[*wire.SignReply](first, first.receive().Body)
	}
	want[*wire.SignReply](second, second.call(signRequest("p256")))
}

// emptyMessages is a request that is short for what it asks for.
func emptyMessages(key string, n int) *wire.SignAll {
	batch := &wire.SignAll{Key: key, Messages: make([][]byte, n)}
	for i := range batch.Messages {
		batch.Messages[i] = []byte{}
	}
	return batch
}

func TestSignaturesOfABatchCountAsRequestsInFlight(t *testing.T) {
	w := newWorld(t, func(_ *world, cfg *Config) { cfg.SessionRequests, cfg.UserRequests = 4, 4 })
	first, second := w.unlockedClient("ed25519"), w.connect("alice", true)
	release := make(chan struct{})
	w.keys[token.Ed25519].before(waitFor(release))
	first.send(emptyMessages("ed25519", 4*64)) // less than 1 KiB of text
	w.eventually("the batch to be at the token", func() bool { return w.keys[token.Ed25519].busy.Load() > 0 })
	second.refused(&wire.WhoAmI{}, wire.CodeBusy)
	close(release)
	want[*wire.SignAllReply](first, first.receive().Body)
	want[*wire.WhoAmIReply](second, second.call(&wire.WhoAmI{}))
}

func TestABatchOfTooManyIsToldToAskForFewer(t *testing.T) {
	w := newWorld(t)
	c := w.unlockedClient("p256")
	c.refused(emptyMessages("p256", wire.MaxBatch), wire.CodeAlgorithmMismatch)
	id := c.send(emptyMessages("p256", wire.MaxBatch+1))
	response := c.receive()
	got := want[*wire.Error](c, response.Body)
	if got.Code != wire.CodeBatchTooLarge || response.ID != id || !strings.Contains(got.Message, fmt.Sprint(wire.MaxBatch)) {
		t.Errorf("answer %d: %+v", response.ID, got)
	}
	if r := w.audit.of(audit.KindRefused); r[len(r)-1].Outcome != "batch_too_large" {
		t.Errorf("recorded %+v", r)
	}
	want[*wire.WhoAmIReply](c, c.call(&wire.WhoAmI{}))
}

// busiest counts how many passphrases are derived at once.
type busiest struct {
	nobody
	server *Server
	most   atomic.Int64
}

func (b *busiest) Derived(time.Duration, time.Duration) {
	b.most.Store(max(b.most.Load(), int64(len(b.server.derivations))))
}

func TestAFloodOfUnlocksStarvesNobody(t *testing.T) {
	const guessers, sessions, each = 4, 3, 3
	watch := &busiest{}
	w := newWorld(t, func(w *world, cfg *Config) {
		cfg.MaxDerivations, cfg.Observer = 2, watch
		for i := range guessers {
			id := int64(100 + i)
			w.store.users = append(w.store.users, users.User{ID: id, Name: fmt.Sprint("guesser ", i)})
			g := w.grant(4, tokenPIN)
			g.ID, g.UserID = id, id
			w.store.grants = append(w.store.grants, g)
		}
	})
	watch.server = w.server
	alice := w.unlockedClient("p256")
	var group sync.WaitGroup
	var conns []net.Conn
	var answered atomic.Int64
	for i := range guessers {
		for range sessions {
			c := w.connect(fmt.Sprint("guesser ", i), true)
			conns = append(conns, c.conn)
			group.Go(func() {
				for range each {
					frame, _ := c.encode(nil, unlockRequest("p256", "wrong-passphrase"))
					if _, err := c.conn.Write(frame); err != nil {
						return
					}
				}
				for range each {
					if _, err := c.frames.Next(); err != nil {
						return
					}
					answered.Add(1)
				}
			})
		}
	}
	w.eventually("the flood to begin", func() bool { return w.server.Status().InFlight > guessers })
	for range 50 {
		want[*wire.SignReply](alice, alice.call(signRequest("p256")))
	}
	group.Wait()
	if got := answered.Load(); got != guessers*sessions*each {
		t.Errorf("%d unlocks were answered of %d", got, guessers*sessions*each)
	}
	if most := watch.most.Load(); most < 1 || most > 2 {
		t.Errorf("%d passphrases were derived at once", most)
	}
	for _, conn := range conns {
		conn.Close()
	}
}
