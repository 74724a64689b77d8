package replica

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"chancery/internal/confine"
	"chancery/token"
)

// Login logs in to all members in order, one after the other and the primary first. When that one rejects the PIN,
// or all do, the PIN is wrong and no other gets it; a member that rejects what others took is barred.
// Errors: as token.Token, and token.ErrTokenAbsent when no member is in order.
func (t *Token) Login(ctx context.Context, pin []byte) error {
	return t.failed("login", t.alone(ctx, func() error {
		t.mu.Lock()
		in := t.pin != nil
		t.mu.Unlock()
		if in {
			return nil
		}
		return t.login(ctx, pin)
	}))
}

// alone runs f while nobody else logs in or out or changes the PIN.
func (t *Token) alone(ctx context.Context, f func() error) error {
	select {
	case t.logins <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-t.logins }()
	if err := ctx.Err(); err != nil {
		return err
	}
	t.mu.Lock()
	closed := t.closed
	t.mu.Unlock()
	if closed {
		return token.ErrClosed
	}
	return f()
}

// login takes AwaitMember and CallTimeout at most: members that it does not get to are logged in by their keepers.
func (t *Token) login(ctx context.Context, pin []byte) error {
	bounded, cancel := context.WithTimeout(ctx, t.cfg.AwaitMember+t.cfg.CallTimeout)
	defer cancel()
	// Info waits for a member in order, so that a login survives what a signature survives.
	if _, err := t.Info(ctx); err != nil {
		return err
	}
	var took, rejected []*member
	var failures []error
	why := make(map[*member]error)
	own := confine.NewSecret(pin)
	for i, m := range t.members {
		open, ok := t.begin(m)
		if !ok {
			continue
		}
		err := t.logInTo(bounded, m, open, own, len(took)+len(rejected) == 0)
		switch {
		case err == nil:
			took = append(took, m)
			continue
		case isRejection(err):
			rejected = append(rejected, m)
		}
		why[m] = err
		failures = append(failures, fmt.Errorf("member %q: %w", m.name, err))
		if i == 0 && len(rejected) > 0 || bounded.Err() != nil {
			break
		}
	}
	if len(took) == 0 {
		own.Destroy()
		return t.noLogin(ctx, failures)
	}
	return t.loggedIn(own, took, rejected, why)
}

// noLogin is the answer when no member took the PIN: the first that has a meaning to callers.
func (t *Token) noLogin(ctx context.Context, failures []error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	for _, meaning := range []error{token.ErrPINIncorrect, token.ErrPINRejected, token.ErrFinalTry, token.ErrPINLocked, token.ErrPINMemory, token.ErrBusy} {
		for _, err := range failures {
			if errors.Is(err, meaning) {
				return err
			}
		}
	}
	return fmt.Errorf("%w: %w", token.ErrTokenAbsent, errors.Join(failures...))
}

// isRejection tells whether the member says that the PIN is wrong, or that it has said so earlier.
func isRejection(err error) bool {
	return errors.Is(err, token.ErrPINIncorrect) || errors.Is(err, token.ErrPINRejected)
}

// loggedIn keeps the PIN that some members took and leaves out those in order that did not. Why tells it of those that were
// asked.
func (t *Token) loggedIn(pin *confine.Secret, took, rejected []*member, why map[*member]error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		pin.Destroy()
		return token.ErrClosed
	}
	t.keepPIN(pin)
	has := make(map[*member]bool)
	for _, m := range took {
		has[m] = true
	}
	for _, m := range rejected {
		has[m] = true
		t.bar(m, why[m])
	}
	for _, m := range t.members {
		if has[m] {
			continue
		}
		if why[m] == nil {
			why[m] = token.ErrLoginRequired
		}
		t.leaveOut(m, why[m])
	}
	return nil
}

// begin counts a call to a member, if that is in order.
func (t *Token) begin(m *member) (token.Token, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if m.state != StateHealthy {
		return nil, false
	}
	m.inFlight++
	return m.token, true
}

// logInTo logs in to one member, unless its retry counter says that the PIN had better not be sent. The first
// member gets it all the same when a wrong PIN was counted: somebody has to try, and it is the one that is asked
// whether the PIN is right.
func (t *Token) logInTo(ctx context.Context, m *member, open token.Token, pin *confine.Secret, first bool) error {
	own := copied(pin)
	_, err := call(ctx, t, m, t.cfg.CallTimeout, func(ctx context.Context) (struct{}, error) {
		defer own.Destroy()
		info, err := open.Info(ctx)
		switch {
		case err != nil:
			return struct{}{}, err
		case info.PIN.Locked, info.PIN.FinalTry:
			return struct{}{}, token.ErrPINLocked
		case info.PIN.CountLow && !first && !info.LoggedIn:
			return struct{}{}, errTriesLow
		}
		if !own.Use(func(secret []byte) { err = open.Login(ctx, secret) }) {
			err = token.ErrLoginRequired // the PIN was forgotten meanwhile
		}
		return struct{}{}, err
	})
	return err
}

// Logout forgets the PIN, from when on every signature says ErrLoginRequired, and logs out of all members. One
// that does not log out is left out and closed, which ends its login too.
func (t *Token) Logout(ctx context.Context) error {
	return t.failed("logout", t.alone(ctx, func() error {
		t.mu.Lock()
		t.forgetPIN()
		t.mu.Unlock()
		var group sync.WaitGroup
		for _, m := range t.members {
			group.Go(func() { t.logOutOf(context.WithoutCancel(ctx), m) })
		}
		group.Wait()
		return nil
	}))
}

// logOutOf logs out of a member in order; the keepers of the others close them.
func (t *Token) logOutOf(ctx context.Context, m *member) {
	open, ok := t.begin(m)
	if !ok {
		return
	}
	_, err := call(ctx, t, m, t.cfg.CallTimeout, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, open.Logout(ctx)
	})
	if err != nil {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.leaveOut(m, fmt.Errorf("logout: %w", err))
	}
}

// keepPIN replaces the PIN that members are logged in with when they return. The caller holds mu.
func (t *Token) keepPIN(pin *confine.Secret) {
	t.forgetPIN()
	t.pin = pin
}

// forgetPIN overwrites it. The caller holds mu.
func (t *Token) forgetPIN() {
	t.epoch++
	t.wake()
	if t.pin != nil {
		t.pin.Destroy()
		t.pin = nil
	}
}

// copied makes a call's own copy of a PIN, since a call that hangs holds its copy for as long as it does. Of one
// that is destroyed already it is a destroyed copy.
func copied(pin *confine.Secret) *confine.Secret {
	var own *confine.Secret
	if !pin.Use(func(secret []byte) { own = confine.NewSecret(secret) }) {
		own = confine.NewSecret(nil)
		own.Destroy()
	}
	return own
}
