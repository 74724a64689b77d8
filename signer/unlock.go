package signer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"chancery/access"
	"chancery/audit"
	"chancery/token"
	"chancery/token/worker"
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
	capability worker.Capability
	keyID      int64
	tokenKeyID []byte
	lease      *lease
	priority   int // at the token's queue
}

// unlock opens a key with the user's passphrase. One user has one unlock looked
// at at a time, and one that fails for more than the token's absence costs a pause: guessing is slow, and takes the
// same time whether the key exists or not. Once its turn has come, losing the connection does not end it: what came of the passphrase
// is counted and recorded in any case, and what it opened is locked with the session's other keys.
func (t *session) unlock(ctx context.Context, id uint64, request *wire.Unlock) (wire.ResponseBody, error) {
	if err := t.server.recordable(); err != nil {
		return nil, err
	}
	if err := acquire(ctx, t.peer.unlocking); err != nil {
		return nil, fmt.Errorf("%w: %w", errOverloaded, err)
	}
	defer func() { <-t.peer.unlocking }()
	ctx, cancel := t.outlive(ctx, request)
	defer cancel()
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
		if !isTokenGone(err) {
			sleep(t.serving, t.server.cfg.FailurePause) // hanging up does not cut it short
		}
		return nil, err
	}
	record := t.entry(audit.KindUnlock, id, request.Key)
	record.Handle = opened.handle
	if err := t.server.record(ctx, record); err != nil {
		opened.home.Lock(opened.capability)
		return nil, err
	}
	t.keep(opened)
	t.lockVoid(time.Now()) // what was revoked since the grant was looked at did not find it among what the session holds
	t.log.Info("key unlocked", "key", request.Key, "grant", opened.grantID)
	return &wire.UnlockReply{}, nil
}

// isTokenGone tells whether an unlock failed because the token is away or its process ended. No passphrase was wrong then, and
// a pause would only keep the user's other sessions waiting when the token is back.
func isTokenGone(err error) bool {
	return errors.Is(err, errOpening) || errors.Is(err, token.ErrTokenAbsent) || errors.Is(err, worker.ErrGone)
}

// open goes from passphrase to capability: authorise, and have the token's process derive, unwrap, log in and find the key.
func (t *session) open(ctx context.Context, request *wire.Unlock) (unlocked, error) {
	found, err := t.find(request.Key, time.Now())
	if err != nil {
		return unlocked{}, errors.Join(err, t.pretend(ctx, request.Password))
	}
	guessing := target{t.userID, found.key.ID}
	if err := t.server.guesses.check(guessing, found.key.Name, time.Now()); err != nil {
		return unlocked{}, err
	}
	opened, err := t.present(ctx, found, request.Password)
	if errors.Is(err, access.ErrWrongPassphrase) {
		t.server.guesses.failed(context.WithoutCancel(ctx), guessing, time.Now())
	}
	if err != nil {
		return unlocked{}, err
	}
	t.server.guesses.succeeded(context.WithoutCancel(ctx), guessing)
	return opened, nil
}

// present shows the grant and its passphrase to the token's process.
func (t *session) present(ctx context.Context, found granted, passphrase wire.Secret) (unlocked, error) {
	slot, err := t.server.tokens.slot(found.key)
	if err != nil {
		return unlocked{}, err
	}
	home, err := slot.readyFor(ctx, found)
	if err != nil {
		return unlocked{}, err
	}
	binding, ok := found.snapshot.Binding(found.grant)
	if !ok {
		return unlocked{}, fmt.Errorf("grant %d: its user, token or key: %w", found.grant.ID, users.ErrNotFound)
	}
	place, err := t.server.takeDerivation(ctx)
	if err != nil {
		return unlocked{}, err
	}
	capability, err := slot.unlock(ctx, home, found, worker.Unlock{
		Holder: worker.Holder{Session: t.id, User: t.userID},
		Key:    worker.Key{Name: found.key.Name, ID: found.key.TokenKeyID, Public: found.key.Public},
		Grant: worker.Grant{
			Parameters: found.grant.Access.Parameters, Wrapped: found.grant.Wrapped, Staged: found.grant.Staged, Binding: binding,
		},
		Passphrase: passphrase.Bytes(), Lasts: t.server.leaseTime(found.grant), Uses: found.grant.LeaseUses,
	}, place.release)
	if err != nil {
		return unlocked{}, fmt.Errorf("%w: %w", errUnlockFailed, err)
	}
	return unlocked{
		grantID: found.grant.ID, generation: found.grant.Generation, handle: found.key.Handle, algorithm: found.key.Algorithm,
		home: home, capability: capability, keyID: found.key.ID, tokenKeyID: found.key.TokenKeyID,
		lease: t.server.newLease(found.grant, time.Now()), priority: found.grant.Priority,
	}, nil
}

// pretend takes as long as deriving an access key that exists.
func (t *session) pretend(ctx context.Context, passphrase wire.Secret) error {
	err := t.server.derive(ctx, passphrase, t.server.decoy)
	if errors.Is(err, access.ErrWrongPassphrase) {
		return nil
	}
	return err
}

// derive makes an access key here, in the time that it takes the token's process.
func (s *Server) derive(ctx context.Context, passphrase wire.Secret, parameters access.Parameters) error {
	place, err := s.takeDerivation(ctx)
	if err != nil {
		return err
	}
	defer place.release()
	if len(passphrase.Bytes()) > access.MaxPassphrase {
		return fmt.Errorf("passphrase of more than %d bytes: %w", access.MaxPassphrase, access.ErrWrongPassphrase)
	}
	_, err = access.DeriveKey(passphrase.Bytes(), parameters)
	return err
}

// derivation is one of the MaxDerivations passphrases that are derived at once, here and in the tokens' processes.
type derivation struct{ release func() }

func (s *Server) takeDerivation(ctx context.Context) (derivation, error) {
	asked := time.Now()
	s.deriving.Add(1)
	err := acquire(ctx, s.derivations)
	s.deriving.Add(-1)
	if err != nil {
		return derivation{}, fmt.Errorf("%w: %w", errOverloaded, err)
	}
	began := time.Now()
	return derivation{sync.OnceFunc(func() {
		<-s.derivations
		s.cfg.Observer.Derived(began.Sub(asked), time.Since(began))
	})}, nil
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
	if !opened.isBy(found.grant) || opened.home.isClosed() {
		t.forget(opened)
		return unlocked{}, errLockedLater
	}
	if opened.lease.ended(now) {
		t.forget(opened)
		return unlocked{}, errLeaseEnded
	}
	return opened, nil
}

// keep takes over what was unlocked, in place of what the session had for that key.
func (t *session) keep(opened unlocked) {
	t.mu.Lock()
	before, had := t.unlocked[opened.keyID]
	t.unlocked[opened.keyID] = opened
	t.mu.Unlock()
	if had {
		before.home.Lock(before.capability)
	}
}

// forget drops what was unlocked, unless it has been unlocked anew.
func (t *session) forget(opened unlocked) {
	t.mu.Lock()
	same := t.unlocked[opened.keyID].lease == opened.lease
	if same {
		delete(t.unlocked, opened.keyID)
	}
	t.mu.Unlock()
	if same {
		opened.home.Lock(opened.capability)
	}
}

// forgetAll drops everything at the session's end.
func (t *session) forgetAll() {
	t.mu.Lock()
	all := t.unlocked
	t.unlocked = nil
	t.mu.Unlock()
	for _, opened := range all {
		opened.home.Lock(opened.capability)
	}
}

// lockVoid drops what sessions hold by grants that are no longer what they were, so that a token which nobody
// may use any more forgets its PIN at once.
func (s *Server) lockVoid() {
	s.mu.Lock()
	sessions := slices.Collect(maps.Keys(s.sessions))
	s.mu.Unlock()
	now := time.Now()
	for _, t := range sessions {
		t.lockVoid(now)
	}
}

func (t *session) lockVoid(now time.Time) {
	snapshot := t.server.snapshot.Load()
	t.mu.Lock()
	held := slices.Collect(maps.Values(t.unlocked))
	t.mu.Unlock()
	for _, opened := range held {
		grant, usable := snapshot.Usable(t.userID, opened.keyID, now)
		if !usable || !opened.isBy(grant) || opened.lease.ended(now) {
			t.forget(opened)
		}
	}
}

// isBy tells whether the key was unlocked by this grant as it is now.
func (u unlocked) isBy(grant *users.Grant) bool {
	return u.grantID == grant.ID && u.generation == grant.Generation
}
