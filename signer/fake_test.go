package signer

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"chancery/token"
	"chancery/token/worker"
	"chancery/users"
)

// fakeToken is a token in memory that counts what is asked of it and fails on demand.
type fakeToken struct {
	serial string
	keys   []*fakeKey

	mu       sync.Mutex
	pin      string
	pinState token.PINState
	absent   bool // not there at all
	opens    int
	tries    []string // every PIN that was sent
	panics   string   // the operation that does
}

func (f *fakeToken) panicIn(operation string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.panics == operation {
		panic(operation)
	}
}

// fakeSession is a fakeToken between Open and Close.
type fakeSession struct {
	*fakeToken
	mu       sync.Mutex
	loggedIn bool
	closed   bool
}

// open gives the token to a vault of this process, where the daemon has one of its own.
func (f *fakeToken) open(context.Context, users.Token) (worker.Handler, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.opens++
	if f.panics == "open" {
		panic("open")
	}
	if f.absent {
		return nil, fmt.Errorf("fake: %w", token.ErrTokenAbsent)
	}
	return worker.NewVault(&fakeSession{fakeToken: f}, slog.New(slog.DiscardHandler)), nil
}

// distant answers as a token in a process of its own: where the context ends first, the unlock goes on there, and what it
// finds is dropped.
type distant struct{ worker.Handler }

// Unlock implements worker.Handler.
func (d distant) Unlock(ctx context.Context, u worker.Unlock, ledger worker.Ledger) (worker.Capability, error) {
	type outcome struct {
		capability worker.Capability
		err        error
	}
	u.Passphrase = bytes.Clone(u.Passphrase)
	result := make(chan outcome, 1)
	go func() {
		capability, err := d.Handler.Unlock(context.WithoutCancel(ctx), u, ledger)
		result <- outcome{capability, err}
	}()
	select {
	case o := <-result:
		return o.capability, o.err
	case <-ctx.Done():
		go func() {
			if late := <-result; late.err == nil {
				d.Lock(late.capability)
			}
		}()
		return worker.Capability{}, fmt.Errorf("fake: no answer yet: %w", context.Cause(ctx))
	}
}

// inProcess has the token be in a process of its own.
func inProcess(w *world, cfg *Config) {
	cfg.Open = func(ctx context.Context, record users.Token) (worker.Handler, error) {
		opened, err := w.token.open(ctx, record)
		return distant{opened}, err
	}
}

// change alters the token under its lock.
func (f *fakeToken) change(how func(*fakeToken)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	how(f)
}

func (f *fakeToken) sent() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.tries)
}

func (f *fakeSession) ready() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return token.ErrClosed
	}
	f.fakeToken.mu.Lock()
	defer f.fakeToken.mu.Unlock()
	if f.absent {
		return token.ErrTokenAbsent
	}
	return nil
}

func (f *fakeSession) Info(context.Context) (token.Info, error) {
	f.fakeToken.panicIn("info")
	if err := f.ready(); err != nil {
		return token.Info{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return token.Info{Serial: f.serial, LoggedIn: f.loggedIn, PIN: f.pinState}, nil
}

func (f *fakeSession) Logout(context.Context) error {
	if err := f.ready(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.loggedIn = false
	return nil
}

func (f *fakeSession) Login(_ context.Context, pin []byte) error {
	if err := f.ready(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.loggedIn {
		return nil
	}
	f.fakeToken.mu.Lock()
	defer f.fakeToken.mu.Unlock()
	f.tries = append(f.tries, string(pin))
	if string(pin) != f.pin {
		return fmt.Errorf("fake: %w", token.ErrPINIncorrect)
	}
	f.loggedIn = true
	return nil
}

func (f *fakeSession) Keys(context.Context) ([]token.KeyInfo, error) {
	f.fakeToken.panicIn("keys")
	if err := f.ready(); err != nil {
		return nil, err
	}
	var all []token.KeyInfo
	for _, k := range f.keys {
		if !k.hidden {
			all = append(all, token.KeyInfo{ID: k.id, Algorithm: k.algorithm, Public: k.Public()})
		}
	}
	return all, nil
}

func (f *fakeSession) Key(_ context.Context, id []byte) (token.Key, error) {
	if err := f.ready(); err != nil {
		return nil, err
	}
	for _, k := range f.keys {
		if bytes.Equal(k.id, id) {
			k.fetched.Add(1)
			return fakeHandle{k, f}, nil
		}
	}
	return nil, token.ErrNoKey
}

func (f *fakeSession) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	f.fakeToken.panicIn("close")
	return nil
}

func (*fakeSession) Generate(context.Context, token.KeySpec) (token.Key, error) {
	return nil, token.ErrUnsupported
}

func (*fakeSession) Import(context.Context, token.KeySpec, crypto.PrivateKey) (token.Key, error) {
	return nil, token.ErrUnsupported
}

func (*fakeSession) Destroy(context.Context, []byte) error { return token.ErrUnsupported }

func (*fakeSession) ChangePIN(context.Context, []byte, []byte) error { return token.ErrUnsupported }

// fakeKey signs with a key in memory, after hook where one is set.
type fakeKey struct {
	id        []byte
	algorithm token.Algorithm
	private   crypto.Signer
	hidden    bool
	hook      atomic.Pointer[func(ctx context.Context, input []byte) error]

	fetched, signed atomic.Int64
	busy, maxBusy   atomic.Int64
}

func (k *fakeKey) Public() crypto.PublicKey { return k.private.Public() }

func (k *fakeKey) before(hook func(ctx context.Context, input []byte) error) {
	k.hook.Store(&hook)
}

type fakeHandle struct {
	*fakeKey
	session *fakeSession
}

func (h fakeHandle) ID() []byte { return h.id }

func (h fakeHandle) Algorithm() token.Algorithm { return h.algorithm }

func (h fakeHandle) Sign(ctx context.Context, input []byte, options crypto.SignerOpts) ([]byte, error) {
	if err := h.session.ready(); err != nil {
		return nil, err
	}
	busy := h.busy.Add(1)
	defer h.busy.Add(-1)
	for seen := h.maxBusy.Load(); busy > seen && !h.maxBusy.CompareAndSwap(seen, busy); seen = h.maxBusy.Load() {
	}
	if hook := h.hook.Load(); hook != nil {
		if err := (*hook)(ctx, input); err != nil {
			return nil, err
		}
	}
	h.signed.Add(1)
	return h.private.Sign(rand.Reader, input, options)
}

// privateKeys are made once, because RSA keys take their time.
var privateKeys = sync.OnceValue(func() map[token.Algorithm]crypto.Signer {
	keys := make(map[token.Algorithm]crypto.Signer)
	for _, a := range token.Algorithms() {
		keys[a] = newPrivate(a)
	}
	return keys
})

func newPrivate(a token.Algorithm) crypto.Signer {
	var (
		key crypto.Signer
		err error
	)
	switch {
	case a.RSABits() > 0: // registered as larger than it is: long moduli take seconds to find
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	case a == token.Ed25519:
		_, key, err = ed25519.GenerateKey(rand.Reader)
	default:
		key, err = ecdsa.GenerateKey(a.Curve(), rand.Reader)
	}
	if err != nil {
		panic(err)
	}
	return key
}

func spki(public crypto.PublicKey) []byte {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		panic(err)
	}
	return der
}

// fakeStore keeps everything in memory. Only what a Server uses is there.
type fakeStore struct {
	users.Store
	mu       sync.Mutex
	revision int64
	fails    error
	users    []users.User
	tokens   []users.Token
	keys     []users.Key
	grants   []users.Grant
	events   []string // what the ledger was told

	unreadable []users.Unreadable
	failures   []users.UnlockFailures
}

func (s *fakeStore) Snapshot(context.Context) (*users.Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fails != nil {
		return nil, s.fails
	}
	return users.NewSnapshot(s.revision, slices.Clone(s.users), slices.Clone(s.tokens), slices.Clone(s.keys), slices.Clone(s.grants), slices.Clone(s.unreadable)...), nil
}

func (s *fakeStore) Revision(context.Context) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.revision, s.fails
}

func (s *fakeStore) CommitPIN(_ context.Context, tokenID, version int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, fmt.Sprintf("commit %d/%d", tokenID, version))
	return nil
}

func (s *fakeStore) RejectPIN(_ context.Context, tokenID, version int64, staged bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, fmt.Sprintf("reject %d/%d %v", tokenID, version, staged))
	return nil
}

func (s *fakeStore) ledger() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.events)
}

func (s *fakeStore) AddUnlockFailure(_ context.Context, userID, keyID int64, at time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.failures {
		if f := &s.failures[i]; f.UserID == userID && f.KeyID == keyID {
			f.Count, f.Last = f.Count+1, at
			return nil
		}
	}
	s.failures = append(s.failures, users.UnlockFailures{UserID: userID, KeyID: keyID, Count: 1, Last: at})
	return nil
}

func (s *fakeStore) ClearUnlockFailures(_ context.Context, userID, keyID int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failures = slices.DeleteFunc(s.failures, func(f users.UnlockFailures) bool { return f.UserID == userID && f.KeyID == keyID })
	return nil
}

func (s *fakeStore) UnlockFailures(ctx context.Context) ([]users.UnlockFailures, error) {
	if err := ctx.Err(); err != nil { // as a database does
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.failures), s.fails
}
