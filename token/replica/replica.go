// Package replica makes one token of several that hold the same key pairs:
// cloned HSMs, or the two of a high-availability pair.
//
// # Members
//
// The first member is the primary. Each is looked after by a goroutine of its
// own, which opens it, logs it in, compares its keys with what is known of them
// and has it sign a canary, a random digest, before requests go to it; looks at
// it every Config.ProbeEvery; and does all that anew, with growing pauses, once
// the member was left out. A request fails only when no member can serve it
// within Config.AwaitMember: what one member fails at goes to the next.
//
// # Signatures
//
// They go to the member with the fewest under way. Each is verified before it
// is returned, since a token that corrupts its signatures has to be left out as
// well, so callers need not verify it again. A member that does not answer
// within Config.SignTimeout is left out and its call left behind: a call into a
// module cannot be cancelled. No other call is made to that member until the
// last one left behind has returned, so that what hangs does not pile up.
//
// # PIN
//
// All members have the same one. It is kept, in locked memory where the system
// has it, from Login to Logout, because a member that returns has to be logged
// in without its user. It is not sent to a member that counts wrong PINs, and a
// member that rejected a PIN which others took never gets one again.
//
// # Keys
//
// They are made by the HSM's own means: on the primary, then cloned. The first
// member that shows a key says what it is, and another whose public half
// differs is left out for that key. Where the primary was away then and returns
// with another public half, the next search for the key goes by the primary's.
//
// # One module for several members
//
// Members behind one PKCS#11 module share its process-wide state. A module that
// looks for tokens only when it is initialised, as SoftHSM does, shows a token
// that has returned only after all members behind it were closed.
package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"chancery/internal/confine"
	"chancery/token"
)

// Defaults of Config.
const (
	DefaultSignTimeout = 2 * time.Second
	DefaultCallTimeout = 3 * time.Second
	DefaultAwaitMember = 5 * time.Second
	DefaultProbeEvery  = 5 * time.Second
)

// Config says which tokens form one and how long they may take.
type Config struct {
	// Serial is that of the token they form, which grants are bound to: the primary's.
	Serial string
	// Members are the tokens, the primary first. Names are for people and differ.
	Members []Member
	// SignTimeout bounds one signature by one member, beside waiting for others that it makes meanwhile. Zero means DefaultSignTimeout.
	SignTimeout time.Duration
	// CallTimeout bounds each other call to one member, opening it among them. Zero means DefaultCallTimeout.
	CallTimeout time.Duration
	// AwaitMember bounds how long a request waits for some member to be in order, and how long it
	// goes from one to the next. Whoever watches over calls to this token has to allow for
	// AwaitMember and one SignTimeout or CallTimeout. Zero means DefaultAwaitMember.
	AwaitMember time.Duration
	// ProbeEvery is how often a member is looked at, and the longest pause between two attempts to take
	// one back. Zero means DefaultProbeEvery.
	ProbeEvery time.Duration
	// Log takes what happens to members. Nil means slog.Default.
	Log *slog.Logger
}

// Member is one of the tokens.
type Member struct {
	Name string
	// Open opens it without login. It may hang.
	Open func(ctx context.Context) (token.Token, error)
}

func (c *Config) check() error {
	if c.Serial == "" {
		return errors.New("no serial: it is the primary's")
	}
	if len(c.Members) == 0 {
		return errors.New("no members")
	}
	names := make(map[string]bool)
	for _, m := range c.Members {
		if m.Name == "" || m.Open == nil || names[m.Name] {
			return fmt.Errorf("member %q has no name of its own, or nothing to open it with", m.Name)
		}
		names[m.Name] = true
	}
	for value, standard := range map[*time.Duration]time.Duration{
		&c.SignTimeout: DefaultSignTimeout, &c.CallTimeout: DefaultCallTimeout,
		&c.AwaitMember: DefaultAwaitMember, &c.ProbeEvery: DefaultProbeEvery,
	} {
		if *value <= 0 {
			*value = standard
		}
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return nil
}

// Token is several tokens as one. It implements token.Token and token.Attester.
type Token struct {
	cfg     Config
	members []*member
	ctx     context.Context // ends with Close
	stop    context.CancelFunc
	keepers sync.WaitGroup
	logins  chan struct{} // one Login, Logout or ChangePIN at a time

	mu      sync.Mutex // guards what follows, and the members
	pin     *confine.Secret
	epoch   uint64 // grows with each change of pin
	keys    map[string]*key
	changed chan struct{} // closed and replaced when a member is taken back, and on Close
	turn    int           // of the round robin among members with as many signatures under way
	closed  bool
}

var (
	_ token.Token    = (*Token)(nil)
	_ token.Attester = (*Token)(nil)
)

// Open opens all members at once and returns when each was tried or has used up its time. One has to open; the
// others are looked for in the background. Without any the error is token.ErrTokenAbsent.
func Open(ctx context.Context, cfg Config) (*Token, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("replica: open: %w", err)
	}
	t := &Token{
		cfg: cfg, logins: make(chan struct{}, 1),
		keys: make(map[string]*key), changed: make(chan struct{}),
	}
	t.ctx, t.stop = context.WithCancel(context.Background())
	for i, m := range cfg.Members {
		t.members = append(t.members, &member{
			name: m.Name, place: i, open: m.Open, state: StateOpening, since: time.Now(),
			held: make(map[*key]holding), kick: make(chan struct{}, 1), tried: make(chan struct{}),
		})
	}
	for _, m := range t.members {
		t.keepers.Go(func() { t.keep(m) })
	}
	if err := t.awaitFirst(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("replica: open token %s: %w", cfg.Serial, err), t.Close())
	}
	return t, nil
}

// awaitFirst waits until each member was tried and tells what is wrong when none is in order.
func (t *Token) awaitFirst(ctx context.Context) error {
	for _, m := range t.members {
		select {
		case <-m.tried:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var failures []error
	for _, m := range t.members {
		if m.state == StateHealthy {
			return nil
		}
		failures = append(failures, fmt.Errorf("member %q: %w", m.name, m.err))
	}
	return fmt.Errorf("%w: none of its members: %w", token.ErrTokenAbsent, errors.Join(failures...))
}

// Close ends the login, forgets the PIN and closes the members. One that hangs is left behind, and is not waited for.
func (t *Token) Close() error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil
	}
	t.closed = true
	t.forgetPIN()
	t.wake()
	t.mu.Unlock()
	t.stop()
	t.keepers.Wait() // a keeper waits for no call longer than CallTimeout
	failures := make([]error, len(t.members))
	var group sync.WaitGroup
	for i, m := range t.members {
		group.Go(func() { failures[i] = t.closeMember(context.Background(), m) })
	}
	group.Wait()
	return errors.Join(failures...)
}

// Info describes the first member in order, with the serial of the whole. MaxSessions is the sum of those in
// order. No algorithms are listed, since no keys are made here.
func (t *Token) Info(ctx context.Context) (token.Info, error) {
	info, err := try(ctx, t, operation{what: "info", inOrder: true}, func(ctx context.Context, m *member, open token.Token) (token.Info, error) {
		return open.Info(ctx)
	})
	if err != nil {
		return token.Info{}, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	info.Serial, info.LoggedIn, info.Algorithms, info.MaxSessions, info.Parallel = t.cfg.Serial, t.pin != nil, nil, 0, 0
	for _, m := range t.members {
		if m.state == StateHealthy {
			info.MaxSessions += m.maxSessions
		}
	}
	return info, nil
}

// Attest has the first member in order say where the key lives. The serial is that member's.
func (t *Token) Attest(ctx context.Context, id []byte) (token.Attestation, error) {
	return try(ctx, t, operation{what: fmt.Sprintf("attest key %x", id), inOrder: true, login: true},
		func(ctx context.Context, _ *member, open token.Token) (token.Attestation, error) {
			attester, ok := open.(token.Attester)
			if !ok {
				return token.Attestation{}, fmt.Errorf("this kind of token tells nothing of its keys: %w", token.ErrUnsupported)
			}
			return attester.Attest(ctx, id)
		})
}

// Status is one member at this moment.
type Status struct {
	Name     string
	State    State
	Since    time.Time // of the state
	Err      error     // why the member is not in order; nil when it is
	InFlight int       // calls under way, those left behind included
	Behind   int       // calls left behind that have not returned
}

// Members describes the members, the primary first.
func (t *Token) Members() []Status {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]Status, 0, len(t.members))
	for _, m := range t.members {
		all = append(all, Status{Name: m.name, State: m.state, Since: m.since, Err: m.err, InFlight: m.inFlight, Behind: m.behind})
	}
	return all
}

// wake tells those who wait for a member to look again. The caller holds mu.
func (t *Token) wake() {
	close(t.changed)
	t.changed = make(chan struct{})
}

// failed says what the token could not do; nil stays nil.
func (t *Token) failed(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("replica: %s on token %s: %w", what, t.cfg.Serial, err)
}
