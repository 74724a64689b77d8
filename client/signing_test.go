package client

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"chancery/client/clienttest"
	"chancery/tunnel/wire"
)

// watched has the server note the terms of all requests to sign, and then do what each says.
func (w *world) watched(then func(*clienttest.Session, *wire.Request) wire.ResponseBody) func() []wire.Terms {
	var mu sync.Mutex
	var seen []wire.Terms
	w.Hook = func(s *clienttest.Session, r *wire.Request) wire.ResponseBody {
		if name := r.Body.Name(); name != "sign" && name != "sign_all" {
			return nil
		}
		mu.Lock()
		seen = append(seen, wire.TermsOf(r.Body))
		mu.Unlock()
		if then == nil {
			return nil
		}
		return then(s, r)
	}
	return func() []wire.Terms {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(seen)
	}
}

func hangUp(s *clienttest.Session, _ *wire.Request) wire.ResponseBody {
	_ = s.Close()
	return clienttest.Silence
}

func TestALostReplyIsAskedForAgainAndNothingIsSignedTwice(t *testing.T) {
	w := newWorld(t)
	var cuts atomic.Int32
	seen := w.watched(func(s *clienttest.Session, r *wire.Request) wire.ResponseBody {
		if cuts.Add(1)%2 == 0 {
			return nil
		}
		s.Answer(r) // signed, and then nobody learns of it
		return hangUp(s, r)
	})
	c := w.connect(t, func(cfg *Config) { cfg.InFlight = 1 })
	unlock(t, c, "p256")
	signatures, err := c.SignAll(t.Context(), "p256", digests(100))
	if err != nil || slices.ContainsFunc(signatures, func(s []byte) bool { return s == nil }) {
		t.Fatal(err)
	}
	if n := w.Signed(); n != 100 {
		t.Errorf("%d signatures were made for 100 digests", n)
	}
	distinct := make(map[uuid.UUID]int)
	for _, terms := range seen() {
		distinct[terms.IdempotencyKey]++
	}
	batches := (100 + DefaultBatchSize - 1) / DefaultBatchSize
	if len(distinct) != batches || len(seen()) != 2*batches || distinct[uuid.Nil] != 0 {
		t.Errorf("%d keys in %d requests for %d batches", len(distinct), len(seen()), batches)
	}
}

func TestAttemptsRunOutUnderOneKey(t *testing.T) {
	w := newWorld(t)
	seen := w.watched(hangUp)
	c := w.connect(t)
	unlock(t, c, "p256")
	_, err := c.SignAll(t.Context(), "p256", digests(1))
	if !errors.Is(err, ErrInterrupted) {
		t.Fatalf("got %v", err)
	}
	all := seen()
	if len(all) != DefaultAttempts || all[0].IdempotencyKey != all[len(all)-1].IdempotencyKey || all[0].IdempotencyKey == uuid.Nil {
		t.Errorf("sent as %+v", all)
	}
}

func TestABridgeThatStaysAwayLeavesTheRequestInterrupted(t *testing.T) {
	w := newWorld(t)
	w.watched(func(s *clienttest.Session, r *wire.Request) wire.ResponseBody {
		w.dialing = func() error { return errors.New("nobody there") }
		return hangUp(s, r)
	})
	c := w.connect(t)
	unlock(t, c, "p256")
	_, err := c.SignAll(t.Context(), "p256", digests(1))
	if !errors.Is(err, ErrInterrupted) {
		t.Fatalf("got %v", err)
	}
}

func TestWhatWasSentUnderAKeyIsNotRepeatedWithoutIt(t *testing.T) {
	w := newWorld(t)
	w.watched(func(s *clienttest.Session, r *wire.Request) wire.ResponseBody {
		w.plain = true // as behind another server
		return hangUp(s, r)
	})
	c := w.connect(t)
	unlock(t, c, "p256")
	_, err := c.SignAll(t.Context(), "p256", digests(1))
	if !errors.Is(err, ErrInterrupted) {
		t.Fatalf("got %v", err)
	}
	if n := w.Count("sign"); n != 1 {
		t.Errorf("sent %d times", n)
	}
}

func TestARefusalAfterALostReplyIsTold(t *testing.T) {
	w := newWorld(t)
	var first atomic.Bool
	w.watched(func(s *clienttest.Session, r *wire.Request) wire.ResponseBody {
		if first.CompareAndSwap(false, true) {
			return hangUp(s, r)
		}
		return wire.NewError(wire.CodeKeyDisabled)
	})
	c := w.connect(t)
	unlock(t, c, "p256")
	_, err := c.SignAll(t.Context(), "p256", digests(1))
	wantCode(t, err, wire.CodeKeyDisabled)
}

func TestRequestsToSignCarryTheirDeadline(t *testing.T) {
	w := newWorld(t)
	seen := w.watched(nil)
	c := w.connect(t, func(cfg *Config) { cfg.RequestTimeout = 20 * time.Second })
	unlock(t, c, "p256")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for _, call := range []context.Context{t.Context(), ctx} {
		if _, err := c.SignAll(call, "p256", digests(2)); err != nil {
			t.Fatal(err)
		}
	}
	all := seen()
	if len(all) != 2 || all[0].Deadline != 18*time.Second || all[1].Deadline > 9*time.Second || all[1].Deadline < time.Millisecond {
		t.Errorf("sent as %+v", all)
	}
	if all[0].IdempotencyKey == all[1].IdempotencyKey {
		t.Error("two requests have one key")
	}
}

func TestVersion2IsSentNoTerms(t *testing.T) {
	c := newWorld(t).connect(t)
	for _, body := range []wire.RequestBody{&wire.Sign{Key: "p256"}, &wire.SignAll{Key: "p256"}} {
		s := &signing{client: c, key: "p256", body: body, id: uuid.New()}
		for _, extended := range []bool{true, false} {
			made, err := s.compose(t.Context())(&connection{extended: extended})
			if err != nil {
				t.Fatal(err)
			}
			if terms := wire.TermsOf(made); (terms.IdempotencyKey == s.id) != extended || (terms.Deadline > 0) != extended {
				t.Errorf("chancery/1 %v: %+v", extended, terms)
			}
		}
	}
}

func TestBatchThatMissedItsDeadlineIsHalved(t *testing.T) {
	w := newWorld(t)
	seen := w.watched(func(_ *clienttest.Session, r *wire.Request) wire.ResponseBody {
		if all, ok := r.Body.(*wire.SignAll); ok && len(all.Digests) > 3 {
			return wire.NewError(wire.CodeDeadlineExceeded)
		}
		return nil
	})
	c := w.connect(t)
	unlock(t, c, "p256")
	signatures, err := c.SignAll(t.Context(), "p256", digests(10))
	if err != nil || slices.ContainsFunc(signatures, func(s []byte) bool { return s == nil }) {
		t.Fatal(err)
	}
	keys := make(map[uuid.UUID]bool)
	for _, terms := range seen() {
		keys[terms.IdempotencyKey] = true
	}
	if len(keys) != len(seen()) {
		t.Errorf("%d keys for %d different requests", len(keys), len(seen()))
	}
}

// TestADeadlineWhileSigningIsNoMereTimeout: what was sent may have been signed, and the caller has to know.
func TestADeadlineWhileSigningIsNoMereTimeout(t *testing.T) {
	for name, answerBefore := range map[string]wire.ResponseBody{
		"at once":           nil,
		"after a busy time": &wire.Error{Code: wire.CodeBusy, Message: "busy", Retry: wire.RetryLater, RetryAfter: time.Millisecond},
	} {
		for _, plain := range []bool{true, false} {
			if plain && answerBefore != nil {
				continue // a server of version 2 has no words for it
			}
			w := newWorld(t)
			w.plain = plain
			var asked atomic.Int32
			w.watched(func(s *clienttest.Session, r *wire.Request) wire.ResponseBody {
				if asked.Add(1) == 1 && answerBefore != nil {
					return answerBefore
				}
				s.Answer(r)
				return clienttest.Silence
			})
			c := w.connect(t)
			unlock(t, c, "p256")
			if _, err := c.Key(t.Context(), "p256"); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			_, err := c.SignAll(ctx, "p256", digests(1))
			cancel()
			var told *Error
			if !errors.As(err, &told) || told.Code != CodeInterrupted || w.Signed() != 1 {
				t.Fatalf("%s, plain %v: %v after %d signatures", name, plain, err, w.Signed())
			}
			want := "the time ran out while the server was signing; the signature may have been made"
			if told.Message != want || strings.Contains(told.Hint, "busy") {
				t.Errorf("%s, plain %v: %q, %q", name, plain, told.Message, told.Hint)
			}
		}
	}
}

func TestCancelingWhileSigningIsCanceled(t *testing.T) {
	for _, plain := range []bool{true, false} {
		w := newWorld(t)
		w.plain = plain
		ctx, cancel := context.WithCancel(t.Context())
		w.watched(func(*clienttest.Session, *wire.Request) wire.ResponseBody {
			cancel()
			return clienttest.Silence
		})
		c := w.connect(t)
		unlock(t, c, "p256")
		_, err := c.SignAll(ctx, "p256", digests(1))
		wantCode(t, err, CodeCanceled)
	}
}
