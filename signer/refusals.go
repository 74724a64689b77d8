package signer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"chancery/audit"
)

// refusals bounds how much a hostile client can make the audit log grow. Each user has a few
// records of refused requests at once and then one in Config.RefusalEvery; what goes beyond
// is counted, and the counts are recorded.
type refusals struct {
	append func(context.Context, ...audit.Record) error
	cfg    *Config
	log    *slog.Logger

	writing sync.Mutex // held while counts are being recorded

	mu     sync.Mutex
	users  map[int64]*refused // by user ID; 0 for all who are not users
	closed bool
}

// refused is what one user was refused.
type refused struct {
	name    string
	bucket  *rate.Limiter
	lines   *rate.Limiter  // of the log
	unsaid  int            // lines that were not logged
	skipped map[string]int // by outcome: counted, not recorded
	since   time.Time      // the first of these
	timer   *time.Timer    // records them
}

func newRefusals(cfg *Config, record func(context.Context, ...audit.Record) error) *refusals {
	return &refusals{append: record, cfg: cfg, log: cfg.Log, users: make(map[int64]*refused)}
}

// record keeps one refusal, or counts it. An error says that it could not be kept.
func (r *refusals) record(ctx context.Context, userID int64, record audit.Record) error {
	if r.count(userID, record) {
		return nil
	}
	return r.append(ctx, record)
}

// count returns false where the refusal is to be recorded by itself.
func (r *refusals) count(userID int64, record audit.Record) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	u := r.of(userID)
	if u.bucket.Allow() {
		return false
	}
	if len(u.skipped) == 0 {
		u.since = time.Now()
		if userID != 0 {
			u.name = record.User
		}
	}
	u.skipped[record.Outcome]++
	if u.timer == nil && !r.closed {
		u.timer = time.AfterFunc(r.cfg.RefusalEvery, func() { r.summarise(u) })
	}
	return true
}

// of returns what is known of a user. The caller holds the lock.
func (r *refusals) of(userID int64) *refused {
	u, ok := r.users[userID]
	if !ok {
		every := rate.Every(r.cfg.RefusalEvery)
		u = &refused{bucket: rate.NewLimiter(every, r.cfg.RefusalBurst), lines: rate.NewLimiter(every, r.cfg.RefusalBurst), skipped: make(map[string]int)}
		r.users[userID] = u
	}
	return u
}

// logger returns the log for one line about what a user may repeat at will, or, beyond as many lines as
// there may be records, one that discards it. The next line that is logged tells how many were not.
func (r *refusals) logger(userID int64, log *slog.Logger) *slog.Logger {
	r.mu.Lock()
	defer r.mu.Unlock()
	u := r.of(userID)
	if !u.lines.Allow() {
		u.unsaid++
		return slog.New(slog.DiscardHandler)
	}
	if u.unsaid > 0 {
		log = log.With("suppressed", u.unsaid)
		u.unsaid = 0
	}
	return log
}

// summarise records what was only counted. Where that fails it is tried again later.
func (r *refusals) summarise(u *refused) {
	r.writing.Lock()
	defer r.writing.Unlock()
	r.mu.Lock()
	name, skipped, since := u.name, u.skipped, u.since
	u.skipped, u.timer = make(map[string]int), nil
	r.mu.Unlock()
	if len(skipped) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), refusalPatience)
	defer cancel()
	err := r.append(ctx, summary(name, skipped, since))
	if err == nil {
		return
	}
	r.log.Error("refused requests are counted and not yet recorded", "user", name, "error", err)
	r.mu.Lock()
	defer r.mu.Unlock()
	u.since = since
	for outcome, n := range skipped {
		u.skipped[outcome] += n
	}
	if u.timer == nil && !r.closed && !errors.Is(err, audit.ErrClosed) {
		u.timer = time.AfterFunc(r.cfg.RefusalEvery, func() { r.summarise(u) })
	}
}

func summary(user string, skipped map[string]int, since time.Time) audit.Record {
	details := map[string]string{"since": since.UTC().Format(time.RFC3339Nano)}
	for outcome, n := range skipped {
		details[outcome] = fmt.Sprint(n)
	}
	return audit.Record{Kind: audit.KindRefused, Outcome: "summarised", User: user, Details: details}
}

// close records what is still only counted.
func (r *refusals) close() {
	r.mu.Lock()
	r.closed = true
	all := maps.Clone(r.users)
	for _, u := range all {
		if u.timer != nil {
			u.timer.Stop()
		}
	}
	r.mu.Unlock()
	for _, u := range all {
		r.summarise(u)
	}
}
