package admin

import (
	"context"
	"fmt"

	"chancery/token"
	"chancery/users"
)

// AddReplica registers a further token that holds the keys of a registered one, the primary. The actor is one of the
// primary's managers; the PIN that their passphrase unwraps has to be the replica's as well, and each registered key of the
// primary has to be there under its identifier, with the same public half, and sign a test message. The primary itself is
// not asked, so that a replica can be added while it is out of order.
//
// Errors: users.ErrExists for a name or serial number that a token or replica has already; users.ErrPINChangeInFlight;
// users.ErrPINRejected when the primary rejected that PIN; token.ErrNoKey, token.ErrMismatch and others for a key that is
// not right at the replica; users.ErrFinalTry and token.ErrPINLocked before the PIN is sent; token.ErrPINIncorrect,
// token.ErrTokenAbsent.
func (o *Office) AddReplica(ctx context.Context, actor Actor, primary string, spec TokenSpec) (users.Replica, error) {
	var added users.Replica
	ring := o.keyring(actor.Passphrase)
	err := o.retrying(ctx, func(s *users.Snapshot) error {
		if err := checkNewHome(s, spec.Name); err != nil {
			return err
		}
		p, err := o.tokenManager(s, actor, primary, ring)
		if err != nil {
			return err
		}
		defer p.clear()
		replica, err := o.proveReplica(ctx, s, p, spec)
		if err != nil {
			return err
		}
		added, err = o.Store.AddReplica(ctx, replica, p.token.PINVersion)
		return err
	})
	return added, err
}

// checkNewHome refuses a name that cannot be given to a token or replica.
func checkNewHome(s *users.Snapshot, name string) error {
	if err := users.CheckName(name); err != nil {
		return err
	}
	if _, found := s.Token(name); found {
		return fmt.Errorf("admin: token %q: %w", name, users.ErrExists)
	}
	if _, primary, found := s.Replica(name); found {
		return fmt.Errorf("admin: replica %q of token %q: %w", name, primary.Name, users.ErrExists)
	}
	return nil
}

// proveReplica opens a replica for itself alone, logs in with the primary's PIN and tests the primary's keys there.
func (o *Office) proveReplica(ctx context.Context, s *users.Snapshot, p *proof, spec TokenSpec) (users.Replica, error) {
	if p.token.PINStaged {
		return users.Replica{}, fmt.Errorf("admin: token %q: %w: settle it first", p.token.Name, users.ErrPINChangeInFlight)
	}
	if err := users.MaySend(ctx, o.Store, p.token, false); err != nil {
		return users.Replica{}, err
	}
	record := spec.record()
	open, err := o.open(ctx, record)
	if err != nil {
		return users.Replica{}, err
	}
	defer open.Close()
	info, err := checkOpen(ctx, record, open)
	if err != nil {
		return users.Replica{}, err
	}
	if home, found := homeWithSerial(s, info.Serial); found {
		return users.Replica{}, fmt.Errorf("admin: token %q has the serial number %q of %q: %w", spec.Name, info.Serial, home, users.ErrExists)
	}
	if err := logIn(ctx, record, open, p.pins.Current); err != nil {
		return users.Replica{}, err
	}
	if err := proveKeys(ctx, s, open, p.token.ID, spec.Name); err != nil {
		return users.Replica{}, err
	}
	return users.Replica{
		TokenID: p.token.ID, Name: spec.Name, Driver: info.Driver, Location: spec.Location,
		Serial: info.Serial, Label: info.Label, MaxSessions: spec.MaxSessions,
	}, nil
}

// homeWithSerial names the token or replica with a serial number.
func homeWithSerial(s *users.Snapshot, serial string) (name string, found bool) {
	for _, t := range s.Tokens() {
		for _, home := range t.Homes() {
			if home.Serial == serial {
				return home.Name, true
			}
		}
	}
	return "", false
}

// proveKeys has each registered key of a token sign at another one.
func proveKeys(ctx context.Context, s *users.Snapshot, open token.Token, tokenID int64, replica string) error {
	for _, key := range s.Keys() {
		if key.TokenID != tokenID {
			continue
		}
		held, err := registered(ctx, open, &key)
		if err == nil {
			err = proveKey(ctx, held)
		}
		if err != nil {
			return fmt.Errorf("admin: replica %q with identifier %x: %w", replica, key.TokenKeyID, err)
		}
	}
	return nil
}
