package signer

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/audit"
	"chancery/token"
	"chancery/tunnel/wire"
)

// witness writes down what a server tells its observer.
type witness struct {
	mu   sync.Mutex
	seen []string
}

func (w *witness) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen = append(w.seen, fmt.Sprintf(format, args...))
}

// count returns how often something was told.
func (w *witness) count(what string) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, seen := range w.seen {
		if seen == what {
			n++
		}
	}
	return n
}

func (w *witness) Answered(kind string, code wire.Code, took time.Duration) {
	w.note("answered %s %s %t", kind, code, took > 0)
}

func (w *witness) Signed(algorithm token.Algorithm, scheme wire.Scheme, took time.Duration, err error) {
	w.note("signed %s %q %t %v", algorithm, scheme, took > 0, err != nil)
}

func (w *witness) Derived(waited, took time.Duration) { w.note("derived %t %t", waited >= 0, took > 0) }
func (w *witness) Refused(reason Refusal)             { w.note("refused %s", reason) }

func TestAClientThatHangsUpIsNoFailureOfTheServer(t *testing.T) {
	w, seen := observedWorld(t)
	c := w.unlockedClient("p256")
	w.keys[token.P256].before(waitFor(make(chan struct{})))
	c.send(signRequest("p256"))
	w.eventually("the request to be at the token", func() bool { return w.keys[token.P256].busy.Load() == 1 })
	c.cut()
	w.awaitLog("session ends")
	if n := seen.count("answered sign session_ended true"); n != 1 {
		t.Errorf("%d requests are counted: %q", n, seen.seen)
	}
	if r := w.one(audit.KindRefused); r.Outcome != "session_ended" {
		t.Errorf("recorded %+v", r)
	}
	if logs := w.logs.String(); strings.Contains(logs, "level=ERROR") || !strings.Contains(logs, `level=INFO msg="request given up with its session"`) {
		t.Errorf("logged\n%s", logs)
	}
}

func observedWorld(t *testing.T) (*world, *witness) {
	t.Helper()
	seen := &witness{}
	return newWorld(t, func(_ *world, c *Config) { c.Observer = seen }), seen
}

func TestObserverHearsOfEachAnswer(t *testing.T) {
	w, seen := observedWorld(t)
	c := w.unlockedClient("p256", "rsa2048")
	want[*wire.SignReply](c, c.call(signRequest("p256")))
	pss := signRequest("rsa2048")
	pss.Scheme = wire.SchemePSS
	want[*wire.SignReply](c, c.call(pss))
	want[*wire.SignAllReply](c, c.call(&wire.SignAll{Key: "p256", Digests: slices.Repeat([]wire.Digest{digestOf(wire.SHA256, "text")}, 3)}))
	want[*wire.Error](c, c.call(signRequest("p384")))
	want[*wire.Error](c, c.call(unlockRequest("p384", "wrong-passphrase")))
	for what, times := range map[string]int{
		"answered sign  true":                                   2,
		"answered sign_all  true":                               1,
		"answered sign not_unlocked true":                       1,
		"answered unlock  true":                                 2,
		"answered unlock wrong_passphrase true":                 1,
		"derived true true":                                     3,
		`signed ` + string(token.P256) + ` "" true false`:       4,
		`signed ` + string(token.RSA2048) + ` "pss" true false`: 1,
	} {
		w.eventually("the observer to hear: "+what, func() bool { return seen.count(what) >= times })
		if n := seen.count(what); n != times {
			t.Errorf("heard %d times, not %d: %s", n, times, what)
		}
	}
}

func TestObserverHearsOfRefusedSessions(t *testing.T) {
	w, seen := observedWorld(t)
	for name, reason := range map[string]Refusal{"eve": RefusedUnknownUser, "mallory": RefusedDisabledUser} {
		w.connect(name, true)
		w.eventually("the observer to hear of "+name, func() bool { return seen.count("refused "+string(reason)) == 1 })
	}
}

func TestAlive(t *testing.T) {
	idle, err := New(Config{Store: &fakeStore{}, Open: (&fakeToken{}).open, Audit: &fakeAudit{}})
	if err != nil {
		t.Fatal(err)
	}
	if err := idle.Alive(); !errors.Is(err, ErrNotServing) {
		t.Errorf("before Serve: %v", err)
	}
	w := newWorld(t)
	w.awaitToken(StateReady)
	if err := w.server.Alive(); err != nil {
		t.Error(err)
	}
	if err := w.server.StoreReadable(t.Context()); err != nil {
		t.Error(err)
	}
	status := w.server.Status()
	if status.Store.Good.IsZero() || status.Store.Error != "" {
		t.Errorf("the store: %+v", status.Store)
	}
	if err := moving(time.Now(), time.Second); err != nil {
		t.Error(err)
	}
	if err := moving(time.Now().Add(-Stuck-2*time.Second), time.Second); err == nil {
		t.Error("a poll that hangs counts as alive")
	}
}
