package users_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"chancery/token"
	"chancery/users"
)

// card is a token that only logs in.
type card struct {
	token.Token
	info token.Info
	pin  string
	sent []string
	err  error // of the login, instead of an answer

	knownWrong string // a PIN that the token's guard does not let pass
}

func (c *card) Info(context.Context) (token.Info, error) { return c.info, nil }

func (c *card) Login(_ context.Context, pin []byte) error {
	c.sent = append(c.sent, string(pin))
	switch {
	case c.err != nil:
		return c.err
	case c.knownWrong == string(pin):
		return token.ErrPINRejected
	case string(pin) != c.pin:
		c.info.PIN.CountLow = true
		return fmt.Errorf("card: %w", token.ErrPINIncorrect)
	}
	c.info.LoggedIn = true
	return nil
}

// ledger remembers what it is told.
type ledger struct {
	token  users.Token // as it is now
	told   []string
	err    error
	unread error // of reading it
}

func (l *ledger) Snapshot(context.Context) (*users.Snapshot, error) {
	return users.NewSnapshot(1, nil, []users.Token{l.token}, nil, nil), l.unread
}

func (l *ledger) CommitPIN(_ context.Context, tokenID, version int64) error {
	l.told = append(l.told, fmt.Sprintf("commit %d %d", tokenID, version))
	return l.err
}

func (l *ledger) RejectPIN(_ context.Context, tokenID, version int64, staged bool) error {
	l.told = append(l.told, fmt.Sprintf("reject %d %d staged=%v", tokenID, version, staged))
	return l.err
}

func TestLogin(t *testing.T) {
	disk := errors.New("the disk fails")
	both := users.PINs{Current: []byte("old"), Staged: []byte("new")}
	old := users.PINs{Current: []byte("old")}
	for name, test := range map[string]struct {
		card   card
		record users.Token
		pins   users.PINs
		ledger error
		sent   []string
		told   []string
		want   error
	}{
		"the current PIN": {card: card{pin: "old"}, pins: old, sent: []string{"old"}},
		"the current PIN during a change, which says nothing of the change": {card: card{pin: "old"}, pins: both, sent: []string{"old"}},
		"the staged PIN": {card: card{pin: "new"}, pins: both, sent: []string{"old", "new"},
			told: []string{"reject 1 5 staged=false", "commit 1 5"}},
		"the staged PIN, when the current one is known to be wrong": {card: card{pin: "new"}, record: users.Token{PINRejected: true},
			pins: both, sent: []string{"new"}, told: []string{"commit 1 5"}},
		"the staged PIN, when the guard knows that the current one is wrong": {card: card{pin: "new", knownWrong: "old"}, pins: both,
			sent: []string{"old", "new"}, told: []string{"commit 1 5"}},
		"known to the guard": {card: card{pin: "new", knownWrong: "old"}, pins: old, sent: []string{"old"}, want: token.ErrPINRejected},
		"settled by another process": {card: card{pin: "new"}, pins: both, ledger: users.ErrStale, sent: []string{"old", "new"},
			told: []string{"reject 1 5 staged=false", "commit 1 5"}},
		"neither": {card: card{pin: "other"}, pins: both, sent: []string{"old", "new"},
			told: []string{"reject 1 5 staged=false", "reject 1 5 staged=true"}, want: token.ErrPINIncorrect},
		"wrong": {card: card{pin: "other"}, pins: old, sent: []string{"old"}, told: []string{"reject 1 5 staged=false"}, want: token.ErrPINIncorrect},
		"read before somebody else changed it": {card: card{pin: "other"}, pins: old, ledger: users.ErrStale, sent: []string{"old"},
			told: []string{"reject 1 5 staged=false"}, want: users.ErrStale},
		"known to be wrong": {card: card{pin: "other"}, record: users.Token{PINRejected: true}, pins: old, want: users.ErrPINRejected},
		"both known to be wrong": {card: card{pin: "other"}, record: users.Token{PINRejected: true, StagedRejected: true},
			pins: both, want: users.ErrPINRejected},
		"what cannot be remembered is not followed by another try": {card: card{pin: "new"}, pins: both, ledger: disk, sent: []string{"old"},
			told: []string{"reject 1 5 staged=false"}, want: disk},
		"logged in already":    {card: card{pin: "other", info: token.Info{LoggedIn: true}}, pins: both},
		"locked":               {card: card{info: token.Info{PIN: token.PINState{Locked: true}}}, pins: old, want: token.ErrPINLocked},
		"final try":            {card: card{info: token.Info{PIN: token.PINState{FinalTry: true}}}, pins: old, want: users.ErrFinalTry},
		"one wrong try before": {card: card{pin: "old", info: token.Info{PIN: token.PINState{CountLow: true}}}, pins: old, sent: []string{"old"}},
		"absent":               {card: card{err: token.ErrTokenAbsent}, pins: both, sent: []string{"old"}, want: token.ErrTokenAbsent},
		"another token":        {card: card{info: token.Info{Serial: "T"}}, pins: old, want: token.ErrTokenAbsent},
	} {
		t.Run(name, func(t *testing.T) {
			test.record.ID, test.record.Name, test.record.Serial, test.record.PINVersion = 1, "hsm", "S", 5
			if test.card.info.Serial == "" {
				test.card.info.Serial = "S"
			}
			book := &ledger{token: test.record, err: test.ledger}
			err := users.Login(t.Context(), book, test.record, &test.card, test.pins)
			if !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
				t.Errorf("error %v, want %v", err, test.want)
			}
			if !slices.Equal(test.card.sent, test.sent) {
				t.Errorf("sent %q, want %q", test.card.sent, test.sent)
			}
			if !slices.Equal(book.told, test.told) {
				t.Errorf("told the ledger %q, want %q", book.told, test.told)
			}
		})
	}
}

// TestLoginLooksAgainBeforeItSends changes what the store holds after the record was read.
func TestLoginLooksAgainBeforeItSends(t *testing.T) {
	record := users.Token{ID: 1, Name: "hsm", Serial: "S", PINVersion: 5}
	damaged := errors.New("the disk fails")
	for name, test := range map[string]struct {
		now    users.Token
		unread error
		want   error
	}{
		"rejected meanwhile":              {now: users.Token{ID: 1, PINVersion: 5, PINRejected: true}, want: users.ErrPINRejected},
		"a change was begun":              {now: users.Token{ID: 1, PINVersion: 6, PINStaged: true}, want: users.ErrStale},
		"rejected in a change":            {now: users.Token{ID: 1, PINVersion: 6, PINStaged: true, PINRejected: true}, want: users.ErrStale},
		"changed, and that was rejected":  {now: users.Token{ID: 1, PINVersion: 7, PINRejected: true}, want: users.ErrStale},
		"removed":                         {now: users.Token{ID: 2}, want: users.ErrNotFound},
		"the store cannot be read":        {now: record, unread: damaged, want: damaged},
		"reloaded, which changes nothing": {now: users.Token{ID: 1, PINVersion: 5, Reload: 9}},
	} {
		t.Run(name, func(t *testing.T) {
			open := &card{pin: "old", info: token.Info{Serial: "S"}}
			err := users.Login(t.Context(), &ledger{token: test.now, unread: test.unread}, record, open, users.PINs{Current: []byte("old")})
			if !errors.Is(err, test.want) || (err == nil) != (test.want == nil) || (len(open.sent) == 0) != (test.want != nil) {
				t.Errorf("%v, want %v; sent %q", err, test.want, open.sent)
			}
		})
	}
}

// TestNoStagedPINOfAnotherChange settles the change between the two tries.
func TestNoStagedPINOfAnotherChange(t *testing.T) {
	record := users.Token{ID: 1, Name: "hsm", Serial: "S", PINVersion: 5, PINStaged: true}
	open := &card{pin: "new", info: token.Info{Serial: "S"}}
	book := &settling{ledger{token: record}}
	err := users.Login(t.Context(), book, record, open, users.PINs{Current: []byte("old"), Staged: []byte("new")})
	if !errors.Is(err, users.ErrStale) || !slices.Equal(open.sent, []string{"old"}) {
		t.Errorf("%v; sent %q", err, open.sent)
	}
}

// settling is a ledger in which somebody settles the change at the moment of a rejection.
type settling struct{ ledger }

func (s *settling) RejectPIN(ctx context.Context, tokenID, version int64, staged bool) error {
	s.token.PINVersion++
	return s.ledger.RejectPIN(ctx, tokenID, version, staged)
}
