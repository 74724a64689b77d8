package signer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"chancery/tunnel/wire"
	"chancery/users"
)

// freeGuesses is how many wrong passphrases cost only Config.FailurePause each: people mistype.
const freeGuesses = 3

// errGuessing says that an unlock was not looked at, because too many before it failed.
var errGuessing = errors.New("too many wrong passphrases")

// guesses slows down guessing at a passphrase. It counts by user and key, where the user is who
// their certificate says, so that nobody can lock out another. The store
// keeps the counts, so that a restart does not help either.
type guesses struct {
	cfg *Config
	log *slog.Logger

	mu    sync.Mutex
	wrong map[target]wrongs
}

// target is whose passphrase is guessed at.
type target struct{ userID, keyID int64 }

// wrongs are the failures since the last success.
type wrongs struct {
	count int
	until time.Time // by the monotonic clock: nothing is looked at before
}

func newGuesses(cfg *Config) *guesses {
	return &guesses{cfg: cfg, log: cfg.Log, wrong: make(map[target]wrongs)}
}

// load takes over what was counted before a restart. A clock that went backwards makes nobody wait
// longer than a failure at this moment would.
func (g *guesses) load(ctx context.Context, now time.Time) error {
	kept, err := g.cfg.Store.UnlockFailures(ctx)
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, f := range kept {
		delay := g.delay(f.Count)
		rest := max(0, min(delay, delay-now.Sub(f.Last)))
		g.wrong[target{f.UserID, f.KeyID}] = wrongs{f.Count, now.Add(rest)}
	}
	return nil
}

// delay is how long after so many failures nothing is looked at: it doubles with each beyond the free ones.
func (g *guesses) delay(count int) time.Duration {
	if count <= freeGuesses {
		return 0
	}
	delay := 2 * g.cfg.FailurePause
	for range count - freeGuesses - 1 {
		if delay *= 2; delay >= g.cfg.FailureMax {
			break
		}
	}
	return min(delay, g.cfg.FailureMax)
}

// check returns errGuessing with what the peer is told, while the user has to wait.
func (g *guesses) check(who target, key string, now time.Time) error {
	g.mu.Lock()
	wait := g.wrong[who].until.Sub(now)
	count := g.wrong[who].count
	g.mu.Unlock()
	if count == 0 || wait <= 0 {
		return nil
	}
	return fmt.Errorf("%w: %w", errGuessing, busy(wait, "key %q: %d wrong passphrases in a row; try again in %s", key, count, wait.Truncate(time.Second)+time.Second))
}

// failed counts a wrong passphrase. Where the store cannot, it is counted until the next restart.
func (g *guesses) failed(ctx context.Context, who target, now time.Time) {
	g.mu.Lock()
	count := g.wrong[who].count + 1
	g.wrong[who] = wrongs{count, now.Add(g.delay(count))}
	g.mu.Unlock()
	if err := g.cfg.Store.AddUnlockFailure(ctx, who.userID, who.keyID, now); err != nil && !errors.Is(err, users.ErrNotFound) {
		g.log.Error("a failed unlock could not be stored", "error", err)
	}
}

// succeeded forgets what was counted.
func (g *guesses) succeeded(ctx context.Context, who target) {
	g.mu.Lock()
	_, counted := g.wrong[who]
	delete(g.wrong, who)
	g.mu.Unlock()
	if !counted {
		return
	}
	if err := g.cfg.Store.ClearUnlockFailures(ctx, who.userID, who.keyID); err != nil {
		g.log.Error("failed unlocks could not be forgotten", "error", err)
	}
}

// busy is the answer to come back after a while.
func busy(wait time.Duration, format string, args ...any) *wire.Error {
	failure := wire.Errorf(wire.CodeBusy, format, args...)
	failure.RetryAfter = max(wait, minRetry).Round(time.Millisecond)
	return failure
}

// minRetry is the shortest pause that a peer is asked to make.
const minRetry = 50 * time.Millisecond
