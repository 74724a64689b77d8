package signer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"chancery/audit"
	"chancery/token"
	"chancery/tunnel/wire"
	"chancery/users"
)

// keyed returns a request to sign with p256 under a new idempotency key.
func keyed(text string) *wire.Sign {
	return &wire.Sign{Key: "p256", Digest: digestOf(wire.SHA256, text), Terms: wire.Terms{IdempotencyKey: uuid.New()}}
}

// signedOnce asserts how often the token signed, and that the records say the same.
func (w *world) signedOnce(keys ...uuid.UUID) {
	w.t.Helper()
	if n := w.keys[token.P256].signed.Load(); int(n) != len(keys) {
		w.t.Errorf("the token signed %d times, not %d", n, len(keys))
	}
	records := w.audit.of(audit.KindSign)
	if len(records) != len(keys) {
		w.t.Fatalf("%d records, not %d", len(records), len(keys))
	}
	for i, key := range keys {
		if records[i].IdempotencyKey != key.String() {
			w.t.Errorf("record %d has the idempotency key %q", i, records[i].IdempotencyKey)
		}
	}
}

func TestAWaitingRepetitionIsNotAnsweredByAnotherKey(t *testing.T) {
	w := newWorld(t)
	first, other := w.unlockedClient("p256", "p384"), w.unlockedClient("p256", "p384")
	arrived, release := w.holdSigning()
	request := keyed("text")
	first.send(request)
	<-arrived
	other.send(request)
	w.eventually("the repetition to wait", func() bool { return w.server.Status().InFlight == 2 })
	time.Sleep(20 * time.Millisecond) // for it to have looked at the key
	gone := w.keyID("p256")
	w.change(func(s *fakeStore) { // the key is deleted, and another gets its name
		s.keys = slices.DeleteFunc(slices.Clone(s.keys), func(k users.Key) bool { return k.ID == gone })
		s.grants = slices.DeleteFunc(slices.Clone(s.grants), func(g users.Grant) bool { return g.KeyID == gone })
		s.keys[slices.IndexFunc(s.keys, func(k users.Key) bool { return k.Name == "p384" })].Name = "p256"
	})
	release()
	if got := want[*wire.Error](other, other.receive().Body); got.Code != wire.CodeIdempotencyConflict {
		t.Errorf("answer %+v", got)
	}
}

// holdSigning lets the token's first signature wait until the returned function is called.
func (w *world) holdSigning() (reached <-chan struct{}, release func()) {
	arrived, gate := make(chan struct{}), make(chan struct{})
	var held atomic.Bool
	w.keys[token.P256].before(func(ctx context.Context, _ []byte) error {
		if !held.CompareAndSwap(false, true) {
			return nil
		}
		close(arrived)
		select {
		case <-gate:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", token.ErrBusy, ctx.Err())
		}
	})
	return arrived, func() { close(gate) }
}

func signatureOf(c *client, body wire.ResponseBody) []byte {
	c.t.Helper()
	return want[*wire.SignReply](c, body).Signature.Bytes
}

func TestARepetitionGetsTheSameSignature(t *testing.T) {
	w := newWorld(t)
	request := keyed("text")
	c := w.unlockedClient("p256")
	first := signatureOf(c, c.call(request))
	if again := signatureOf(c, c.call(request)); !bytes.Equal(again, first) {
		t.Error("another signature on the same connection")
	}
	other := w.unlockedClient("p256")
	patient := *request
	patient.Deadline = time.Second // says nothing about what is signed
	if again := signatureOf(other, other.call(&patient)); !bytes.Equal(again, first) {
		t.Error("another signature on another connection")
	}
	w.signedOnce(request.IdempotencyKey)
	next := keyed("text")
	if signature := signatureOf(other, other.call(next)); bytes.Equal(signature, first) {
		t.Error("another key gets the same signature")
	}
	w.signedOnce(request.IdempotencyKey, next.IdempotencyKey)
}

func TestARepeatedBatchGetsTheSameSignatures(t *testing.T) {
	w := newWorld(t)
	request := &wire.SignAll{Key: "p256", Terms: wire.Terms{IdempotencyKey: uuid.New()}}
	for i := range 10 {
		request.Digests = append(request.Digests, digestOf(wire.SHA256, fmt.Sprint(i)))
	}
	c := w.unlockedClient("p256")
	first := want[*wire.SignAllReply](c, c.call(request)).Signatures
	again := want[*wire.SignAllReply](c, c.call(request)).Signatures
	for i := range first {
		if !bytes.Equal(first[i].Bytes, again[i].Bytes) {
			t.Errorf("signature %d is another one", i)
		}
	}
	if n := w.keys[token.P256].signed.Load(); n != 10 || len(w.audit.of(audit.KindSign)) != 1 {
		t.Errorf("%d signatures, %d records", n, len(w.audit.of(audit.KindSign)))
	}
}

func TestAKeyIsNotForAnotherRequest(t *testing.T) {
	w := newWorld(t)
	c := w.unlockedClient("p256", "p384")
	request := keyed("text")
	first := signatureOf(c, c.call(request))
	terms := request.Terms
	for name, other := range map[string]wire.RequestBody{
		"digest":  &wire.Sign{Key: "p256", Digest: digestOf(wire.SHA256, "other"), Terms: terms},
		"hash":    &wire.Sign{Key: "p256", Digest: digestOf(wire.SHA512, "text"), Terms: terms},
		"key":     &wire.Sign{Key: "p384", Digest: digestOf(wire.SHA256, "text"), Terms: terms},
		"kind":    &wire.SignAll{Key: "p256", Digests: []wire.Digest{request.Digest}, Terms: terms},
		"spelled": &wire.Sign{Key: "p256", Digest: wire.Digest{Algorithm: wire.SHA256, Hex: string(bytes.ToUpper([]byte(request.Digest.Hex)))}, Terms: terms},
	} {
		t.Run(name, func(*testing.T) { c.refused(other, wire.CodeIdempotencyConflict) })
	}
	if again := signatureOf(c, c.call(request)); !bytes.Equal(again, first) {
		t.Error("the conflicts changed what is remembered")
	}
	w.signedOnce(request.IdempotencyKey)
	refused := w.audit.of(audit.KindRefused)
	if len(refused) != 5 || refused[0].IdempotencyKey != request.IdempotencyKey.String() || refused[0].Outcome != string(wire.CodeIdempotencyConflict) {
		t.Errorf("refusals are recorded as %+v", refused)
	}
}

func TestAKeyIsItsUsersOwn(t *testing.T) {
	cfg := Config{}.withDefaults()
	r := newRepetitions(&cfg)
	key := uuid.New()
	for user := range int64(3) {
		if _, first, err := r.begin(user, key, sha256.Sum256([]byte{byte(user)})); err != nil || !first {
			t.Errorf("user %d: first %v, %v", user, first, err)
		}
	}
}

func TestANameThatPassedToAnotherKeyDoesNotLendItsSignature(t *testing.T) {
	w := newWorld(t)
	c := w.unlockedClient("p256")
	request := keyed("text")
	signatureOf(c, c.call(request))
	w.change(func(s *fakeStore) {
		for i := range s.keys {
			switch s.keys[i].Name {
			case "p256":
				s.keys[i].Name = "retired"
			case "p384":
				s.keys[i].Name = "p256"
			}
		}
	})
	c = w.unlockedClient("p256")
	c.refused(request, wire.CodeIdempotencyConflict)
}

func TestARepetitionIsAuthorisedAnew(t *testing.T) {
	w := newWorld(t)
	c := w.unlockedClient("p256")
	request := keyed("text")
	signatureOf(c, c.call(request))
	locked := w.connect("alice", true)
	locked.refused(request, wire.CodeNotUnlocked)
	w.change(func(s *fakeStore) { s.keys[indexOf(s, "p256")].Disabled = true })
	c.refused(request, wire.CodeKeyDisabled)
	w.change(func(s *fakeStore) { s.keys[indexOf(s, "p256")].Disabled = false })
	c.refused(request, wire.CodeNotUnlocked)
	want[*wire.UnlockReply](c, c.call(unlockRequest("p256", passphrase)))
	signatureOf(c, c.call(request))
	w.change(func(s *fakeStore) { s.grants = nil })
	c.refused(request, wire.CodeNoSuchKey)
	w.signedOnce(request.IdempotencyKey)
}

func TestRevocationMeetsARepetitionThatWaits(t *testing.T) {
	w := newWorld(t)
	request := keyed("text")
	first, second := w.unlockedClient("p256"), w.unlockedClient("p256")
	reached, release := w.holdSigning()
	first.send(request)
	<-reached
	second.send(request)
	w.eventually("the repetition to arrive", func() bool { return w.server.Status().InFlight == 2 })
	w.change(func(s *fakeStore) { s.keys[indexOf(s, "p256")].Disabled = true })
	release()
	if got := want[*wire.Error](second, second.receive().Body); got.Code != wire.CodeKeyDisabled {
		t.Errorf("answer %+v", got)
	}
}

func indexOf(s *fakeStore, name string) int {
	for i := range s.keys {
		if s.keys[i].Name == name {
			return i
		}
	}
	panic(name)
}

func TestARepetitionWaitsForTheFirst(t *testing.T) {
	w := newWorld(t)
	request := keyed("text")
	clients := []*client{w.unlockedClient("p256"), w.unlockedClient("p256"), w.unlockedClient("p256")}
	reached, release := w.holdSigning()
	clients[0].send(request)
	<-reached
	for _, c := range clients[1:] {
		c.send(request)
	}
	w.eventually("the repetitions to arrive", func() bool { return w.server.Status().InFlight == 3 })
	conflict := keyed("other")
	conflict.Terms = request.Terms
	asking := w.unlockedClient("p256")
	asking.refused(conflict, wire.CodeIdempotencyConflict)
	release()
	var signature []byte
	for _, c := range clients {
		got := signatureOf(c, c.receive().Body)
		if signature != nil && !bytes.Equal(got, signature) {
			t.Error("the signatures differ")
		}
		signature = got
	}
	w.signedOnce(request.IdempotencyKey)
}

func TestAKeyedRequestOutlivesItsConnection(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(*client)
	}{
		{"cut", func(c *client) { c.conn.Close() }},
		{"malformed", func(c *client) { c.write(wire.AppendFrame(nil, []byte("{"))) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			first, second := w.unlockedClient("p256"), w.unlockedClient("p256")
			request, plain := keyed("text"), signRequest("p256")
			reached, release := w.holdSigning()
			first.send(request)
			<-reached
			c.end(first)
			time.Sleep(10 * time.Millisecond) // for a cancellation to arrive, if there were one
			second.send(request)
			release()
			signatureOf(second, second.receive().Body)
			w.signedOnce(request.IdempotencyKey)
			signatureOf(second, second.call(plain))
		})
	}
}

func TestAPlainRequestEndsWithItsConnection(t *testing.T) {
	w := newWorld(t)
	c := w.unlockedClient("p256")
	reached, release := w.holdSigning()
	defer release()
	c.send(signRequest("p256"))
	<-reached
	c.write(wire.AppendFrame(nil, []byte("{")))
	w.eventually("the session to end", func() bool { return w.server.Status().Sessions == 0 })
	if n := w.keys[token.P256].signed.Load(); n != 0 {
		t.Errorf("%d signatures", n)
	}
}

func TestAKeyedRequestEndsWithTheServer(t *testing.T) {
	w := newWorld(t, func(_ *world, cfg *Config) { cfg.DrainTimeout, cfg.RequestTimeout = time.Millisecond, time.Hour })
	c := w.unlockedClient("p256")
	reached, release := w.holdSigning()
	defer release()
	c.send(keyed("text"))
	<-reached
	c.conn.Close()
	w.stop() // newWorld asserts that Serve returns
}

func TestAFailureIsNotKept(t *testing.T) {
	w := newWorld(t)
	c := w.unlockedClient("p256")
	request := keyed("text")
	var failures atomic.Int32
	failures.Store(2)
	w.keys[token.P256].before(func(context.Context, []byte) error {
		if failures.Add(-1) >= 0 {
			return token.ErrBusy
		}
		return nil
	})
	for range 2 {
		c.refused(request, wire.CodeTokenBusy)
	}
	w.audit.fail(errors.New("disk full"))
	c.refused(request, wire.CodeAuditUnavailable)
	w.audit.fail(nil)
	c.refused(keyed("other"), wire.CodeAuditUnavailable) // this refusal's record finds the log in order again
	first := signatureOf(c, c.call(request))
	if again := signatureOf(c, c.call(request)); !bytes.Equal(again, first) {
		t.Error("another signature")
	}
	if records := w.audit.of(audit.KindSign); len(records) != 1 {
		t.Errorf("%d records", len(records))
	}
}

func TestARepetitionThatWaitedForAFailureTriesItself(t *testing.T) {
	w := newWorld(t)
	request := keyed("text")
	first, second := w.unlockedClient("p256"), w.unlockedClient("p256")
	hurried := *request
	hurried.Deadline = 200 * time.Millisecond
	reached, release := w.holdSigning()
	defer release()
	first.send(&hurried)
	<-reached
	second.send(request)
	if got := want[*wire.Error](first, first.receive().Body); got.Code != wire.CodeDeadlineExceeded {
		t.Errorf("answer %+v", got)
	}
	signatureOf(second, second.receive().Body)
	w.signedOnce(request.IdempotencyKey)
}

func TestDeadlines(t *testing.T) {
	w := newWorld(t, func(_ *world, cfg *Config) { cfg.RequestTimeout = 2 * time.Second })
	c := w.unlockedClient("p256")
	w.keys[token.P256].before(func(ctx context.Context, _ []byte) error {
		<-ctx.Done()
		return fmt.Errorf("%w: %w", token.ErrBusy, ctx.Err())
	})
	for _, key := range []uuid.UUID{uuid.Nil, uuid.New()} {
		hurried := keyed("text")
		hurried.Terms = wire.Terms{IdempotencyKey: key, Deadline: 20 * time.Millisecond}
		c.refused(hurried, wire.CodeDeadlineExceeded)
		patient := keyed("text")
		patient.Terms = wire.Terms{IdempotencyKey: key, Deadline: time.Hour}
		c.refused(patient, wire.CodeTokenBusy) // the server's own limit
	}
	if outcome := w.audit.of(audit.KindRefused)[0].Outcome; outcome != string(wire.CodeDeadlineExceeded) {
		t.Errorf("recorded as %s", outcome)
	}
}

func TestPanicsFreeTheKey(t *testing.T) {
	w := newWorld(t)
	c := w.unlockedClient("p256")
	request := keyed("text")
	var panicked atomic.Bool
	w.keys[token.P256].before(func(context.Context, []byte) error {
		if panicked.CompareAndSwap(false, true) {
			panic("the token has gone mad")
		}
		return nil
	})
	c.refused(request, wire.CodeInternal)
	signatureOf(c, c.call(request))
}

// remember has one request of a user served, of about so many bytes.
func (r *repetitions) remember(t *testing.T, user int64, size int) uuid.UUID {
	t.Helper()
	key := uuid.New()
	known, first, err := r.begin(user, key, [sha256.Size]byte{})
	if err != nil || !first {
		t.Fatal(first, err)
	}
	r.end(known, &wire.SignReply{Signature: wire.Signature{Bytes: make([]byte, size)}})
	return key
}

// remembers tells whether a repetition would be answered.
func (r *repetitions) remembers(user int64, key uuid.UUID) bool {
	u, ok := r.users[user]
	return ok && u.byKey[key] != nil
}

func TestWhatIsRememberedIsBounded(t *testing.T) {
	cfg := Config{RepeatRequests: 10, RepeatUserBytes: 100_000, RepeatBytes: 250_000}.withDefaults()
	r := newRepetitions(&cfg)
	quiet := r.remember(t, 1, 100)
	var keys []uuid.UUID
	for range 100 {
		keys = append(keys, r.remember(t, 2, 100))
	}
	if r.remembers(2, keys[89]) || !r.remembers(2, keys[90]) || len(r.users[2].byKey) != 10 {
		t.Error("not the user's oldest are forgotten beyond the number of requests")
	}
	for range 5 {
		keys = append(keys, r.remember(t, 2, 40_000))
	}
	if r.remembers(2, keys[102]) || !r.remembers(2, keys[103]) || r.users[2].bytes > 100_000 {
		t.Errorf("not the user's oldest are forgotten beyond the number of bytes: %d", r.users[2].bytes)
	}
	for user := range int64(10) {
		r.remember(t, 10+user, 90_000)
		if r.bytes > 250_000 {
			t.Fatalf("%d bytes", r.bytes)
		}
	}
	if !r.remembers(1, quiet) {
		t.Error("a user who keeps little lost it to others")
	}
	huge := r.remember(t, 3, 1<<20)
	if r.remembers(3, huge) || len(r.users) > 4 {
		t.Errorf("%d users are remembered", len(r.users))
	}
	sum := 0
	for _, u := range r.users {
		sum += u.bytes
	}
	if sum != r.bytes {
		t.Errorf("%d bytes counted, %d in all", sum, r.bytes)
	}
}

func TestWhatIsRememberedEndsWithTheWindow(t *testing.T) {
	cfg := Config{RepeatWindow: time.Hour}.withDefaults()
	r := newRepetitions(&cfg)
	key := r.remember(t, 1, 100)
	waiting, _, _ := r.begin(2, key, [sha256.Size]byte{})
	r.sweep(time.Now().Add(59 * time.Minute))
	if !r.remembers(1, key) {
		t.Fatal("forgotten too early")
	}
	r.sweep(time.Now().Add(2 * time.Hour))
	if r.remembers(1, key) || r.bytes != 0 {
		t.Error("remembered for too long")
	}
	if !r.remembers(2, key) {
		t.Error("a request in flight was forgotten")
	}
	r.end(waiting, nil)
	if len(r.users) != 0 {
		t.Errorf("%d users are left", len(r.users))
	}
}
