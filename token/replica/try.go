package replica

import (
	"context"
	"errors"
	"fmt"
	"time"

	"chancery/token"
)

// operation is something that one member does for the whole token.
type operation struct {
	what    string
	key     *key          // whose members are asked; nil for all
	limit   time.Duration // for one member; zero means Config.CallTimeout
	inOrder bool          // the first member in order is asked first, not the one with the fewest calls
	login   bool          // needs one
}

// attempts is how far an operation has come.
type attempts struct {
	operation
	until time.Time // no further member is waited for or asked after that
	asked []visit
	last  error // of the latest member
}

// visit is one member, as often as it is taken back.
type visit struct {
	member     *member
	generation uint64
}

// try asks one member in order after the other until one answers. What says more of the request than of the
// member is tried at the others too, and leaves none out.
func try[T any](ctx context.Context, t *Token, o operation, f func(ctx context.Context, m *member, open token.Token) (T, error)) (T, error) {
	var none T
	if o.limit == 0 {
		o.limit = t.cfg.CallTimeout
	}
	a := attempts{operation: o, until: time.Now().Add(t.cfg.AwaitMember)}
	for {
		m, open, epoch, err := t.await(ctx, &a)
		if err != nil {
			return none, t.failed(o.what, err)
		}
		value, err := call(ctx, t, m, o.limit, func(ctx context.Context) (T, error) { return f(ctx, m, open) })
		if err == nil {
			t.succeeded(m, &o)
			return value, nil
		}
		if a.last, err = t.judge(ctx, m, epoch, err); err != nil {
			return none, t.failed(o.what, err)
		}
	}
}

// await chooses the next member to ask, and counts the call. It waits when there is none in order.
func (t *Token) await(ctx context.Context, a *attempts) (*member, token.Token, uint64, error) {
	var timer *time.Timer
	for {
		if err := ctx.Err(); err != nil {
			return nil, nil, 0, err
		}
		t.mu.Lock()
		if err := t.refusal(a); err != nil {
			t.mu.Unlock()
			return nil, nil, 0, err
		}
		c := t.choose(a)
		late := !time.Now().Before(a.until)
		if c.best != nil && (!late || a.last == nil) {
			m, open, epoch := c.best, c.best.token, t.epoch
			a.asked = append(a.asked, visit{m, m.generation})
			m.inFlight++
			t.mu.Unlock()
			return m, open, epoch, nil
		}
		changed := t.changed
		t.mu.Unlock()
		if late || c.asked || !c.mayReturn {
			return nil, nil, 0, a.exhausted(c)
		}
		if timer == nil {
			timer = time.NewTimer(time.Until(a.until))
			defer timer.Stop()
		}
		select {
		case <-changed:
		case <-ctx.Done():
		case <-timer.C:
		}
	}
}

// refusal is what needs no member to be said. The caller holds mu.
func (t *Token) refusal(a *attempts) error {
	switch {
	case t.closed:
		return token.ErrClosed
	case a.login && t.pin == nil:
		return token.ErrLoginRequired
	}
	return nil
}

// exhausted is the answer when no member is left to ask.
func (a *attempts) exhausted(c choice) error {
	switch {
	case a.last != nil:
		return a.last
	case c.lacks != nil:
		return c.lacks
	}
	return fmt.Errorf("%w: none of its members is in order", token.ErrTokenAbsent)
}

// choice is what there is to choose from.
type choice struct {
	best      *member // nil when there is none
	asked     bool    // some member in order was asked already
	mayReturn bool    // some member is not in order and may be taken back
	lacks     error   // why a member in order is not asked for this key
}

// choose finds a member in order that was not asked yet. The caller holds mu.
func (t *Token) choose(a *attempts) choice {
	var c choice
	t.turn++
	for i := range t.members {
		m := t.members[i]
		if !a.inOrder {
			m = t.members[(i+t.turn)%len(t.members)]
		}
		switch {
		case m.state != StateHealthy:
			c.mayReturn = c.mayReturn || m.state != StateBarred
		case a.key != nil && m.held[a.key].err != nil:
			c.lacks = m.held[a.key].err
		case a.has(m):
			c.asked = true
		case c.best == nil, !a.inOrder && m.inFlight < c.best.inFlight:
			c.best = m
		}
	}
	return c
}

func (a *attempts) has(m *member) bool {
	for _, v := range a.asked {
		if v.member == m && v.generation == m.generation {
			return true
		}
	}
	return false
}

// judge decides what a member's error means. It returns the error to remember while the next member is asked, or
// else the one that ends the operation.
func (t *Token) judge(ctx context.Context, m *member, epoch uint64, err error) (remember, end error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	named := fmt.Errorf("member %q: %w", m.name, err)
	switch {
	case t.closed:
		return nil, token.ErrClosed
	case ctx.Err() != nil:
		return nil, ctx.Err() // if the call hangs, the watch over it leaves the member out
	case errors.Is(err, token.ErrLoginRequired) && epoch != t.epoch:
		return nil, token.ErrLoginRequired // the login has changed under the operation
	case errors.Is(err, token.ErrNoKey), errors.Is(err, token.ErrMismatch), errors.Is(err, token.ErrUnsupported):
		return named, nil
	case errors.Is(err, token.ErrBusy), errors.Is(err, context.DeadlineExceeded):
		m.strikes++
		if m.strikes >= maxStrikes {
			t.leaveOut(m, err)
		}
		return fmt.Errorf("%w: %w", token.ErrBusy, named), nil
	}
	t.leaveOut(m, err)
	if !errors.Is(err, token.ErrTokenAbsent) {
		// A lost login and a closed member are the member's, and not to be told of the whole.
		named = fmt.Errorf("%w: member %q: %v", token.ErrTokenAbsent, m.name, err)
	}
	return named, nil
}

func (t *Token) succeeded(m *member, o *operation) {
	t.mu.Lock()
	defer t.mu.Unlock()
	m.strikes = 0
	m.signed = m.signed || o.key != nil
}
