package worker

import (
	"context"
	"crypto"
	"sync"
	"time"

	"chancery/token"
)

// watch knows which calls to a token are under way, and since when.
type watch struct {
	mu    sync.Mutex
	last  uint64
	calls map[uint64]call
}

type call struct {
	what  string
	began time.Time
}

func newWatch() *watch { return &watch{calls: make(map[uint64]call)} }

func (w *watch) begin(what string) uint64 {
	began := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last++
	w.calls[w.last] = call{what, began}
	return w.last
}

func (w *watch) end(number uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.calls, number)
}

// overdue returns what has been under way for longer than limit, or "".
func (w *watch) overdue(limit time.Duration, now time.Time) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.calls {
		if now.Sub(c.began) > limit {
			return c.what
		}
	}
	return ""
}

// run calls hung, once, when a call takes longer than limit.
func (w *watch) run(limit time.Duration, hung func(what string)) {
	ticker := time.NewTicker(max(min(limit/8, time.Second), time.Millisecond))
	defer ticker.Stop()
	for now := range ticker.C {
		if what := w.overdue(limit, now); what != "" {
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
