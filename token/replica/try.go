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

// visit is one call to a member, and what held when it began.
type visit struct {
	member     *member
	open       token.Token
	generation uint64 // a member that was taken back since may be asked again
	epoch      uint64
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
		v, err := t.await(ctx, &a)
		if err != nil {
			return none, t.failed(o.what, err)
		}
		value, err := call(ctx, t, v.member, o.limit, func(ctx context.Context) (T, error) { return f(ctx, v.member, v.open) })
		if err == nil {
			t.succeeded(v.member, &o)
			return value, nil
		}
		if a.last, err = t.judge(ctx, v, err); err != nil {
			return none, t.failed(o.what, err)
		}
	}
}

// await chooses the next member to ask, and counts the call. It waits when there is none in order.
func (t *Token) await(ctx context.Context, a *attempts) (visit, error) {
	var timer *time.Timer
	for {
		if err := ctx.Err(); err != nil {
			return visit{}, err
		}
		t.mu.Lock()
		if err := t.refusal(a); err != nil {
			t.mu.Unlock()
			return visit{}, err
		}
		c := t.choose(a)
		late := !time.Now().Before(a.until)
		if c.best != nil && (!late || a.last == nil) {
			v := visit{c.best, c.best.token, c.best.generation, t.epoch}
			a.asked = append(a.asked, v)
			v.member.inFlight++
			t.mu.Unlock()
			return v, nil
		}
		changed := t.changed
		t.mu.Unlock()
		if late || c.asked || !c.mayReturn {
			return visit{}, a.exhausted(c)
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
func (t *Token) judge(ctx context.Context, v visit, err error) (remember, end error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	named := fmt.Errorf("member %q: %w", v.member.name, err)
	switch {
	case t.closed:
		return nil, token.ErrClosed
	case ctx.Err() != nil:
		return nil, ctx.Err() // if the call hangs, the watch over it leaves the member out
	case errors.Is(err, token.ErrLoginRequired) && (t.pin == nil || v.epoch != t.epoch):
		return nil, token.ErrLoginRequired // nobody is logged in, or the login has changed under the operation
	case lacksKey(err):
		return named, nil
	case errors.Is(err, token.ErrBusy), errors.Is(err, context.DeadlineExceeded):
		t.strike(v, err)
		return fmt.Errorf("%w: %w", token.ErrBusy, named), nil
	}
	t.blame(v, err)
	if !errors.Is(err, token.ErrTokenAbsent) {
		// A lost login and a closed member are the member's, and not to be told of the whole.
		named = fmt.Errorf("%w: member %q: %v", token.ErrTokenAbsent, v.member.name, err)
	}
	return named, nil
}

// blame leaves the member out, unless it has been taken back since. The caller holds mu.
func (t *Token) blame(v visit, err error) {
	if v.member.generation == v.generation {
		t.leaveOut(v.member, err)
	}
}

// strike counts that the member was busy past its time. The caller holds mu.
func (t *Token) strike(v visit, err error) {
	v.member.strikes++
	if v.member.strikes >= maxStrikes && time.Since(v.member.good) > t.cfg.SignTimeout {
		t.blame(v, err)
	}
}

func (t *Token) succeeded(m *member, o *operation) {
	t.mu.Lock()
	defer t.mu.Unlock()
	m.strikes, m.good = 0, time.Now()
	m.signed = m.signed || o.key != nil
}
