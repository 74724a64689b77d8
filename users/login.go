package users

import (
	"context"
	"errors"
	"fmt"

	"chancery/access"
	"chancery/token"
)

// PINs is what one grant holds, unwrapped. Clear it after use.
type PINs struct {
	Current []byte
	Staged  []byte // nil unless a PIN change is in flight
}

// Clear overwrites both PINs.
func (p PINs) Clear() {
	clear(p.Current)
	clear(p.Staged)
}

// Unwrap opens what the grant holds. It asks no token, so a wrong passphrase costs none of the
// token's tries. Errors: access.ErrWrongPassphrase; ErrNotFound when the snapshot lacks the
// grant's user, token or key.
func (s *Snapshot) Unwrap(g *Grant, key *access.Key) (PINs, error) {
	binding, ok := s.Binding(g)
	if !ok {
		return PINs{}, fmt.Errorf("users: grant %d: its user, token or key: %w", g.ID, ErrNotFound)
	}
	current, err := key.Unwrap(g.Wrapped, binding)
	if err != nil || g.Staged == nil {
		return PINs{Current: current}, err
	}
	staged, err := key.Unwrap(g.Staged, binding)
	if err != nil {
		clear(current)
		return PINs{}, err
	}
	return PINs{Current: current, Staged: staged}, nil
}

// Ledger is the part of a Store that remembers what a token said of a PIN.
type Ledger interface {
	Snapshot(ctx context.Context) (*Snapshot, error)
	CommitPIN(ctx context.Context, tokenID, version int64) error
	RejectPIN(ctx context.Context, tokenID, version int64, staged bool) error
}

// Login logs in to an open token with what a grant holds. While a PIN change is in flight it
// tries the current PIN and then the staged one, and commits the change once the
// token has taken the latter. A PIN that the token rejects is written to the ledger
// before anything else is tried and never sent again; none is sent when the token says that the next
// wrong one locks it. When the token is logged in already nothing is sent, and nothing learned.
//
// Record is the token as it stood in the snapshot that the grant came from; before each PIN is sent the
// ledger is asked whether another process has changed that since. Callers let no two logins of one
// open token run at once. Errors: token.ErrPINIncorrect, ErrPINRejected, ErrFinalTry, token.ErrPINLocked,
// token.ErrTokenAbsent, ErrNotFound when the token was removed, and the ledger's; with ErrStale, somebody
// else changed the PIN since the snapshot, or began to, and a fresh one helps.
func Login(ctx context.Context, ledger Ledger, record Token, open token.Token, pins PINs) error {
	info, err := open.Info(ctx)
	if err != nil {
		return fmt.Errorf("users: token %q: %w", record.Name, err)
	}
	if info.Serial != record.Serial {
		return fmt.Errorf("users: token %q: %w: another token, with serial number %q instead of %q, is in its place", record.Name, token.ErrTokenAbsent, info.Serial, record.Serial)
	}
	if info.LoggedIn {
		return nil
	}
	rejected, err := try(ctx, ledger, record, open, pins.Current, false)
	if pins.Staged == nil || !rejected {
		return err
	}
	if _, err := try(ctx, ledger, record, open, pins.Staged, true); err != nil {
		return err
	}
	err = ledger.CommitPIN(ctx, record.ID, record.PINVersion)
	if errors.Is(err, ErrStale) {
		return nil // another process has settled the same change
	}
	return err
}

// try sends one PIN, unless it or the token's retry counter forbids it. Rejected says that the PIN is wrong and that
// the ledger, or the token's guard, knows.
func try(ctx context.Context, ledger Ledger, record Token, open token.Token, pin []byte, staged bool) (rejected bool, err error) {
	if err := MaySend(ctx, ledger, record, staged); err != nil {
		return errors.Is(err, ErrPINRejected), err
	}
	if err := MayTry(ctx, record.Name, open); err != nil {
		return false, err
	}
	err = open.Login(ctx, pin)
	if err == nil {
		return false, nil
	}
	err = fmt.Errorf("users: token %q: %w", record.Name, err)
	if !errors.Is(err, token.ErrPINIncorrect) {
		return errors.Is(err, ErrPINRejected), err // a guarded token knows of rejections that the ledger does not
	}
	ledgerErr := ledger.RejectPIN(ctx, record.ID, record.PINVersion, staged)
	switch {
	case errors.Is(ledgerErr, ErrStale):
		return true, fmt.Errorf("%w: %w", err, ErrStale) // the PIN changed since it was read: a fresh snapshot has the right one
	case ledgerErr != nil:
		return false, fmt.Errorf("%w, and that could not be recorded: %w", err, ledgerErr)
	}
	return true, err
}

// MaySend tells why the PIN that a grant holds, or the staged one, may not be sent to its token: ErrPINRejected,
// or ErrStale when the grant was read before the PIN was changed, or a change of it began or was given up. Record
// is the token as it stood then; what the ledger holds now counts as well.
func MaySend(ctx context.Context, ledger Ledger, record Token, staged bool) error {
	now, err := ledger.Snapshot(ctx)
	if err != nil {
		return fmt.Errorf("users: token %q: no PIN is sent unread: %w", record.Name, err)
	}
	current, ok := now.TokenByID(record.ID)
	switch {
	case now.Closed() != nil:
		return fmt.Errorf("users: token %q: no PIN is sent unread: %w", record.Name, now.Closed())
	case !ok:
		return fmt.Errorf("users: token %q: %w", record.Name, ErrNotFound)
	case !staged && (record.PINRejected || current.PINRejected && current.PINVersion == record.PINVersion),
		staged && (record.StagedRejected || current.StagedRejected && current.PINVersion == record.PINVersion):
		return fmt.Errorf("%w: token %q: an operator who knows its PIN repairs the grants with \"token repair-pin\", or lets the same PIN be tried again with \"token unblock\"", ErrPINRejected, record.Name)
	case current.PINVersion != record.PINVersion:
		return fmt.Errorf("users: PIN of token %q: %w", record.Name, ErrStale)
	}
	return nil
}

// MayTry tells why no PIN may be sent to a token now: ErrFinalTry, token.ErrPINLocked, or
// the error of asking it; nil when one may. The name is for the error's text.
func MayTry(ctx context.Context, name string, open token.Token) error {
	info, err := open.Info(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("users: token %q: %w", name, err)
	case info.PIN.Locked:
		return fmt.Errorf("users: token %q: %w: its security officer has to set a new PIN", name, token.ErrPINLocked)
	case info.PIN.FinalTry:
		return fmt.Errorf("%w: token %q: no PIN is sent until somebody has logged in with the right one by the token's own tool", ErrFinalTry, name)
	}
	return nil
}
