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
	"chancery/token/worker"
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
			s = newSlot(ctx, m.cfg, m.log, record)
			m.slots[record.ID] = s
		}
		s.update(record, keys[record.ID])
		if !known {
			m.keepers.Go(s.keep)
		}
	}
}

func (m *tokens) reopen() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.slots {
		s.reopen()
	}
}

// slot finds the place of a key's token.
func (m *tokens) slot(key *users.Key) (*slot, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.slots[key.TokenID]
	if !ok {
		return nil, fmt.Errorf("token of key %q is not registered: %w", key.Name, token.ErrTokenAbsent)
	}
	return s, nil
}

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
	worker.Handler
	slot   *slot
	record users.Token // by which it was opened
	round  int         // the slot's when it was opened
	opened time.Time

	mu     sync.Mutex
	closed bool
}

// failed looks at what the token returned: where only opening it anew can help, that is
// done. Whoever has a key unlocked must unlock it again.
func (o *openToken) failed(err error) {
	if isLost(err) && o.retire() {
		o.slot.log.Warn("the token failed and is opened anew", "error", err)
		o.slot.wake()
	}
}

// isLost tells whether only opening the token anew can help.
func isLost(err error) bool {
	return errors.Is(err, token.ErrTokenAbsent) || errors.Is(err, token.ErrLoginRequired) || errors.Is(err, token.ErrClosed) ||
		errors.Is(err, worker.ErrCorrupt)
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
