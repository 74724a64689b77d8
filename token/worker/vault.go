package worker

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"chancery/access"
	"chancery/internal/confine"
	"chancery/token"
	"chancery/users"
)

// Vault is the custody of one open token.
type Vault struct {
	token      token.Token
	log        *slog.Logger
	unverified bool // signatures are given out as the token makes them

	derivations chan struct{} // held while a passphrase is derived
	deriveKey   func(passphrase []byte, p access.Parameters) (*access.Key, error)

	login chan struct{} // held while the login changes
	using sync.RWMutex  // signatures read, a change of the login writes
	proof proof         // guarded by login
	pin   *confine.Secret

	toldNotices bool // of how the PIN is kept; guarded by login

	logoutPause   time.Duration // before a logout that failed is tried again, for the first time
	failedLogouts int           // in a row since the PIN was kept, and nextLogout: guarded by login
	nextLogout    *time.Timer

	mu    sync.Mutex
	keys  map[string]*heldKey // by identifier on the token
	grips map[uint64]*grip    // by number
	last  uint64              // number given out

	closing  sync.Once
	closed   chan struct{}
	closeErr error // what Close returns
}

// heldKey is a key of the token, and what verifies its signatures.
type heldKey struct {
	token.Key
	verifier *token.Verifier
}

// DefaultDerivations is how many passphrases a vault derives at once. Each takes what the grant's parameters say,
// access.MaxMemoryKiB at most.
const DefaultDerivations = 2

// NewVault takes charge of an open token, which Close closes.
func NewVault(open token.Token, log *slog.Logger) *Vault {
	return &Vault{
		token: open, log: log,
		derivations: make(chan struct{}, DefaultDerivations), deriveKey: access.DeriveKey,
		logoutPause: firstLogoutPause,

		login:  make(chan struct{}, 1),
		keys:   make(map[string]*heldKey),
		grips:  make(map[uint64]*grip),
		closed: make(chan struct{}),
	}
}

// Info describes the token.
func (v *Vault) Info(ctx context.Context) (token.Info, error) { return v.token.Info(ctx) }

// Keys lists the token's keys.
func (v *Vault) Keys(ctx context.Context) ([]token.KeyInfo, error) { return v.token.Keys(ctx) }

// Unlock implements Handler.
func (v *Vault) Unlock(ctx context.Context, u Unlock, ledger Ledger) (Capability, error) {
	pins, err := v.unwrap(ctx, u, ledger)
	if err != nil {
		return Capability{}, err
	}
	defer pins.Clear()
	if err := v.acquireLogin(ctx); err != nil {
		return Capability{}, err
	}
	defer v.releaseLogin()
	if err := v.logIn(ctx, ledger, u.Token, pins); err != nil {
		v.forgetUnused(ctx)
		return Capability{}, err
	}
	key, err := v.fetch(ctx, u.Key)
	if err != nil {
		v.forgetUnused(ctx)
		return Capability{}, err
	}
	capability, err := v.grip(u, key)
	if err != nil {
		v.forgetUnused(ctx)
	}
	return capability, err
}

// unwrap turns the passphrase into what the grant holds. The caller clears it.
func (v *Vault) unwrap(ctx context.Context, u Unlock, ledger Ledger) (users.PINs, error) {
	derived, err := v.derive(ctx, u, ledger)
	if err != nil {
		return users.PINs{}, err
	}
	current, err := derived.Unwrap(u.Grant.Wrapped, u.Grant.Binding)
	if err != nil || u.Grant.Staged == nil {
		return users.PINs{Current: current}, err
	}
	staged, err := derived.Unwrap(u.Grant.Staged, u.Grant.Binding)
	if err != nil {
		clear(current)
		return users.PINs{}, err
	}
	return users.PINs{Current: current, Staged: staged}, nil
}

func (v *Vault) derive(ctx context.Context, u Unlock, ledger Ledger) (*access.Key, error) {
	defer ledger.Derived()
	expires := u.Grant.Binding.Expires
	if u.Lasts < 0 || u.Uses < 0 || !expires.IsZero() && !time.Now().Before(expires) {
		return nil, fmt.Errorf("%w: its time or its signatures are over before it begins", ErrCapability)
	}
	if len(u.Passphrase) > access.MaxPassphrase {
		return nil, fmt.Errorf("passphrase of more than %d bytes: %w", access.MaxPassphrase, access.ErrWrongPassphrase)
	}
	if err := v.acquireDerivation(ctx); err != nil {
		return nil, err
	}
	// Before the ledger hears of it, so that who counts along there and begins the next one at once finds room here.
	defer func() { <-v.derivations }()
	return v.deriveKey(u.Passphrase, u.Grant.Parameters)
}

// acquireDerivation waits for its turn. Whoever asks is expected to keep to the bound by themselves: this holds where they do not.
func (v *Vault) acquireDerivation(ctx context.Context) error {
	select {
	case v.derivations <- struct{}{}:
		return nil
	case <-v.closed:
		return token.ErrClosed
	case <-ctx.Done():
		return fmt.Errorf("waiting for other passphrases: %w", context.Cause(ctx))
	}
}

// fetch finds the key and keeps it. Its public half is compared with the registered one each time: rows of the store can be
// exchanged, and so can the keys of a token.
func (v *Vault) fetch(ctx context.Context, wanted Key) (*heldKey, error) {
	v.mu.Lock()
	key, known := v.keys[string(wanted.ID)]
	v.mu.Unlock()
	if known && samePublic(wanted, key.Public()) == nil {
		return key, nil
	}
	found, err := v.token.Key(ctx, wanted.ID)
	if err != nil {
		return nil, err
	}
	if err := samePublic(wanted, found.Public()); err != nil {
		return nil, err
	}
	verifier, err := token.NewVerifier(found.Public())
	if err != nil {
		return nil, fmt.Errorf("key %q: %w", wanted.Name, err)
	}
	key = &heldKey{found, verifier}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.keys[string(wanted.ID)] = key
	return key, nil
}

// samePublic compares what a token has with what was registered.
func samePublic(wanted Key, found crypto.PublicKey) error {
	registered, err := x509.ParsePKIXPublicKey(wanted.Public)
	if err != nil {
		return fmt.Errorf("key %q: its registered public half: %w", wanted.Name, err)
	}
	half, comparable := registered.(interface{ Equal(crypto.PublicKey) bool })
	if !comparable || !half.Equal(found) {
		return fmt.Errorf("key %q: the token has another public half than was registered: %w", wanted.Name, token.ErrMismatch)
	}
	return nil
}

// Sign implements Handler.
func (v *Vault) Sign(ctx context.Context, order Order) ([][]byte, error) {
	g, err := v.take(order, time.Now())
	if err != nil {
		return nil, err
	}
	defer func() {
		if g.used(int64(len(order.Inputs))) {
			v.Lock(order.Capability) // it is good for nothing any more, and the PIN need not stay for it
		}
	}()
	signatures := make([][]byte, len(order.Inputs))
	for i, input := range order.Inputs {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("worker: after %d of %d signatures: %w", i, len(signatures), err)
		}
		if g.isOver() {
			return nil, fmt.Errorf("%w: it ended after %d of %d signatures", ErrCapability, i, len(signatures))
		}
		if signatures[i], err = v.signVerified(ctx, g.key, input, order.Options); err != nil {
			return nil, err
		}
	}
	return signatures, nil
}

// signVerified has the token sign, a second time when the first signature turned out to be wrong.
func (v *Vault) signVerified(ctx context.Context, key *heldKey, input []byte, options crypto.SignerOpts) ([]byte, error) {
	for range 2 {
		signature, err := v.sign(ctx, key, input, options)
		if err != nil || v.unverified {
			return signature, err
		}
		if err = key.verifier.Verify(input, options, signature); err == nil {
			return signature, nil
		}
		v.log.Error("the token made a signature that does not verify; it is thrown away", "key_id", fmt.Sprintf("%x", key.ID()), "error", err)
	}
	return nil, ErrCorrupt
}

// sign has the token sign. A token that lost its login is logged in again with the PIN that it took before.
func (v *Vault) sign(ctx context.Context, key token.Key, input []byte, options crypto.SignerOpts) ([]byte, error) {
	signature, err := v.signOnce(ctx, key, input, options)
	if !errors.Is(err, token.ErrLoginRequired) {
		return signature, err
	}
	if err := v.logInAgain(ctx); err != nil {
		return nil, err
	}
	return v.signOnce(ctx, key, input, options)
}

func (v *Vault) signOnce(ctx context.Context, key token.Key, input []byte, options crypto.SignerOpts) ([]byte, error) {
	v.using.RLock()
	defer v.using.RUnlock()
	return key.Sign(ctx, input, options)
}

// Close implements Handler. It may be called again, and returns the same then.
func (v *Vault) Close() error {
	v.closing.Do(func() {
		v.mu.Lock()
		close(v.closed)
		v.mu.Unlock()
		v.endAll()
		// A login under way may end first: what the token said of the PIN is then known, and not taken for a try without an answer.
		waited := v.awaitLogin(lastWords / 2)
		v.closeErr = v.token.Close()
		if !waited {
			v.login <- struct{}{}
		}
		defer v.releaseLogin()
		v.stopLogouts()
		v.forgetPIN()
		v.proof.destroy()
	})
	return v.closeErr
}

// awaitLogin takes login within the limit, or not.
func (v *Vault) awaitLogin(limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case v.login <- struct{}{}:
		return true
	case <-timer.C:
		return false
	}
}

func (v *Vault) isClosed() bool {
	select {
	case <-v.closed:
		return true
	default:
		return false
	}
}

// Done implements Handler.
func (v *Vault) Done() <-chan struct{} { return v.closed }
