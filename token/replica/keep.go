package replica

import (
	"context"
	"crypto"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"chancery/token"
)

// Pauses between attempts to take a member back: none before the first, then this long, and twice as long each
// time up to Config.ProbeEvery.
const firstPause = 100 * time.Millisecond

// errNotReturned says that the member still has calls that were left behind.
var errNotReturned = errors.New("calls made to it have not returned")

// keep looks after one member until the token is closed.
func (t *Token) keep(m *member) {
	pause := t.tend(m)
	close(m.tried)
	for {
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-m.kick:
		case <-t.ctx.Done():
			timer.Stop()
			return
		}
		timer.Stop()
		pause = t.tend(m)
	}
}

// tend does what the member needs now and returns how long it needs nothing more.
func (t *Token) tend(m *member) time.Duration {
	t.mu.Lock()
	state, calls, pause := m.state, m.inFlight, time.Until(m.notBefore)
	t.mu.Unlock()
	switch {
	case state == StateHealthy:
		t.probe(m)
		return t.cfg.ProbeEvery
	case calls > 0: // its last call wakes the keeper
		return t.cfg.ProbeEvery
	case state == StateBarred:
		t.end(m)
		return t.cfg.ProbeEvery
	case pause > 0:
		return pause
	}
	return t.attempt(m)
}

// attempt tries to take the member back, and returns the pause after that.
func (t *Token) attempt(m *member) time.Duration {
	err := t.takeBack(m)
	t.mu.Lock()
	defer t.mu.Unlock()
	pause := min(firstPause<<min(m.attempts, 16), t.cfg.ProbeEvery)
	m.attempts++
	m.notBefore = time.Now().Add(pause)
	if err == nil {
		return t.cfg.ProbeEvery
	}
	if m.state == StateBarred {
		return 0 // to be closed
	}
	if m.attempts == 1 || m.err.Error() != err.Error() {
		t.cfg.Log.Warn("a member of the token cannot be taken in; it is tried again", "serial", t.cfg.Serial, "member", m.name, "error", err)
	}
	t.enter(m, StateLeftOut, err)
	return pause
}

// takeBack opens the member anew, brings it to the token's login, compares its keys and has it sign a canary.
func (t *Token) takeBack(m *member) error {
	if err := t.closeMember(t.ctx, m); err != nil {
		t.cfg.Log.Warn("closing a member of the token", "serial", t.cfg.Serial, "member", m.name, "error", err)
	}
	open, err := t.openMember(m)
	if err != nil {
		return err
	}
	for {
		t.mu.Lock()
		epoch, loggedIn := t.epoch, t.pin != nil
		t.mu.Unlock()
		maxSessions, err := t.prepare(m, open, loggedIn)
		if err != nil {
			return err
		}
		if t.admit(m, epoch, maxSessions) {
			return nil
		}
		if err := t.ctx.Err(); err != nil {
			return err
		}
	}
}

// admit lets requests go to the member, unless the login has changed while it was prepared.
func (t *Token) admit(m *member, epoch uint64, maxSessions int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if epoch != t.epoch || t.closed {
		return false
	}
	again := m.state != StateOpening
	t.enter(m, StateHealthy, nil)
	m.generation++
	m.maxSessions, m.strikes, m.good, m.signed = maxSessions, 0, time.Now(), false
	t.wake()
	if again {
		t.cfg.Log.Info("a member of the token is taken back", "serial", t.cfg.Serial, "member", m.name)
	}
	return true
}

// visitMember makes one of the keeper's calls.
func visitMember[T any](t *Token, m *member, f func(ctx context.Context) (T, error)) (T, error) {
	return visitWithin(t, m, t.cfg.CallTimeout, f)
}

func visitWithin[T any](t *Token, m *member, limit time.Duration, f func(ctx context.Context) (T, error)) (T, error) {
	if err := t.mayVisit(m); err != nil {
		var none T
		return none, err
	}
	return call(t.ctx, t, m, limit, f)
}

// mayVisit counts a call of the keeper's, unless an earlier one hangs.
func (t *Token) mayVisit(m *member) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closed:
		return token.ErrClosed
	case m.inFlight > 0 && m.state != StateHealthy:
		return errNotReturned
	}
	m.inFlight++
	return nil
}

// openMember opens it. What an Open that was given up returns after all is closed.
func (t *Token) openMember(m *member) (token.Token, error) {
	open, err := visitMember(t, m, func(ctx context.Context) (token.Token, error) {
		open, err := m.open(ctx)
		if err != nil {
			return nil, err
		}
		if err := t.opened(ctx, m, open); err != nil {
			return nil, errors.Join(err, open.Close())
		}
		return open, nil
	})
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	return open, nil
}

// opened makes it the member's token, unless nobody waits for it any more.
func (t *Token) opened(ctx context.Context, m *member, open token.Token) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return token.ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	m.token = open
	clear(m.held)
	return nil
}

// prepare logs the member in or out as the whole token is, and has it prove itself.
func (t *Token) prepare(m *member, open token.Token, loggedIn bool) (maxSessions int, err error) {
	info, err := visitMember(t, m, func(ctx context.Context) (token.Info, error) { return open.Info(ctx) })
	if err != nil {
		return 0, fmt.Errorf("info: %w", err)
	}
	if loggedIn {
		if err := t.alone(t.ctx, func() error { return t.logBackIn(m, open) }); err != nil {
			return 0, fmt.Errorf("login: %w", err)
		}
		return info.MaxSessions, t.prove(m, open)
	}
	if info.LoggedIn {
		_, err = visitMember(t, m, func(ctx context.Context) (struct{}, error) { return struct{}{}, open.Logout(ctx) })
	}
	return info.MaxSessions, err
}

// logBackIn sends the kept PIN. It runs alone: while the PIN is changed nobody knows which one the member has.
func (t *Token) logBackIn(m *member, open token.Token) error {
	t.mu.Lock()
	pin := t.pin
	t.mu.Unlock()
	if pin == nil {
		return token.ErrLoginRequired // the login has ended meanwhile; the next attempt knows
	}
	if err := t.mayVisit(m); err != nil {
		return err
	}
	err := t.logInTo(t.ctx, m, open, pin, false)
	if isRejection(err) {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.bar(m, err)
	}
	return err
}

// prove compares all known keys and has one sign a canary. A member that has keys, and none whose halves fit together as far
// as its driver can tell, makes wrong signatures.
func (t *Token) prove(m *member, open token.Token) error {
	var proven bool
	var unfit error
	for _, k := range t.allKeys() {
		_, err := visitMember(t, m, func(ctx context.Context) (token.Key, error) { return k.at(ctx, m, open) })
		if errors.Is(err, token.ErrMismatch) && !errors.Is(err, errAnotherHalf) {
			unfit = err
		}
		if lacksKey(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("find key %x: %w", k.id, err)
		}
		if proven {
			continue
		}
		if err := t.canary(m, open, k); err != nil {
			return fmt.Errorf("canary: %w", err)
		}
		proven = true
	}
	if !proven && unfit != nil {
		return fmt.Errorf("canary: %w", unfit)
	}
	return nil
}

func (t *Token) allKeys() []*key {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]*key, 0, len(t.keys))
	for _, k := range t.keys {
		all = append(all, k)
	}
	slices.SortFunc(all, func(a, b *key) int { return slices.Compare(a.id, b.id) })
	return all
}

// canary has the member sign a random digest, which means nothing to anybody, and verifies the signature.
func (t *Token) canary(m *member, open token.Token, k *key) error {
	hash := crypto.SHA256
	if k.algorithm == token.Ed25519 {
		hash = 0
	}
	digest := make([]byte, crypto.SHA256.Size())
	rand.Read(digest) // never fails: it ends the program instead
	_, err := visitWithin(t, m, t.cfg.SignTimeout, func(ctx context.Context) ([]byte, error) {
		return k.signAt(ctx, m, open, digest, hash)
	})
	return err
}

// probe looks at a member in order that has made no signature since the last look, and again for keys that it lacked.
func (t *Token) probe(m *member) {
	t.mu.Lock()
	v := visit{m, m.token, m.generation, t.epoch}
	loggedIn, signed := t.pin != nil, m.signed
	m.signed = false
	for k, held := range m.held {
		m.held[k] = held.again()
	}
	t.mu.Unlock()
	var err error
	switch {
	case !loggedIn:
		_, err = visitMember(t, m, func(ctx context.Context) (token.Info, error) { return v.open.Info(ctx) })
	case !signed:
		err = t.prove(m, v.open)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err == nil {
		m.attempts = 0
		return
	}
	if v.epoch == t.epoch && !t.closed && !errors.Is(err, token.ErrBusy) {
		t.blame(v, fmt.Errorf("probe: %w", err))
	}
}

// end closes a barred member, once.
func (t *Token) end(m *member) {
	if err := t.closeMember(t.ctx, m); err != nil {
		t.cfg.Log.Warn("closing a member of the token", "serial", t.cfg.Serial, "member", m.name, "error", err)
	}
}

// closeMember closes the member if it is open and no call to it hangs.
func (t *Token) closeMember(ctx context.Context, m *member) error {
	t.mu.Lock()
	open := m.token
	if open == nil || m.behind > 0 {
		t.mu.Unlock()
		return nil
	}
	m.token = nil
	clear(m.held)
	m.inFlight++
	t.mu.Unlock()
	_, err := call(ctx, t, m, t.cfg.CallTimeout, func(context.Context) (struct{}, error) { return struct{}{}, open.Close() })
	if err != nil {
		return fmt.Errorf("member %q: %w", m.name, err)
	}
	return nil
}
