package replica

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"strings"

	"chancery/internal/confine"
	"chancery/token"
)

// errMadeElsewhere says how keys come to several tokens.
var errMadeElsewhere = fmt.Errorf("%w: several tokens form this one; make the key on the primary, clone it to "+
	"the others by the HSM's own means, then adopt it", token.ErrUnsupported)

// Generate is token.ErrUnsupported: see errMadeElsewhere.
func (t *Token) Generate(ctx context.Context, spec token.KeySpec) (token.Key, error) {
	return nil, t.failed(fmt.Sprintf("generate key %x", spec.ID), t.unsupported(ctx, errMadeElsewhere))
}

// Import is token.ErrUnsupported: the key has to be imported to each member by the HSM's own means.
func (t *Token) Import(ctx context.Context, spec token.KeySpec, _ crypto.PrivateKey) (token.Key, error) {
	return nil, t.failed(fmt.Sprintf("import key %x", spec.ID), t.unsupported(ctx, errMadeElsewhere))
}

// Destroy is token.ErrUnsupported: a key has to be destroyed on each member by the HSM's own means.
func (t *Token) Destroy(ctx context.Context, id []byte) error {
	return t.failed(fmt.Sprintf("destroy key %x", id), t.unsupported(ctx, fmt.Errorf(
		"%w: several tokens form this one; destroy the key on each by the HSM's own means", token.ErrUnsupported)))
}

// unsupported returns err, unless the token is closed or the context has ended.
func (t *Token) unsupported(ctx context.Context, err error) error {
	if ended := ctx.Err(); ended != nil {
		return ended
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return token.ErrClosed
	}
	return err
}

// ChangePIN changes the PIN of one member after the other, the primary first. All have to be in order, else nothing
// is changed and the error is token.ErrTokenAbsent. When a member fails, those before it get the old PIN back; the
// error says which members could not, if any.
func (t *Token) ChangePIN(ctx context.Context, old, new []byte) error {
	return t.failed("change PIN", t.alone(ctx, func() error {
		if err := t.AllInOrder(); err != nil {
			return err
		}
		return t.changePIN(ctx, confine.NewSecret(old), confine.NewSecret(new))
	}))
}

// AllInOrder tells which member is not in order, as ChangePIN needs them; nil when all are. The error is token.ErrTokenAbsent.
func (t *Token) AllInOrder() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range t.members {
		if m.state != StateHealthy {
			return fmt.Errorf("%w: member %q is %s and has to be in order for this; nothing was changed", token.ErrTokenAbsent, m.name, m.state)
		}
	}
	return nil
}

func (t *Token) changePIN(ctx context.Context, old, new *confine.Secret) error {
	defer old.Destroy()
	for i, m := range t.members {
		err := t.changeOne(ctx, m, old, new)
		if err == nil {
			continue
		}
		defer new.Destroy()
		uncertain := errors.Is(err, errOverdue) || ctx.Err() != nil
		return t.undo(context.WithoutCancel(ctx), i, uncertain, old, new, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.pin == nil {
		new.Destroy()
		return nil
	}
	t.keepPIN(new)
	return nil
}

func (t *Token) changeOne(ctx context.Context, m *member, old, new *confine.Secret) error {
	open, ok := t.begin(m)
	if !ok {
		return fmt.Errorf("%w: member %q is not in order", token.ErrTokenAbsent, m.name)
	}
	own, next := copied(old), copied(new)
	_, err := call(ctx, t, m, t.cfg.CallTimeout, func(ctx context.Context) (struct{}, error) {
		defer own.Destroy()
		defer next.Destroy()
		var err error
		own.Use(func(old []byte) {
			next.Use(func(new []byte) { err = open.ChangePIN(ctx, old, new) })
		})
		return struct{}{}, err
	})
	return err
}

// undo gives the members before the failed one their old PIN back, and tells which have which.
func (t *Token) undo(ctx context.Context, failed int, uncertain bool, old, new *confine.Secret, cause error) error {
	var told []string
	if uncertain {
		told = append(told, fmt.Sprintf("it may have the old PIN or the new one: find out with its own tool before %q counts wrong ones", t.members[failed].name))
	}
	for _, m := range t.members[:failed] {
		if err := t.changeOne(ctx, m, new, old); err != nil {
			told = append(told, fmt.Sprintf("member %q kept the new PIN (%v): give it the old one with its own tool", m.name, err))
		}
	}
	if told == nil {
		told = []string{"all members have the old PIN"}
	}
	return fmt.Errorf("member %q: %w; %s", t.members[failed].name, cause, strings.Join(told, "; "))
}
