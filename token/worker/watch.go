package worker

import (
	"context"
	"crypto"
	"math"
	"sync"
	"time"

	"chancery/token"
)

// watchRounds is in how many rounds a call's time is divided. Rounds are counted, and not time, which may pass while
// the whole process is stopped.
const watchRounds = 8

// watch knows which calls to a token are under way, and since when. Only the one that began first can be overdue: a token that does
// one thing at a time has the others wait, and is in order as long as it gets on with what came first. When one hangs, those before it
// end, and then it is first.
type watch struct {
	mu    sync.Mutex
	last  uint64
	round uint64
	calls map[uint64]call
	first uint64 // the number of the one that was first in the latest round
	since uint64 // the round in which it became the first
}

type call struct {
	what  string
	began uint64 // the round
}

func newWatch() *watch { return &watch{calls: make(map[uint64]call)} }

func (w *watch) begin(what string) uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last++
	w.calls[w.last] = call{what, w.round}
	return w.last
}

func (w *watch) end(number uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.calls, number)
}

// overdue begins a round and returns what has been under way, and first of all calls, for more than watchRounds of them, or "".
func (w *watch) overdue() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.round++
	if len(w.calls) == 0 {
		return ""
	}
	first := uint64(math.MaxUint64)
	for number := range w.calls {
		first = min(first, number)
	}
	c := w.calls[first]
	if first != w.first {
		w.first, w.since = first, max(c.began, w.round-1)
	}
	if w.round-w.since > watchRounds {
		return c.what
	}
	return ""
}

// run calls hung, once, when a call takes longer than limit, until ended.
func (w *watch) run(limit time.Duration, ended <-chan struct{}, hung func(what string)) {
	ticker := time.NewTicker(max(limit/watchRounds, time.Millisecond))
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ended:
			return
		}
		if what := w.overdue(); what != "" {
			hung(what)
			return
		}
	}
}

// watched is a token whose calls are watched. What a worker never asks for is passed on unwatched.
type watched struct {
	token.Token
	watch *watch
}

func (t *watched) Info(ctx context.Context) (token.Info, error) {
	defer t.watch.end(t.watch.begin("reading the token's description"))
	return t.Token.Info(ctx)
}

func (t *watched) Login(ctx context.Context, pin []byte) error {
	defer t.watch.end(t.watch.begin("logging in"))
	return t.Token.Login(ctx, pin)
}

func (t *watched) Logout(ctx context.Context) error {
	defer t.watch.end(t.watch.begin("logging out"))
	return t.Token.Logout(ctx)
}

func (t *watched) Keys(ctx context.Context) ([]token.KeyInfo, error) {
	defer t.watch.end(t.watch.begin("listing keys"))
	return t.Token.Keys(ctx)
}

func (t *watched) Key(ctx context.Context, id []byte) (token.Key, error) {
	defer t.watch.end(t.watch.begin("looking for a key"))
	key, err := t.Token.Key(ctx, id)
	if err != nil {
		return nil, err
	}
	return &watchedKey{key, t.watch}, nil
}

type watchedKey struct {
	token.Key
	watch *watch
}

func (k *watchedKey) Sign(ctx context.Context, digest []byte, options crypto.SignerOpts) ([]byte, error) {
	defer k.watch.end(k.watch.begin("signing"))
	return k.Key.Sign(ctx, digest, options)
}
