package signer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"chancery/signer/queue"
	"chancery/token"
	"chancery/token/worker"
	"chancery/users"
)

// The states of a token.
const (
	StateOpening = "opening" // being opened, for the first time or again after it failed
	StateReady   = "ready"   // open; its keys can be unlocked
	StateAbsent  = "absent"  // could not be opened; tried again
)

// slot is the place of one registered token.
type slot struct {
	cfg     *Config
	log     *slog.Logger
	ctx     context.Context // ends when the token is removed or the server stops
	stop    context.CancelFunc
	changed chan struct{} // wakes the keeper
	queue   *queue.Queue  // of requests to sign
	pace    *pace

	mu       sync.Mutex
	record   users.Token
	keys     []users.Key
	current  *openToken // nil unless ready
	state    string
	since    time.Time
	lastErr  error
	refused  map[int64]error // by key ID: keys whose public half is not the registered one
	rejected map[rejection]bool
	round    int            // grows with reopen
	opened   int            // how often the token was opened
	anew     map[int64]bool // by ID: keys for which it was opened anew because it did not show them
}

func newSlot(ctx context.Context, cfg *Config, log *slog.Logger, record users.Token) *slot {
	s := &slot{
		cfg: cfg, log: log.With("token", record.Name), record: record,
		changed: make(chan struct{}, 1), queue: queue.New(queue.Config{Slots: defaultCalls, MaxWaiting: cfg.TokenQueue, MaxWaitingPerUser: cfg.TokenQueueUser}),
		pace: newPace(), rejected: make(map[rejection]bool), anew: make(map[int64]bool), state: StateOpening, since: time.Now(),
	}
	s.ctx, s.stop = context.WithCancel(ctx)
	return s
}

// defaultCalls are the calls to a token at once where it does not say how many it takes.
const defaultCalls = 16

// rejection names a PIN that the token has rejected. The store remembers it too, but
// the snapshot at hand may be older. A reload or another PIN is another name.
type rejection struct {
	reload, version int64
	staged          bool
}

// update takes over what the store now says.
func (s *slot) update(record users.Token, keys []users.Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	reopen := outdated(s.record, record)
	if reopen && s.current != nil {
		s.current.retire()
		s.state = StateOpening
	}
	others := !slices.EqualFunc(keys, s.keys, func(a, b users.Key) bool {
		return a.ID == b.ID && bytes.Equal(a.Public, b.Public) && bytes.Equal(a.TokenKeyID, b.TokenKeyID)
	})
	s.record, s.keys = record, keys
	if reopen || others {
		s.wake()
	}
}

// reopen has the token closed and opened again, even if it is just being opened.
func (s *slot) reopen() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.round++
	if s.current != nil {
		s.current.retire()
		s.state = StateOpening
	}
	s.wake()
}

// outdated tells whether a token opened by one record must be opened anew by the next. One with replicas must be when its
// PIN changes, since a replica that returns is logged in with the PIN of the last unlock.
func outdated(by, next users.Token) bool {
	if len(next.Replicas) > 0 && by.PINVersion != next.PINVersion {
		return true
	}
	return by.Reload != next.Reload || by.Location != next.Location || by.Driver != next.Driver ||
		by.Serial != next.Serial || by.MaxSessions != next.MaxSessions || !slices.Equal(by.Replicas, next.Replicas)
}

func (s *slot) wake() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// ready returns the open token, or why there is none.
func (s *slot) ready() (*openToken, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.state == StateAbsent:
		return nil, fmt.Errorf("token %q is absent: %w", s.record.Name, token.ErrTokenAbsent)
	case s.current == nil || s.current.isClosed():
		return nil, fmt.Errorf("token %q: %w", s.record.Name, errOpening)
	}
	return s.current, nil
}

// readyFor returns the open token for an unlock, after waiting a while where it is just being opened. One that was opened
// before its PIN changed, or a change of it began, is opened anew, once: modules such as SoftHSM check PINs by what they
// read when they were initialised.
func (s *slot) readyFor(ctx context.Context, found granted) (*openToken, error) {
	home, err := s.awaitReady(ctx)
	if err != nil {
		return nil, err
	}
	record, ok := found.snapshot.TokenByID(found.key.TokenID)
	if !ok || home.record.PINVersion == record.PINVersion {
		return home, nil
	}
	if home.retire() {
		s.log.Info("the token's PIN is another since the token was opened: it is opened anew")
		s.wake()
	}
	return s.awaitReady(ctx)
}

// awaitReady looks now and then instead of being told: tokens are opened seldom.
func (s *slot) awaitReady(ctx context.Context) (*openToken, error) {
	for patience := time.Now().Add(openPatience); ; {
		home, err := s.ready()
		if !errors.Is(err, errOpening) || time.Now().After(patience) || !sleep(ctx, readyPause) {
			return home, err
		}
	}
}

const (
	readyPause = 10 * time.Millisecond
	// openPatience is how long an unlock waits for a token that is being opened; the client is then told to come back.
	openPatience = 3 * time.Second
)

// keep holds the token open until the slot ends: it opens it, looks for it again
// with growing pauses while it is absent, and replaces it when it was retired or its process has ended.
func (s *slot) keep() {
	var home *openToken
	pause := pause{least: s.cfg.ReopenMin, most: s.cfg.ReopenMax}
	for {
		if home != nil && s.mustClose(home) {
			s.close(home)
			home = nil
		}
		var again <-chan time.Time
		var ended <-chan struct{}
		switch {
		case home == nil && pause.over(time.Now()):
			home = s.open()
			if home == nil {
				pause.grow(time.Now())
			}
		case home != nil:
			if err := s.guard(func() error { return s.compare(home) }); err != nil {
				home.failed(err)
			}
		}
		if home == nil {
			again = time.After(pause.left(time.Now()))
		} else {
			ended = home.Done()
		}
		select {
		case <-s.ctx.Done():
			if home != nil {
				s.close(home)
			}
			return
		case <-s.changed:
			if home == nil || !home.isClosed() {
				pause.reset()
			}
		case <-ended:
			home.retire()
		case <-again:
		}
		switch {
		case home != nil && s.superseded(home):
			pause.reset() // closing it was somebody's wish, and no fault of the token
		case home != nil && home.isClosed():
			pause.ended(home.opened, time.Now())
		}
	}
}

// mustClose tells whether the token was retired or superseded.
func (s *slot) mustClose(home *openToken) bool { return home.isClosed() || s.superseded(home) }

// superseded tells whether the token was being opened by a record that has changed since, or before it was to be opened anew.
func (s *slot) superseded(home *openToken) bool {
	s.mu.Lock()
	record, round := s.record, s.round
	s.mu.Unlock()
	return outdated(home.record, record) || home.round != round
}

// open tries once and notes the outcome; nil when the token could not be opened.
func (s *slot) open() *openToken {
	s.mu.Lock()
	home := &openToken{slot: s, record: s.record, round: s.round}
	s.mu.Unlock()
	if err := s.guard(func() error { return s.openChecked(home) }); err != nil {
		if home.Handler != nil {
			err = errors.Join(err, s.guard(home.Handler.Close))
		}
		state := StateAbsent
		if errors.Is(err, worker.ErrGone) { // its process ended meanwhile, and another one is about to be started
			state = StateOpening
		}
		s.note(state, nil, err)
		return nil
	}
	s.note(StateReady, home, nil)
	return home
}

// openChecked opens the token and makes sure that it is the registered one. After an error the caller closes what was opened.
func (s *slot) openChecked(home *openToken) error {
	ctx, cancel := context.WithTimeout(s.ctx, s.cfg.OpenTimeout)
	defer cancel()
	opened, err := s.cfg.Open(ctx, home.record)
	if err != nil {
		return err
	}
	home.Handler, home.opened = opened, time.Now()
	info, err := opened.Info(ctx)
	if err == nil && info.Serial != home.record.Serial {
		err = fmt.Errorf("the token found has serial %q, registered is %q: %w", info.Serial, home.record.Serial, token.ErrTokenAbsent)
	}
	if err != nil {
		return err
	}
	if err := s.compare(home); isLost(err) {
		return err
	}
	s.queue.Resize(calls(opened))
	return nil
}

// calls is how many calls to sign a token is given at once.
func calls(h worker.Handler) int {
	if stated, ok := h.(interface{ Slots() int }); ok {
		return stated.Slots()
	}
	return defaultCalls
}

// errDriverPanicked takes the token for lost, so that it is opened anew.
var errDriverPanicked = fmt.Errorf("its driver panicked, and the log says where: %w", token.ErrTokenAbsent)

// guard turns a panic of a token's driver, or over what it returned, into an error: one broken token must not
// end the daemon for the others.
func (s *slot) guard(work func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("panic over a token", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			err = errDriverPanicked
		}
	}()
	return work()
}

// compare looks for registered keys whose public half is another on the token.
// Keys that the token does not list without login are compared when they are unlocked.
// The error is that of listing.
func (s *slot) compare(home *openToken) error {
	ctx, cancel := context.WithTimeout(s.ctx, s.cfg.OpenTimeout)
	defer cancel()
	listed, err := home.Keys(ctx)
	if err != nil {
		s.log.Warn("the token does not list its keys; they are compared when they are unlocked", "error", err)
		return err
	}
	_, keys := s.registered()
	refused := make(map[int64]error)
	for i := range keys {
		for _, found := range listed {
			if !bytes.Equal(found.ID, keys[i].TokenKeyID) {
				continue
			}
			if err := samePublic(&keys[i], found.Public); err != nil {
				refused[keys[i].ID] = err
				s.log.Error("key refused", "key", keys[i].Name, "error", err)
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused = refused
	return nil
}

func (s *slot) registered() (users.Token, []users.Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.record, s.keys
}

// note records the outcome of opening and logs it when it is news.
func (s *slot) note(state string, home *openToken, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	news := state != s.state || fmt.Sprint(err) != fmt.Sprint(s.lastErr)
	if state != s.state {
		s.since = time.Now()
	}
	s.state, s.current, s.lastErr = state, home, err
	if home != nil {
		s.opened++
	}
	switch {
	case !news:
	case err != nil:
		s.log.Error("the token cannot be opened; it is looked for again", "error", err)
	case state == StateReady:
		s.log.Info("the token is open")
	}
}

func (s *slot) close(home *openToken) {
	home.retire()
	s.note(StateOpening, nil, nil)
	if err := s.guard(home.Close); err != nil {
		s.log.Warn("closing the token", "error", err)
	}
}

// unlock has the token's process turn the passphrase into a capability. No PIN is sent that the token has rejected since
// the snapshot was taken. Derived is called when the passphrase's derivation has ended, which may be after unlock has
// returned: a request that nobody waits for any more goes on in that process.
func (s *slot) unlock(ctx context.Context, home *openToken, found granted, asked worker.Unlock, derived func()) (worker.Capability, error) {
	if err := s.refusedKey(found.key.ID); err != nil {
		derived()
		return worker.Capability{}, err
	}
	record, ok := found.snapshot.TokenByID(found.key.TokenID)
	if !ok {
		derived()
		return worker.Capability{}, fmt.Errorf("token of key %q: %w", found.key.Name, token.ErrTokenAbsent)
	}
	asked.Token = s.withRejections(*record)
	capability, err := home.Unlock(ctx, asked, &ledger{slot: s, reload: record.Reload, derived: derived})
	if errors.Is(err, token.ErrNoKey) && s.mayShowAnew(found.key, home) && home.retire() {
		s.log.Info("the token does not show a key that was registered since it was opened: it is opened anew", "key", found.key.Name)
		s.wake()
		return capability, fmt.Errorf("token %q: %w", record.Name, errOpening)
	}
	if err != nil {
		home.failed(err)
	}
	return capability, err
}

// mayShowAnew tells, once for each key, whether it was registered after the token was opened: some modules, as
// tpm2-pkcs11, list keys only once.
func (s *slot) mayShowAnew(key *users.Key, home *openToken) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	newer := !key.CreatedAt.Before(home.opened.Truncate(time.Second)) // the store keeps whole seconds
	if !newer || s.anew[key.ID] {
		return false
	}
	s.anew[key.ID] = true
	return true
}

func (s *slot) refusedKey(id int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refused[id]
}

func (s *slot) withRejections(record users.Token) users.Token {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := rejection{reload: record.Reload, version: record.PINVersion}
	record.PINRejected = record.PINRejected || s.rejected[name]
	name.staged = true
	record.StagedRejected = record.StagedRejected || s.rejected[name]
	return record
}

// ledger remembers a rejected PIN at once, and then in the store.
type ledger struct {
	slot    *slot
	reload  int64
	derived func()
}

// Derived implements worker.Ledger.
func (l *ledger) Derived() { l.derived() }

// Snapshot passes on to the store: the server's own snapshot may be as old as Config.PollEvery.
func (l *ledger) Snapshot(ctx context.Context) (*users.Snapshot, error) {
	return l.slot.cfg.Store.Snapshot(ctx)
}

// CommitPIN passes on to the store.
func (l *ledger) CommitPIN(ctx context.Context, tokenID, version int64) error {
	return l.slot.cfg.Store.CommitPIN(ctx, tokenID, version)
}

// RejectPIN is not stopped by the request's end: the token has counted the try already.
func (l *ledger) RejectPIN(ctx context.Context, tokenID, version int64, staged bool) error {
	l.slot.reject(rejection{reload: l.reload, version: version, staged: staged})
	return l.slot.cfg.Store.RejectPIN(context.WithoutCancel(ctx), tokenID, version, staged)
}

// reject remembers a PIN, and forgets those of earlier reloads and versions.
func (s *slot) reject(name rejection) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.rejected, func(old rejection, _ bool) bool {
		return old.reload < name.reload || old.version < name.version
	})
	s.rejected[name] = true
	s.log.Error("the token rejected a PIN; it is not sent again", "staged", name.staged)
}
