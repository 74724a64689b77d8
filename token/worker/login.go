package worker

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"chancery/access"
	"chancery/internal/confine"
	"chancery/token"
	"chancery/users"
)

// proof remembers the PIN that the token took last, as a digest under a key of its own, so that a grant
// can be held against it, and the PINs that it did not take.
type proof struct {
	key     []byte
	digest  []byte // nil until the token has taken a PIN
	version int64  // the PIN's, as of the unlock that showed it last

	rejected map[string]bool // digests of PINs that the token rejected
	misfits  int             // PINs that did not fit the one that it had taken
}

// maxWrongPINs is how many wrong PINs a vault bears with. Grants are made by those who know the PIN, so that hardly
// any holds a wrong one, unless somebody who can alter what a vault is shown uses it to find the PIN out: a login that is kept up
// resets the token's own count of wrong PINs.
const maxWrongPINs = 32

func (p *proof) of(pin []byte) []byte {
	if p.key == nil {
		p.key = make([]byte, sha256.Size)
		rand.Read(p.key)
	}
	sum := hmac.New(sha256.New, p.key)
	sum.Write(pin)
	digest := sum.Sum(nil)
	// What was written last stays in the hash's buffer, of one block, until something else is. Of two pieces of almost a
	// block each, the first reaches the buffer's end and begins anew, and the second covers what that one left.
	for range 2 {
		sum.Write(make([]byte, sha256.BlockSize-1))
	}
	return digest
}

// fits tells whether the token took this PIN.
func (p *proof) fits(pin []byte) bool {
	return p.digest != nil && pin != nil && hmac.Equal(p.digest, p.of(pin))
}

// reject remembers that the token does not take a PIN.
func (p *proof) reject(pin []byte) {
	if p.rejected == nil {
		p.rejected = make(map[string]bool)
	}
	p.rejected[string(p.of(pin))] = true
}

func (p *proof) isRejected(pin []byte) bool { return p.rejected[string(p.of(pin))] }

// exhausted tells that no more PINs are looked at.
func (p *proof) exhausted(name string) error {
	if len(p.rejected)+p.misfits < maxWrongPINs {
		return nil
	}
	return fmt.Errorf("%w: token %q: %d grants held a wrong PIN, and no further one is looked at until \"token reload\"", users.ErrPINRejected, name, maxWrongPINs)
}

// forget leaves nothing of the PIN that the token took.
func (p *proof) forget() {
	clear(p.digest)
	p.digest, p.version = nil, 0
}

func (p *proof) destroy() {
	clear(p.key)
	*p = proof{}
}

func (v *Vault) acquireLogin(ctx context.Context) error {
	select {
	case v.login <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("waiting for another login: %w", context.Cause(ctx))
	}
	select {
	case <-v.closed:
		v.releaseLogin()
		return token.ErrClosed
	default:
		return nil
	}
}

func (v *Vault) releaseLogin() { <-v.login }

// logIn has the token take one of the PINs, or makes sure that it took one of them before. A token that is
// logged in is not sent a PIN, and that a wrap opens proves nothing: it is made with a public key, so that whoever can
// write to the store can make one for themselves, only not with the right PIN.
func (v *Vault) logIn(ctx context.Context, ledger users.Ledger, record users.Token, pins users.PINs) error {
	if err := v.proof.exhausted(record.Name); err != nil {
		return err
	}
	if err := users.Login(ctx, ledger, record, v.noting(record, pins), pins); err != nil {
		return err
	}
	if v.proves(record, pins) {
		return nil
	}
	if v.proof.digest != nil && v.proof.version == record.PINVersion {
		return v.misfit(record)
	}
	return v.proveAnew(ctx, ledger, record, pins)
}

// misfit counts a grant with another PIN than the one that the token took, although the record says that it is the same one.
func (v *Vault) misfit(record users.Token) error {
	v.proof.misfits++
	return fmt.Errorf("the grant does not hold the PIN that token %q has taken; its row was altered: %w", record.Name, access.ErrWrongPassphrase)
}

func (v *Vault) proves(record users.Token, pins users.PINs) bool {
	if !v.proof.fits(pins.Current) && !v.proof.fits(pins.Staged) {
		return false
	}
	v.proof.version = record.PINVersion
	return true
}

// proveAnew logs out and in again, since only a login can tell whether the PIN was changed since the last one. When the
// token does not take what the grant holds, it is logged in as it was before.
func (v *Vault) proveAnew(ctx context.Context, ledger users.Ledger, record users.Token, pins users.PINs) error {
	v.using.Lock()
	defer v.using.Unlock()
	if err := v.token.Logout(ctx); err != nil {
		return err
	}
	err := users.Login(ctx, ledger, record, v.noting(record, pins), pins)
	if err == nil {
		if v.proves(record, pins) {
			return nil
		}
		return fmt.Errorf("token %q is logged in by somebody else: %w", record.Name, token.ErrTokenAbsent)
	}
	if again := v.sendKept(context.WithoutCancel(ctx)); again != nil {
		v.log.Error("the token could not be logged in as before", "error", again)
	}
	return err
}

// logInAgain sends the PIN once more that the token has taken before, for it lost the login.
func (v *Vault) logInAgain(ctx context.Context) error {
	if err := v.acquireLogin(ctx); err != nil {
		return err
	}
	defer v.releaseLogin()
	info, err := v.token.Info(ctx)
	if err != nil || info.LoggedIn {
		return err // another signature has had it logged in
	}
	v.using.Lock()
	defer v.using.Unlock()
	if err := v.sendKept(ctx); err != nil {
		return err
	}
	v.log.Info("the token had lost its login and was logged in again")
	return nil
}

// sendKept logs in with the kept PIN, unless the token's retry counter forbids it. A kept PIN that the token does not take any
// more was changed by somebody else: it is not sent again, and no capability outlives it.
func (v *Vault) sendKept(ctx context.Context) error {
	if v.pin == nil {
		return token.ErrLoginRequired
	}
	if err := users.MayTry(ctx, "in custody", v.token); err != nil {
		return err
	}
	var err error
	v.pin.Use(func(pin []byte) {
		if err = v.token.Login(ctx, pin); errors.Is(err, token.ErrPINIncorrect) {
			v.proof.reject(pin)
		}
	})
	if errors.Is(err, token.ErrPINIncorrect) {
		v.forgetPIN()
		v.endAll()
		return fmt.Errorf("%w: the token was given another PIN: %v", ErrCapability, err)
	}
	return err
}

// noted has the vault keep the PIN that the token takes, and sends it none twice that it rejected.
type noted struct {
	token.Token
	vault  *Vault
	record users.Token
	staged bool // a change of the PIN is in flight, so that either may be right
}

func (v *Vault) noting(record users.Token, pins users.PINs) *noted {
	return &noted{v.token, v, record, pins.Staged != nil}
}

func (n *noted) Login(ctx context.Context, pin []byte) error {
	// Where the token has lost its login, this needs no try of the token's; and what a token answers that is logged in all the same says
	// nothing about the PIN.
	known := n.vault.proof.digest != nil && n.vault.proof.version == n.record.PINVersion
	if known && !n.staged && !n.vault.proof.fits(pin) {
		return n.vault.misfit(n.record)
	}
	if n.vault.proof.isRejected(pin) {
		return fmt.Errorf("worker: not sent again: %w", token.ErrPINIncorrect)
	}
	err := n.Token.Login(ctx, pin)
	if errors.Is(err, token.ErrPINIncorrect) {
		n.vault.proof.reject(pin)
	}
	if err != nil {
		return err
	}
	n.vault.proof.digest = n.vault.proof.of(pin)
	n.vault.keepPIN(pin)
	return nil
}

// keepPIN keeps what the token has taken, and tells once what the system does not grant for that.
func (v *Vault) keepPIN(pin []byte) {
	v.forgetKept()
	v.pin = confine.NewSecret(pin)
	if v.toldNotices {
		return
	}
	for _, notice := range v.pin.Notices() {
		v.toldNotices = true
		v.log.Warn("a token's PIN is kept without a protection", "what", notice.What, "why", notice.Why)
	}
}

func (v *Vault) forgetKept() {
	if v.pin != nil {
		v.pin.Destroy()
		v.pin = nil
	}
}

// forgetPIN forgets what was kept of the PIN, its digest included.
func (v *Vault) forgetPIN() {
	v.forgetKept()
	v.proof.forget()
}

// Logging out is tried again after this pause, and then after ones twice as long each time, up to so many times in a row.
const (
	firstLogoutPause = time.Second
	maxLogouts       = 8 // the last one four minutes after the first
)

// forgetUnused logs out when nobody has a key unlocked any more. The caller holds login.
func (v *Vault) forgetUnused(ctx context.Context) {
	v.mu.Lock()
	used := len(v.grips) > 0
	v.mu.Unlock()
	if used {
		return
	}
	v.using.Lock()
	defer v.using.Unlock()
	had := v.pin != nil
	if had {
		v.failedLogouts = 0
	}
	v.forgetPIN()
	if err := v.token.Logout(context.WithoutCancel(ctx)); err != nil {
		v.log.Warn("logging out of the token", "error", err)
		v.logOutAgain()
		return
	}
	if had || v.failedLogouts > 0 {
		v.log.Info("nobody has the token unlocked: logged out, and its PIN is forgotten")
	}
	v.failedLogouts = 0
}

// logOutAgain has a logout that failed tried again, unless somebody has a key unlocked by then. The caller holds login.
func (v *Vault) logOutAgain() {
	if v.failedLogouts == maxLogouts {
		v.log.Error("the token stays logged in, although nobody has it unlocked")
		return
	}
	v.stopLogouts() // at most one is to come
	v.nextLogout = time.AfterFunc(v.logoutPause<<v.failedLogouts, v.lockUnused)
	v.failedLogouts++
}

func (v *Vault) stopLogouts() {
	if v.nextLogout != nil {
		v.nextLogout.Stop()
	}
}
