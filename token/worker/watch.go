package worker

import (
	"context"
	"crypto"
	"sync"
	"time"

	"chancery/token"
	"chancery/token/guard"
)

// watchRounds is in how many rounds a call's time is divided. Rounds are counted, and not time, which may pass while
// the whole process is stopped.
const watchRounds = 8

// overtakings is how many calls may end before one that began earlier, for each of the most that were ever under way at once, and
// leave it time. A token that does one thing at a time has calls wait for each other, in no certain order.
const overtakings = 2

// watch knows which calls to a token are under way, and since when. One that waits while others end does not hang, unless too
// many end: then it is not them that it waits for.
type watch struct {
	mu    sync.Mutex
	last  uint64
	round uint64
	calls map[uint64]*call
	most  uint64 // calls at once
	done  uint64 // calls that have ended
	seen  uint64 // of these, in the latest round
}

type call struct {
	what  string
	since uint64 // the round in which it began, or others have ended for which it may have waited
	done  uint64 // watch.done when it began
}

func newWatch() *watch { return &watch{calls: make(map[uint64]*call)} }

func (w *watch) begin(what string) uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last++
	w.calls[w.last] = &call{what, w.round, w.done}
	w.most = max(w.most, uint64(len(w.calls)))
	return w.last
}

func (w *watch) end(number uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done++
	delete(w.calls, number)
}

// overdue begins a round and returns what has been under way for more than watchRounds of them in which nothing else ended that
// it may have waited for, or "".
func (w *watch) overdue() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.round++
	progress := w.done != w.seen
	w.seen = w.done
	for _, c := range w.calls {
		passed := w.done - c.done
		if progress && passed > 0 && passed <= overtakings*w.most {
			c.since = w.round - 1
		}
		if w.round-c.since > watchRounds {
			return c.what
		}
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

// over watches the calls to a token. What a guard does around them is not watched: it may wait for another process's login, which is
// no reason to end this one.
func (w *watch) over(t token.Token) token.Token {
	return guard.Inside(t, func(inner token.Token) token.Token { return &watched{inner, w} })
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
