package signer

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"chancery/token"
	"chancery/users"
)

// tokens keeps every registered token open, each by a keeper of its own, so that
// one token that hangs delays no other.
type tokens struct {
	cfg     *Config
	log     *slog.Logger
	keepers sync.WaitGroup

	mu     sync.Mutex
	slots  map[int64]*slot // by token ID
	closed bool
}

func newTokens(cfg *Config) *tokens {
	return &tokens{cfg: cfg, log: cfg.Log, slots: make(map[int64]*slot)}
}

// update starts keepers for new tokens, ends those of removed ones and tells the
// others what has changed. The keepers live until ctx ends.
func (m *tokens) update(ctx context.Context, snapshot *users.Snapshot) {
	keys := make(map[int64][]users.Key)
	for _, key := range snapshot.Keys() {
		keys[key.TokenID] = append(keys[key.TokenID], key)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	for id, s := range m.slots {
		if _, registered := snapshot.TokenByID(id); !registered {
			s.stop()
			delete(m.slots, id)
		}
	}
	for _, record := range snapshot.Tokens() {
		s, known := m.slots[record.ID]
		if !known {
			s = m.newSlot(ctx, record)
			m.slots[record.ID] = s
		}
		s.update(record, keys[record.ID])
		if !known {
			m.keepers.Go(s.keep)
		}
	}
}

func (m *tokens) newSlot(ctx context.Context, record users.Token) *slot {
	s := &slot{
		cfg: m.cfg, log: m.log.With("token", record.Name), record: record,
		changed: make(chan struct{}, 1), login: make(chan struct{}, 1),
		rejected: make(map[rejection]bool), state: StateOpening, since: time.Now(),
	}
	s.ctx, s.stop = context.WithCancel(ctx)
	return s
}

func (m *tokens) reopen() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.slots {
		s.reopen()
	}
}

func (m *tokens) slot(id int64) (*slot, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.slots[id]
	return s, ok
}

// unlock logs in to the key's token and fetches the key. A PIN that was changed since the
// token's login can be proven by another login only: for that the token is opened anew, once.
func (m *tokens) unlock(ctx context.Context, found granted, pins users.PINs) (*openToken, token.Key, error) {
	s, ok := m.slot(found.key.TokenID)
	if !ok {
		return nil, nil, fmt.Errorf("token of key %q is not registered: %w", found.key.Name, token.ErrTokenAbsent)
	}
	home, err := s.ready()
	if err != nil {
		return nil, nil, err
	}
	key, err := s.unlock(ctx, home, found, pins)
	if !errors.Is(err, errPINUnproven) {
		return home, key, err
	}
	if home, err = s.awaitReady(ctx); err != nil {
		return nil, nil, err
	}
	key, err = s.unlock(ctx, home, found, pins)
	return home, key, err
}

func (s *slot) unlock(ctx context.Context, home *openToken, found granted, pins users.PINs) (token.Key, error) {
	if err := s.logIn(ctx, home, found, pins); err != nil {
		home.failed(err)
		return nil, err
	}
	key, err := home.fetch(ctx, found.key)
	if err != nil {
		home.failed(err)
		return nil, err
	}
	return key, nil
}

// awaitReady waits while the token is opened anew, at most until ctx ends. It looks now and
// then instead of being told: this happens once after each change of a PIN.
func (s *slot) awaitReady(ctx context.Context) (*openToken, error) {
	for {
		home, err := s.ready()
		if err == nil || s.isAbsent() {
			return home, err
		}
		if !sleep(ctx, readyPause) {
			return nil, err
		}
	}
}

const readyPause = 10 * time.Millisecond

// wait takes no more tokens and returns when all keepers have closed their tokens.
func (m *tokens) wait(limit time.Duration) error {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	done := make(chan struct{})
	go func() { m.keepers.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-time.After(limit):
		return errors.New("signer: a token did not close")
	}
}

// openToken is a token between one opening and its closing.
type openToken struct {
	token.Token
	slot   *slot
	record users.Token // by which it was opened
	round  int         // the slot's when it was opened

	mu     sync.Mutex
	closed bool
	keys   map[int64]token.Key // fetched handles, by key ID
}

// fetch returns the key's handle, searching for it once, after comparing its
// public half with the registered one: each time, for rows of the store can be exchanged.
func (o *openToken) fetch(ctx context.Context, key *users.Key) (token.Key, error) {
	o.mu.Lock()
	handle, ok := o.keys[key.ID]
	o.mu.Unlock()
	if ok {
		if err := samePublic(key, handle.Public()); err != nil {
			return nil, err
		}
		return handle, nil
	}
	handle, err := o.Key(ctx, key.TokenKeyID)
	if err != nil {
		return nil, err
	}
	if err := samePublic(key, handle.Public()); err != nil {
		return nil, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.keys[key.ID] = handle
	return handle, nil
}

// failed looks at what the token returned: where it has lost its sessions or its
// login, it is closed and opened anew. Whoever has a key unlocked must unlock it again.
func (o *openToken) failed(err error) {
	if errors.Is(err, token.ErrNoKey) {
		o.mu.Lock()
		clear(o.keys)
		o.mu.Unlock()
	}
	if isLost(err) && o.retire() {
		o.slot.log.Warn("the token lost its sessions and is opened anew", "error", err)
		o.slot.wake()
	}
}

// isLost tells whether only opening the token anew can help.
func isLost(err error) bool {
	return errors.Is(err, token.ErrTokenAbsent) || errors.Is(err, token.ErrLoginRequired) || errors.Is(err, token.ErrClosed)
}

// retire marks the token as not to be used any more; false when it was already.
func (o *openToken) retire() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	was := o.closed
	o.closed = true
	return !was
}

func (o *openToken) isClosed() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.closed
}

// samePublic compares what a token has with what was registered.
func samePublic(key *users.Key, found crypto.PublicKey) error {
	registered, err := x509.ParsePKIXPublicKey(key.Public)
	if err != nil {
		return fmt.Errorf("key %q: its registered public half: %w", key.Name, err)
	}
	half, ok := registered.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !half.Equal(found) {
		return fmt.Errorf("key %q: the token has another public half than was registered: %w", key.Name, token.ErrMismatch)
	}
	return nil
}
