package client

import (
	"context"
	"errors"
	"slices"
	"sync"

	"chancery/tunnel/wire"
)

// passphrases are those of the keys that were unlocked, kept so that a new
// connection can be given them.
type passphrases struct {
	mu    sync.Mutex
	byKey map[string][]byte
}

// keep remembers a copy.
func (p *passphrases) keep(key string, passphrase []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.byKey[key])
	if p.byKey == nil {
		p.byKey = make(map[string][]byte)
	}
	p.byKey[key] = slices.Clone(passphrase)
}

// get returns a copy, which the caller wipes, or nil.
func (p *passphrases) get(key string) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.byKey[key])
}

func (p *passphrases) forget(key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.byKey[key])
	delete(p.byKey, key)
}

func (p *passphrases) wipe() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, passphrase := range p.byKey {
		clear(passphrase)
	}
	clear(p.byKey)
}

// unlocks says which keys are open on one connection. Each opening has a
// number, so that many requests refused together lead to one new unlock.
type unlocks struct {
	gate  chan struct{} // held while an unlock is on its way
	mu    sync.Mutex
	count uint64
	open  map[string]uint64
	good  map[string]uint64 // requests that were answered, by key
}

func newUnlocks() unlocks {
	return unlocks{gate: make(chan struct{}, 1), open: make(map[string]uint64), good: make(map[string]uint64)}
}

// opened returns the number of the key's opening, or zero.
func (u *unlocks) opened(key string) uint64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.open[key]
}

func (u *unlocks) note(key string) uint64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.count++
	u.open[key] = u.count
	return u.count
}

// serve notes that the key was open for a request, and servedBy for how many it was.
func (u *unlocks) serve(key string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.good[key]++
}

func (u *unlocks) servedBy(key string) uint64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.good[key]
}

// expired notes that the opening of this number is gone.
func (u *unlocks) expired(key string, number uint64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.open[key] == number {
		delete(u.open, key)
	}
}

// Unlock opens a key for this client with the user's passphrase for it. The
// client keeps a copy until Close and opens the key again whenever it connects
// anew; the caller wipes its own. Only a passphrase that the server accepted is
// kept.
func (c *Client) Unlock(ctx context.Context, key string, passphrase []byte) error {
	kept := slices.Clone(passphrase)
	defer clear(kept)
	_, err := c.repeat(ctx, func(ctx context.Context) (wire.ResponseBody, error) {
		conn, err := c.connection(ctx)
		if err != nil {
			return nil, err
		}
		return nil, conn.unlock(ctx, key, kept)
	})
	if err != nil {
		return told("unlock", key, err)
	}
	return c.remember(key, kept)
}

// remember keeps a passphrase unless the client was closed meanwhile.
func (c *Client) remember(key string, passphrase []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx.Err() != nil {
		return told("unlock", key, ErrClosed)
	}
	c.secrets.keep(key, passphrase)
	return nil
}

// unlock sends a passphrase on this connection.
func (c *connection) unlock(ctx context.Context, key string, passphrase []byte) error {
	secret := wire.NewSecret(slices.Clone(passphrase))
	defer secret.Wipe()
	if _, err := c.roundTrip(ctx, &wire.Unlock{Key: key, Password: secret}); err != nil {
		return err
	}
	c.unlocks.note(key)
	return nil
}

// ensureUnlocked opens a key on a connection where it is not open yet, if its
// passphrase is known, and returns the number of its opening.
func (c *Client) ensureUnlocked(ctx context.Context, conn *connection, key string) (uint64, error) {
	if number := conn.unlocks.opened(key); number != 0 {
		return number, nil
	}
	select {
	case conn.unlocks.gate <- struct{}{}:
		defer func() { <-conn.unlocks.gate }()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	if number := conn.unlocks.opened(key); number != 0 {
		return number, nil
	}
	passphrase := c.secrets.get(key)
	defer clear(passphrase)
	if passphrase == nil {
		return 0, nil
	}
	if err := conn.unlock(ctx, key, passphrase); err != nil {
		return 0, c.unlockFailure(key, err)
	}
	c.cfg.Log.Debug("unlocked again", "session", conn.session.String(), "key", key)
	return conn.unlocks.opened(key), nil
}

// unlockFailure forgets a passphrase that has stopped to open its key: it is
// not worth the server's work a second time.
func (c *Client) unlockFailure(key string, err error) error {
	if errors.Is(err, wire.NewError(wire.CodeWrongPassphrase)) {
		c.secrets.forget(key)
	}
	var lost *lostError
	if errors.As(err, &lost) {
		// What the caller wanted was not sent, whatever became of the unlock.
		return &lostError{sent: false, cause: lost.cause}
	}
	var answer *wire.Error
	if errors.As(err, &answer) {
		return &Error{Op: "unlock", Key: key, Code: answer.Code, Message: answer.Message, Err: answer}
	}
	return err
}
