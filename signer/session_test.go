package signer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"chancery/token"
	"chancery/tunnel/wire"
)

// waitFor is a hook that blocks until release is closed or the request ends.
func waitFor(release <-chan struct{}) func(context.Context, []byte) error {
	return func(ctx context.Context, _ []byte) error {
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func TestRepliesOvertakeUnderChancery1(t *testing.T) {
	w := newWorld(t)
	c := w.unlockedClient("p256", "ed25519")
	release := make(chan struct{})
	w.keys[token.P256].before(waitFor(release))
	slow := c.send(signRequest("p256"))
	quick := c.send(&wire.Sign{Key: "ed25519", Message: []byte("text")})
	if got := c.receive(); got.ID != quick {
		t.Errorf("reply %d came first, want %d", got.ID, quick)
	}
	close(release)
	if got := c.receive(); got.ID != slow {
		t.Errorf("reply %d came last, want %d", got.ID, slow)
	}
}

func TestUnknownUsersAreClosedWithoutAnAnswer(t *testing.T) {
	w := newWorld(t)
	w.awaitToken(StateReady)
	for name, logged := range map[string]string{"eve": "no such user", "ALICE": "no such user", "": "no such user", "mallory": "disabled"} {
		w.connect(name, true).closed()
		w.awaitLog(logged)
	}
}

func TestBadFramesEndTheirSessionAlone(t *testing.T) {
	w := newWorld(t)
	healthy := w.unlockedClient("p256")
	good, _ := w.connect("alice", true).encode(nil, &wire.WhoAmI{})
	for name, bad := range map[string]struct {
		bytes    []byte
		extended bool
	}{
		"garbage":           {wire.AppendFrame(nil, []byte("garbage")), true},
		"HTTP":              {[]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), true},
		"oversize":          {binary.BigEndian.AppendUint64(nil, wire.MaxRequestExtended+1), true},
		"oversize, plain":   {binary.BigEndian.AppendUint64(nil, wire.MaxRequest+1), false},
		"bad UTF-8":         {wire.AppendFrame(nil, []byte("\"\xff\"")), false},
		"cut in the header": {good[:4], true},
		"cut in the frame":  {good[:len(good)-1], true},
	} {
		t.Run(name, func(t *testing.T) {
			c := w.connect("alice", bad.extended)
			c.write(bad.bytes)
			if strings.HasPrefix(name, "cut") {
				c.conn.Close()
			} else {
				c.closed()
			}
			want[*wire.WhoAmIReply](healthy, healthy.call(&wire.WhoAmI{}))
		})
	}
	w.eventually("the bad sessions to be gone", func() bool { return w.server.Status().Sessions <= 2 })
}

func TestUnsupportedRequestsKeepTheConnection(t *testing.T) {
	w := newWorld(t)
	c := w.connect("alice", true)
	c.write(wire.AppendFrame(nil, []byte(`{"session_id":"00000000-0000-0000-0000-000000000000","request_id":77,"request":{"reboot":{}}}`)))
	got := c.receive()
	want[*wire.UnsupportedReply](c, got.Body)
	if got.ID != 77 || got.Session != c.session {
		t.Errorf("answer %d of %s", got.ID, got.Session)
	}
	if user := want[*wire.WhoAmIReply](c, c.call(&wire.WhoAmI{})).User; user != "alice" {
		t.Errorf("user %q", user)
	}
}

func TestTheEmptyFrameLetsRepliesOut(t *testing.T) {
	for name, end := range map[string]func(*client){
		"empty frame": func(c *client) { c.write(wire.AppendDone(nil)) },
		"shut-down":   nil,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			c := w.unlockedClient("p256")
			release := make(chan struct{})
			w.keys[token.P256].before(waitFor(release))
			c.send(signRequest("p256"))
			w.eventually("the request to arrive", func() bool { return w.keys[token.P256].busy.Load() == 1 })
			if end != nil {
				end(c)
			} else {
				w.stop()
			}
			close(release)
			want[*wire.SignReply](c, c.receive().Body)
			c.closed()
		})
	}
}

func TestShutDownCancelsWhatDoesNotFinish(t *testing.T) {
	w := newWorld(t, func(_ *world, cfg *Config) { cfg.DrainTimeout = 20 * time.Millisecond })
	c := w.unlockedClient("p256")
	w.keys[token.P256].before(waitFor(nil))
	c.send(signRequest("p256"))
	w.eventually("the request to arrive", func() bool { return w.keys[token.P256].busy.Load() == 1 })
	w.stop()
	if got := want[*wire.Error](c, c.receive().Body); got.Code != wire.CodeShuttingDown || got.Retry != wire.RetryReconnect {
		t.Errorf("answer %+v", got)
	}
	c.closed()
}

func TestBackPressure(t *testing.T) {
	for name, limit := range map[string]func(*Config){
		"session": func(cfg *Config) { cfg.SessionRequests = 4 },
		"server":  func(cfg *Config) { cfg.ServerRequests = 4 },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, func(_ *world, cfg *Config) { limit(cfg) })
			c := w.unlockedClient("p256")
			release := make(chan struct{})
			w.keys[token.P256].before(waitFor(release))
			const requests = 40
			sent := make(chan error, 1)
			go func() { sent <- c.sendMany(requests, signRequest("p256")) }()
			w.eventually("the limit to be reached", func() bool { return w.keys[token.P256].busy.Load() == 4 })
			select {
			case err := <-sent:
				t.Errorf("the server read everything, %v", err)
			case <-time.After(50 * time.Millisecond):
			}
			if got := w.server.Status().InFlight; got > 4 {
				t.Errorf("%d requests in flight", got)
			}
			close(release)
			seen := make(map[uint64]bool)
			for range requests {
				got := c.receive()
				want[*wire.SignReply](c, got.Body)
				seen[got.ID] = true
			}
			if err := <-sent; err != nil || len(seen) != requests {
				t.Errorf("%d different replies, %v", len(seen), err)
			}
			if got := w.keys[token.P256].maxBusy.Load(); got > 4 {
				t.Errorf("%d signatures at once", got)
			}
		})
	}
}

// sendMany writes frame by frame, so that a pipe takes only what the server reads.
func (c *client) sendMany(n int, body wire.RequestBody) error {
	for range n {
		frame, _ := c.encode(nil, body)
		if _, err := c.conn.Write(frame); err != nil {
			return err
		}
	}
	return nil
}

func TestAClientThatNeverReadsIsCutOff(t *testing.T) {
	for _, extended := range []bool{false, true} {
		t.Run(fmt.Sprint("extended ", extended), func(t *testing.T) {
			w := newWorld(t, func(_ *world, cfg *Config) { cfg.WriteTimeout = 50 * time.Millisecond; cfg.ServerRequests = 8 })
			healthy := w.unlockedClient("p256")
			c := w.connect("alice", extended)
			if err := c.sendMany(1000, &wire.WhoAmI{}); err == nil {
				t.Error("the server took 1000 requests whose replies nobody reads")
			}
			w.eventually("the session to be gone", func() bool { return w.server.Status().Sessions == 1 })
			for range 20 {
				want[*wire.SignReply](healthy, healthy.call(signRequest("p256")))
			}
		})
	}
}

// TestListsThatNobodyReadsAreBounded asks for large lists on several connections and reads none.
func TestListsThatNobodyReadsAreBounded(t *testing.T) {
	for _, extended := range []bool{false, true} {
		t.Run(fmt.Sprint("extended ", extended), func(t *testing.T) {
			w := newWorld(t, func(w *world, cfg *Config) {
				cfg.WriteTimeout = time.Second
				cfg.SessionRequests, cfg.ServerRequests = 64, 64
				w.store.keys[3].Certificates[0].Armored = strings.Repeat("x", 500<<10) // p256: a list weighs 32
			})
			idle := make([]*client, 3)
			for i := range idle {
				idle[i] = w.connect("alice", extended)
				idle[i].send(&wire.ListKeys{})
			}
			w.eventually("room for no third list", func() bool { return w.server.Status().Queued == 1 })
			w.eventually("the sessions to be cut off", func() bool { return w.server.Status().Sessions == 0 })
			c := w.connect("alice", extended)
			for range 5 {
				want[*wire.ListKeysReply](c, c.call(&wire.ListKeys{}))
			}
		})
	}
}

func TestTheListIsPutTogetherOncePerSnapshot(t *testing.T) {
	w := newWorld(t)
	w.awaitToken(StateReady)
	first := w.server.catalogue.Load()
	once, again := first.keys(), first.keys()
	if &once[1].key.Certificates[0] != &again[1].key.Certificates[0] {
		t.Error("the keys are described anew for each list")
	}
	c := w.connect("alice", true)
	before := want[*wire.ListKeysReply](c, c.call(&wire.ListKeys{})).Keys
	w.change(func(s *fakeStore) { s.keys[0].Disabled = true })
	after := want[*wire.ListKeysReply](c, c.call(&wire.ListKeys{})).Keys
	if len(after) != len(before)-1 {
		t.Errorf("%d keys are listed, then %d", len(before), len(after))
	}
}

func TestDeadlinesOfReading(t *testing.T) {
	t.Run("idle", func(t *testing.T) {
		w := newWorld(t, func(_ *world, cfg *Config) { cfg.IdleTimeout = 20 * time.Millisecond })
		w.connect("alice", true).closed()
		w.awaitLog("idle for too long")
	})
	t.Run("within a frame", func(t *testing.T) {
		w := newWorld(t, func(_ *world, cfg *Config) { cfg.FrameTimeout = 20 * time.Millisecond })
		c := w.connect("alice", true)
		c.write([]byte{0, 0})
		c.closed()
		w.awaitLog("did not arrive in time")
	})
}

func TestARequestHasADeadline(t *testing.T) {
	w := newWorld(t, func(_ *world, cfg *Config) { cfg.RequestTimeout = 2 * time.Second })
	c := w.unlockedClient("p256")
	w.keys[token.P256].before(waitFor(nil))
	if got := c.refused(signRequest("p256"), wire.CodeTokenBusy); got.Retry != wire.RetryLater {
		t.Errorf("advice %+v", got)
	}
}

func TestAPanicIsInternalAndStaysInTheLog(t *testing.T) {
	w := newWorld(t)
	c := w.unlockedClient("p256")
	w.keys[token.P256].before(func(context.Context, []byte) error { panic("the token driver lost its mind") })
	for _, request := range []wire.RequestBody{signRequest("p256"), &wire.SignAll{Key: "p256", Digests: []wire.Digest{signRequest("p256").Digest}}} {
		if got := c.refused(request, wire.CodeInternal); strings.Contains(got.Message, "mind") {
			t.Errorf("the peer learns %q", got.Message)
		}
	}
	w.awaitLog("lost its mind")
	w.awaitLog("fake_test.go")
	want[*wire.WhoAmIReply](c, c.call(&wire.WhoAmI{}))
}

func TestAnUnknownFailureIsInternal(t *testing.T) {
	w := newWorld(t)
	c := w.unlockedClient("p256")
	w.keys[token.P256].before(func(context.Context, []byte) error { return errors.New("CKR_DEVICE_ERROR at 0xdeadbeef") })
	if got := c.refused(signRequest("p256"), wire.CodeInternal); strings.Contains(got.Message, "0xdeadbeef") {
		t.Errorf("the peer learns %q", got.Message)
	}
	w.awaitLog("0xdeadbeef")
}

func TestClientsBeyondTheLimitWait(t *testing.T) {
	w := newWorld(t, func(_ *world, cfg *Config) { cfg.MaxSessions = 1 })
	first := w.connect("alice", true)
	want[*wire.WhoAmIReply](first, first.call(&wire.WhoAmI{}))
	near, far := net.Pipe()
	defer near.Close()
	select {
	case w.conns <- &fakeConn{Conn: far, name: "bob"}:
		t.Error("a second client was accepted")
	case <-time.After(50 * time.Millisecond):
	}
	first.write(wire.AppendDone(nil))
	if _, err := io.ReadAll(first.conn); err != nil {
		t.Error(err)
	}
	second := w.connect("bob", true)
	want[*wire.WhoAmIReply](second, second.call(&wire.WhoAmI{}))
}

func TestAcceptErrorsAreTriedAgain(t *testing.T) {
	failures := 3
	w := newWorld(t)
	again := func(ctx context.Context) (Conn, error) {
		if failures--; failures >= 0 {
			return nil, errors.New("the bridge is away")
		}
		return w.accept(ctx)
	}
	server, err := New(Config{Store: w.store, Open: w.token.open, Audit: w.audit, Log: w.server.log})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, again) }()
	w.awaitLog("the bridge is away")
	w.eventually("the failures to be over", func() bool { return strings.Count(w.logs.String(), "the bridge is away") == 3 })
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestServeNeedsAReadableStore(t *testing.T) {
	store := &fakeStore{fails: errors.New("database is locked")}
	server, err := New(Config{Store: store, Open: (&fakeToken{}).open, Audit: &fakeAudit{}})
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Serve(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "database is locked") {
		t.Errorf("Serve = %v", err)
	}
	if _, err := New(Config{}); err == nil {
		t.Error("New accepts a configuration without a store")
	}
}
