package admin

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"chancery/access"
	"chancery/token"
	"chancery/users"
)

// Settlement is what SettlePIN found.
type Settlement string

// The outcomes.
const (
	NothingInFlight Settlement = "no PIN change was in flight"
	Completed       Settlement = "the PIN change is completed: the new PIN is in force"
	Refused         Settlement = "the token does not take the new PIN: the old one stays in force"
)

// ChangePIN gives a token a new PIN and wraps it for every grant. The actor is one of the
// token's managers. Killed at any point, the next login by anybody finds out
// by itself which PIN is right, and nobody loses access. A change that is in flight already is settled first. Errors:
// token.ErrPINInvalid when the token does not take the new PIN, and token.ErrTokenAbsent when a replica is not in order; then
// nothing has changed.
func (o *Office) ChangePIN(ctx context.Context, actor Actor, name string, pin []byte) error {
	if err := checkPIN(pin); err != nil {
		return err
	}
	ring := o.keyring(actor.Passphrase)
	if _, err := o.settle(ctx, actor, name, ring); err != nil {
		return err
	}
	return o.retrying(ctx, func(s *users.Snapshot) error {
		p, err := o.tokenManager(s, actor, name, ring)
		if err != nil {
			return err
		}
		defer p.clear()
		if p.token.PINStaged {
			return fmt.Errorf("admin: token %q: %w: somebody else has just begun one", name, users.ErrPINChangeInFlight)
		}
		if bytes.Equal(p.pins.Current, pin) {
			return fmt.Errorf("%w: token %q has that PIN already", ErrRequest, name)
		}
		open, err := o.openFor(ctx, p)
		if err != nil {
			return err
		}
		defer open.Close()
		if err := allInOrder(open); err != nil {
			return fmt.Errorf("admin: token %q keeps its PIN: %w", name, err)
		}
		return o.stageAndCarryOut(ctx, s, open, p, pin)
	})
}

// allInOrder asks a token that is several whether each of them can be given a new PIN now, before anything is staged.
func allInOrder(open token.Token) error {
	if several, ok := open.(interface{ AllInOrder() error }); ok {
		return several.AllInOrder()
	}
	return nil
}

func (o *Office) stageAndCarryOut(ctx context.Context, s *users.Snapshot, open token.Token, p *proof, pin []byte) error {
	grants, err := rewrapped(s, p.token.ID, pin)
	if err != nil {
		return err
	}
	ctx, cancel := o.finishing(ctx)
	defer cancel()
	version, err := o.Store.StagePIN(ctx, p.token.ID, grants)
	if err != nil {
		return err
	}
	return o.carryOut(ctx, open, change{token: p.token, version: version, old: p.pins.Current, new: pin})
}

// rewrapped returns all grants of a token with a PIN staged.
func rewrapped(s *users.Snapshot, tokenID int64, pin []byte) ([]users.Grant, error) {
	for _, row := range s.Unreadable() {
		if row.Kind == "grant" { // which might be the token's, and would keep the old PIN
			return nil, fmt.Errorf("admin: a PIN is changed in all grants, and one cannot be read: %s %d: %w", row.Kind, row.ID, row.Err)
		}
	}
	var grants []users.Grant
	for _, grant := range s.Grants() {
		if grant.TokenID != tokenID {
			continue
		}
		binding, ok := s.Binding(&grant)
		if !ok {
			return nil, fmt.Errorf("admin: grant %d has no user, token or key: %w", grant.ID, users.ErrNotFound)
		}
		staged, err := access.Wrap(pin, grant.Access, binding)
		if err != nil {
			return nil, err
		}
		grant.Staged = staged
		grants = append(grants, grant)
	}
	return grants, nil
}

// change is a PIN change that is staged.
type change struct {
	token    users.Token
	version  int64
	old, new []byte
}

// carryOut does the second half of a staged change: the token's, then the store's. The token is logged in with the old PIN.
func (o *Office) carryOut(ctx context.Context, open token.Token, c change) error {
	staged := c.token
	staged.PINVersion = c.version
	if err := users.MaySend(ctx, o.Store, staged, false); err != nil {
		return err
	}
	err := open.ChangePIN(ctx, c.old, c.new)
	switch {
	case err == nil:
		return o.commit(ctx, open, c)
	case errors.Is(err, token.ErrPINInvalid), errors.Is(err, token.ErrUnsupported):
		abandonErr := o.Store.AbandonPIN(ctx, c.token.ID, c.version)
		if abandonErr != nil && !errors.Is(abandonErr, users.ErrStale) {
			return fmt.Errorf("admin: token %q keeps its PIN (%v), but the change is still listed as in flight: %w", c.token.Name, err, abandonErr)
		}
		return fmt.Errorf("admin: token %q keeps its PIN: %w", c.token.Name, err)
	case errors.Is(err, token.ErrPINIncorrect):
		return o.rejected(ctx, c, err)
	}
	return fmt.Errorf("admin: token %q did not confirm its new PIN; the next login finds out which one it has: %w", c.token.Name, err)
}

// rejected remembers that the token refused the old PIN, which cost a try, so that nobody sends it again.
func (o *Office) rejected(ctx context.Context, c change, err error) error {
	err = fmt.Errorf("admin: token %q: somebody else changed its PIN at the same time: %w", c.token.Name, err)
	ledgerErr := o.Store.RejectPIN(ctx, c.token.ID, c.version, false)
	if ledgerErr != nil && !errors.Is(ledgerErr, users.ErrStale) {
		return fmt.Errorf("%w, and that could not be recorded: %w", err, ledgerErr)
	}
	return err
}

// commit records that the token has the new PIN.
func (o *Office) commit(ctx context.Context, open token.Token, c change) error {
	err := o.Store.CommitPIN(ctx, c.token.ID, c.version)
	if errors.Is(err, users.ErrStale) {
		return o.recheck(ctx, open, c)
	}
	if err != nil {
		return fmt.Errorf("admin: token %q has its new PIN, which is stored for every grant, and the next login records that: %w", c.token.Name, err)
	}
	return nil
}

// recheck finds the change settled by somebody else. Mostly they have completed it; only a repair in the same
// moment may have dropped the new PIN, which the token has, and then it is wrapped once more.
func (o *Office) recheck(ctx context.Context, open token.Token, c change) error {
	if err := open.Close(); err != nil {
		return err
	}
	return o.RepairPIN(ctx, c.token.Name, c.new)
}

// SettlePIN completes a PIN change that was interrupted: it finds out which PIN the token has, trying the current one
// and then the staged one, and gives it the staged one if it has not got it yet. The
// actor is one of the token's managers. Without a change in flight it does nothing.
func (o *Office) SettlePIN(ctx context.Context, actor Actor, name string) (Settlement, error) {
	return o.settle(ctx, actor, name, o.keyring(actor.Passphrase))
}

func (o *Office) settle(ctx context.Context, actor Actor, name string, ring *keyring) (Settlement, error) {
	s, err := o.Store.Snapshot(ctx)
	if err != nil {
		return "", err
	}
	p, err := o.tokenManager(s, actor, name, ring)
	if err != nil {
		return "", err
	}
	defer p.clear()
	if !p.token.PINStaged {
		return NothingInFlight, nil
	}
	open, err := o.openFor(ctx, p)
	if err != nil {
		return "", err
	}
	defer open.Close()
	ctx, cancel := o.finishing(ctx)
	defer cancel()
	now, err := o.Store.Snapshot(ctx)
	if err != nil {
		return "", err
	}
	record, ok := now.TokenByID(p.token.ID)
	if !ok || record.PINVersion != p.token.PINVersion {
		return Completed, nil // the login proved the staged PIN and committed it
	}
	err = o.carryOut(ctx, open, change{token: p.token, version: p.token.PINVersion, old: p.pins.Current, new: p.pins.Staged})
	if errors.Is(err, token.ErrPINInvalid) {
		return Refused, nil
	}
	if err != nil {
		return "", err
	}
	return Completed, nil
}

// RepairPIN wraps the PIN that a token has for every grant, after it was changed or reset
// by other means. Knowing the PIN is the proof: it is checked by one login. A PIN change
// in flight is dropped. Errors: as AddToken.
func (o *Office) RepairPIN(ctx context.Context, name string, pin []byte) error {
	if err := checkPIN(pin); err != nil {
		return err
	}
	return o.retrying(ctx, func(s *users.Snapshot) error {
		record, err := namedToken(s, name)
		if err != nil {
			return err
		}
		// Within each attempt, so that the store refuses what another's change of the PIN has overtaken since.
		if _, err := o.verify(ctx, *record, pin); err != nil {
			return err
		}
		finishing, cancel := o.finishing(ctx)
		defer cancel()
		return o.replacePIN(finishing, s, name, pin)
	})
}

// replacePIN puts a PIN that the token has into every grant.
func (o *Office) replacePIN(ctx context.Context, s *users.Snapshot, name string, pin []byte) error {
	record, err := namedToken(s, name)
	if err != nil {
		return err
	}
	if record.PINStaged {
		if err := o.Store.AbandonPIN(ctx, record.ID, record.PINVersion); err != nil {
			return err
		}
	}
	grants, err := rewrapped(s, record.ID, pin)
	if err != nil {
		return err
	}
	version, err := o.Store.StagePIN(ctx, record.ID, grants)
	if err != nil {
		return err
	}
	return o.Store.CommitPIN(ctx, record.ID, version)
}
