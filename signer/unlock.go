package signer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"chancery/access"
	"chancery/audit"
	"chancery/token"
	"chancery/tunnel/wire"
	"chancery/users"
)

// unlocked is one key that this session opened, and by what.
type unlocked struct {
	grantID    int64
	generation int64
	handle     string
	algorithm  token.Algorithm
	home       *openToken
	key        token.Key
	keyID      int64
	lease      *lease
}

// unlock opens a key with the user's passphrase. One user has one unlock looked
// at at a time, and a failed one costs a pause: guessing is slow, and takes the
// same time whether the key exists or not.
func (t *session) unlock(ctx context.Context, id uint64, request *wire.Unlock) (wire.ResponseBody, error) {
	if err := t.server.recordable(); err != nil {
		return nil, err
	}
	if err := acquire(ctx, t.peer.unlocking); err != nil {
		return nil, fmt.Errorf("%w: %w", errOverloaded, err)
	}
	defer func() { <-t.peer.unlocking }()
	opened, err := t.open(ctx, request)
	if errors.Is(err, users.ErrStale) { // the PIN's state moved since the last poll: no PIN was sent, or a wrong one is on record
		if err = t.server.Refresh(ctx); err == nil {
			opened, err = t.open(ctx, request)
		}
	}
	if errors.Is(err, errGuessing) {
		return nil, err
	}
	if err != nil {
		sleep(t.serving, t.server.cfg.FailurePause) // hanging up does not cut it short
		return nil, err
	}
	record := t.entry(audit.KindUnlock, id, request.Key)
	record.Handle = opened.handle
	if err := t.server.record(ctx, record); err != nil {
		return nil, err
	}
	t.mu.Lock()
	t.unlocked[opened.keyID] = opened
	t.mu.Unlock()
	t.log.Info("key unlocked", "key", request.Key, "grant", opened.grantID)
	return &wire.UnlockReply{}, nil
}

// open goes from passphrase to key: authorise, derive, unwrap, log in, fetch.
func (t *session) open(ctx context.Context, request *wire.Unlock) (unlocked, error) {
	found, err := t.find(request.Key, time.Now())
	if err != nil {
		return unlocked{}, errors.Join(err, t.pretend(ctx, request.Password))
	}
	guessing := target{t.userID, found.key.ID}
	if err := t.server.guesses.check(guessing, found.key.Name, time.Now()); err != nil {
		return unlocked{}, err
	}
	pins, err := t.unwrap(ctx, found, request.Password)
	if errors.Is(err, access.ErrWrongPassphrase) {
		t.server.guesses.failed(context.WithoutCancel(ctx), guessing, time.Now())
	}
	if err != nil {
		return unlocked{}, err
	}
	defer pins.Clear()
	home, key, err := t.server.tokens.unlock(ctx, found, pins)
	if err != nil {
		return unlocked{}, fmt.Errorf("%w: %w", errUnlockFailed, err)
	}
	t.server.guesses.succeeded(context.WithoutCancel(ctx), guessing)
	return unlocked{
		grantID: found.grant.ID, generation: found.grant.Generation, handle: found.key.Handle, algorithm: found.key.Algorithm,
		home: home, key: key, keyID: found.key.ID, lease: t.server.newLease(found.grant, time.Now()),
	}, nil
}

// unwrap opens the grant, whose PINs the caller clears.
func (t *session) unwrap(ctx context.Context, found granted, passphrase wire.Secret) (users.PINs, error) {
	derived, err := t.server.derive(ctx, passphrase, found.grant.Access.Parameters)
	if errors.Is(err, errOverloaded) {
		return users.PINs{}, err
	}
	var pins users.PINs
	if err == nil {
		pins, err = found.snapshot.Unwrap(found.grant, derived)
	}
	if err != nil {
		return users.PINs{}, fmt.Errorf("%w: %w", errUnlockFailed, err)
	}
	return pins, nil
}

// pretend takes as long as deriving an access key that exists.
func (t *session) pretend(ctx context.Context, passphrase wire.Secret) error {
	_, err := t.server.derive(ctx, passphrase, t.server.decoy)
	if errors.Is(err, access.ErrWrongPassphrase) {
		return nil
	}
	return err
}

// derive makes the access key, at most MaxDerivations at once.
func (s *Server) derive(ctx context.Context, passphrase wire.Secret, parameters access.Parameters) (*access.Key, error) {
	asked := time.Now()
	s.deriving.Add(1)
	err := acquire(ctx, s.derivations)
	s.deriving.Add(-1)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errOverloaded, err)
	}
	defer func() { <-s.derivations }()
	began := time.Now()
	defer func() { s.cfg.Observer.Derived(began.Sub(asked), time.Since(began)) }()
	if len(passphrase.Bytes()) > access.MaxPassphrase {
		return nil, fmt.Errorf("passphrase of more than %d bytes: %w", access.MaxPassphrase, access.ErrWrongPassphrase)
	}
	return access.DeriveKey(passphrase.Bytes(), parameters)
}

// authorise checks, from memory alone, that the session may sign with a key now.
func (t *session) authorise(name string, now time.Time) (unlocked, error) {
	found, err := t.find(name, now)
	if err != nil {
		return unlocked{}, err
	}
	t.mu.Lock()
	opened, ok := t.unlocked[found.key.ID]
	t.mu.Unlock()
	if !ok {
		return unlocked{}, errNotUnlocked
	}
	if opened.grantID != found.grant.ID || opened.generation != found.grant.Generation || opened.home.isClosed() {
		t.forget(opened)
		return unlocked{}, errLockedLater
	}
	if opened.lease.ended(now) {
		t.forget(opened)
		return unlocked{}, errLeaseEnded
	}
	return opened, nil
}

// forget drops what was unlocked, unless it has been unlocked anew.
func (t *session) forget(opened unlocked) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.unlocked[opened.keyID].lease == opened.lease {
		delete(t.unlocked, opened.keyID)
	}
}
