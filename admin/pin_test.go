package admin

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"chancery/token"
	"chancery/users"
)

const secondPIN = "654321"

func (s *scene) record() *users.Token {
	s.t.Helper()
	record, ok := s.snapshot().Token("hsm")
	if !ok {
		s.t.Fatal("no token")
	}
	return record
}

// settled checks that the token has the PIN and that no change is in flight.
func (s *scene) settled(pin string) {
	s.t.Helper()
	if string(s.device.pin) != pin {
		s.t.Errorf("the token has the PIN %q, want %q", s.device.pin, pin)
	}
	if record := s.record(); record.PINStaged || record.PINRejected || record.StagedRejected {
		s.t.Errorf("not settled: %+v", record)
	}
	for _, g := range s.snapshot().Grants() {
		if g.Staged != nil {
			s.t.Errorf("grant %d has a staged wrap", g.ID)
		}
	}
}

func TestChangePIN(t *testing.T) {
	s := newScene(t)
	s.grant(users.RoleSigner, enrolled(t, "bob", bobPass))
	s.forgetSent()
	s.noError("change", s.ChangePIN(s.ctx, s.alice, "hsm", []byte(secondPIN)))
	s.settled(secondPIN)
	s.noError("alice signs", s.signs(s.alice))
	s.noError("bob signs", s.signs(s.bob))
	if got := strings.Join(s.device.sent, " "); got != "123456 123456 654321 654321" {
		t.Errorf("sent %s", got)
	}
	s.wantError("the same again", s.ChangePIN(s.ctx, s.alice, "hsm", []byte(secondPIN)), ErrRequest)
	s.wantError("who does not manage the token", s.ChangePIN(s.ctx, s.bob, "hsm", []byte("000000")), ErrNotManager)
	s.wantError("no PIN", s.ChangePIN(s.ctx, s.alice, "hsm", nil), ErrRequest)
	s.wantError("unknown token", s.ChangePIN(s.ctx, s.alice, "none", []byte("000000")), users.ErrNotFound)
	s.wantError("too short for the token", s.ChangePIN(s.ctx, s.alice, "hsm", []byte("1")), token.ErrPINInvalid)
	s.settled(secondPIN)
	settlement, err := s.SettlePIN(s.ctx, s.alice, "hsm")
	if err != nil || settlement != NothingInFlight {
		t.Errorf("settlement %q, error %v", settlement, err)
	}
}

func TestChangePINWithoutAnAnswer(t *testing.T) {
	for name, operation := range map[string]string{"lost on the way": "change", "lost on the way back": "answer"} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			s.grant(users.RoleSigner, enrolled(t, "bob", bobPass))
			s.device.fail(operation, token.ErrTokenAbsent)
			s.wantError("change", s.ChangePIN(s.ctx, s.alice, "hsm", []byte(secondPIN)), token.ErrTokenAbsent)
			s.device.fail(operation, nil)
			if !s.record().PINStaged {
				t.Fatal("the new PIN was dropped although the token may have it")
			}
			s.grant(users.RoleManager, enrolled(t, "carol", carolPass))
			s.noError("bob signs", s.signs(s.bob))
			s.noError("carol, granted meanwhile, signs", s.signs(Actor{"carol", []byte(carolPass)}))
			settlement, err := s.SettlePIN(s.ctx, s.alice, "hsm")
			s.noError("settle", err)
			if want := map[string]Settlement{"change": Completed, "answer": NothingInFlight}[operation]; settlement != want {
				t.Errorf("settlement %q, want %q", settlement, want)
			}
			s.settled(secondPIN)
			s.noError("bob signs", s.signs(s.bob))
			s.noError("carol signs", s.signs(Actor{"carol", []byte(carolPass)}))
		})
	}
}

func TestSettlingFindsTheNewPIN(t *testing.T) {
	s := newScene(t)
	s.device.fail("answer", token.ErrTokenAbsent)
	s.wantError("change", s.ChangePIN(s.ctx, s.alice, "hsm", []byte(secondPIN)), token.ErrTokenAbsent)
	s.device.fail("answer", nil)
	s.forgetSent()
	settlement, err := s.SettlePIN(s.ctx, s.alice, "hsm")
	if err != nil || settlement != Completed {
		t.Errorf("settlement %q, error %v", settlement, err)
	}
	s.settled(secondPIN)
	if got := strings.Join(s.device.sent, " "); got != "123456 654321" {
		t.Errorf("sent %s", got)
	}
}

func TestSettlingAPINThatTheTokenRefuses(t *testing.T) {
	s := newScene(t)
	s.device.fail("change", token.ErrTokenAbsent)
	s.wantError("change", s.ChangePIN(s.ctx, s.alice, "hsm", []byte("1")), token.ErrTokenAbsent)
	s.device.fail("change", nil)
	settlement, err := s.SettlePIN(s.ctx, s.alice, "hsm")
	if err != nil || settlement != Refused {
		t.Errorf("settlement %q, error %v", settlement, err)
	}
	s.settled(firstPIN)
}

func TestChangePINSettlesWhatWasInterrupted(t *testing.T) {
	s := newScene(t)
	s.device.fail("change", token.ErrTokenAbsent)
	s.wantError("change", s.ChangePIN(s.ctx, s.alice, "hsm", []byte(secondPIN)), token.ErrTokenAbsent)
	s.device.fail("change", nil)
	s.noError("change", s.ChangePIN(s.ctx, s.alice, "hsm", []byte("third PIN")))
	s.settled("third PIN")
	s.noError("alice signs", s.signs(s.alice))
}

func TestChangePassphraseDuringAPINChange(t *testing.T) {
	s := newScene(t)
	s.grant(users.RoleSigner, enrolled(t, "bob", bobPass))
	s.device.fail("answer", token.ErrTokenAbsent)
	s.wantError("change", s.ChangePIN(s.ctx, s.alice, "hsm", []byte(secondPIN)), token.ErrTokenAbsent)
	s.device.fail("answer", nil)
	_, err := s.ChangePassphrase(s.ctx, s.bob, Target{Key: "release"}, typed("bob", "bob's next passphrase"))
	s.noError("change passphrase", err)
	s.noError("bob signs", s.signs(Actor{"bob", []byte("bob's next passphrase")}))
	s.settled(secondPIN)
}

func TestRejectedPINIsNotSentAgain(t *testing.T) {
	s := newScene(t)
	s.device.pin = []byte("changed by other means")
	s.forgetSent()
	s.wantError("first", s.signs(s.alice), token.ErrPINIncorrect)
	for range 3 {
		s.wantError("after that", s.signs(s.alice), users.ErrPINRejected)
	}
	if len(s.device.sent) != 1 {
		t.Errorf("%d PINs were sent", len(s.device.sent))
	}
	s.noError("unblock", s.Store.Unblock(s.ctx, "hsm"))
	s.device.wrong = maxTries - 1
	s.wantError("final try", s.signs(s.alice), users.ErrFinalTry)
	s.device.wrong = maxTries
	s.wantError("locked", s.signs(s.alice), token.ErrPINLocked)
	if len(s.device.sent) != 1 {
		t.Errorf("%d PINs were sent", len(s.device.sent))
	}
	s.device.wrong = 0
	s.wantError("repair with the wrong PIN", s.RepairPIN(s.ctx, "hsm", []byte(secondPIN)), token.ErrPINIncorrect)
	s.noError("repair", s.RepairPIN(s.ctx, "hsm", []byte("changed by other means")))
	s.settled("changed by other means")
	s.noError("alice signs", s.signs(s.alice))
	s.wantError("repair nothing", s.RepairPIN(s.ctx, "none", []byte(secondPIN)), users.ErrNotFound)
}

func TestNeitherPINFits(t *testing.T) {
	s := newScene(t)
	s.device.fail("change", token.ErrTokenAbsent)
	s.wantError("change", s.ChangePIN(s.ctx, s.alice, "hsm", []byte(secondPIN)), token.ErrTokenAbsent)
	s.device.fail("change", nil)
	s.device.pin = []byte("changed by other means")
	s.device.wrong = maxTries - 2
	s.forgetSent()
	s.wantError("first", s.signs(s.alice), users.ErrFinalTry) // the current PIN is wrong, and now the next is the last
	s.noError("somebody logs in elsewhere", s.device.elsewhere("changed by other means"))
	s.wantError("second", s.signs(s.alice), token.ErrPINIncorrect)
	s.noError("somebody logs in elsewhere", s.device.elsewhere("changed by other means"))
	s.wantError("third", s.signs(s.alice), users.ErrPINRejected)
	if got := fmt.Sprint(s.device.sent); got != fmt.Sprint([]string{firstPIN, secondPIN}) {
		t.Errorf("sent %v", got)
	}
	s.noError("repair", s.RepairPIN(s.ctx, "hsm", []byte("changed by other means")))
	s.settled("changed by other means")
	s.noError("alice signs", s.signs(s.alice))
}

// elsewhere is a login by another program.
func (d *device) elsewhere(pin string) error {
	if string(d.pin) != pin {
		return token.ErrPINIncorrect
	}
	d.wrong = 0
	return nil
}

// interfering is a store that does something of its own before an act is stored.
type interfering struct {
	users.Store
	once         sync.Once
	beforeCommit func()
	beforeStage  func()
}

func (i *interfering) CommitPIN(ctx context.Context, tokenID, version int64) error {
	if i.beforeCommit != nil {
		i.once.Do(i.beforeCommit)
	}
	return i.Store.CommitPIN(ctx, tokenID, version)
}

func (i *interfering) StagePIN(ctx context.Context, tokenID int64, grants []users.Grant) (int64, error) {
	if i.beforeStage != nil {
		i.once.Do(i.beforeStage)
	}
	return i.Store.StagePIN(ctx, tokenID, grants)
}

// TestTheOldPINIsWrongInTheMomentOfTheChange has another program change the PIN after the login, so that the token
// counts a wrong try for C_SetPIN.
func TestTheOldPINIsWrongInTheMomentOfTheChange(t *testing.T) {
	s := newScene(t)
	s.Store = &interfering{Store: s.Store, beforeStage: func() { s.device.pin = []byte("changed by other means") }}
	s.forgetSent()
	s.wantError("change", s.ChangePIN(s.ctx, s.alice, "hsm", []byte(secondPIN)), token.ErrPINIncorrect)
	if !s.record().PINRejected {
		t.Error("the token rejected the old PIN, and nobody remembers it")
	}
	s.noError("somebody logs in elsewhere", s.device.elsewhere("changed by other means"))
	s.wantError("alice signs", s.signs(s.alice), token.ErrPINIncorrect)
	if got := fmt.Sprint(s.device.sent); got != fmt.Sprint([]string{firstPIN, firstPIN, secondPIN}) {
		t.Errorf("sent %v", got)
	}
}

// damaged is a store with a grant that cannot be read.
type damaged struct{ users.Store }

func (d damaged) Snapshot(ctx context.Context) (*users.Snapshot, error) {
	s, err := d.Store.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	row := users.Unreadable{Kind: "grant", ID: 77, Err: users.ErrUnreadable}
	return users.NewSnapshot(s.Revision, s.Users(), s.Tokens(), s.Keys(), s.Grants(), row), nil
}

func TestNoPINChangesWhileAGrantCannotBeRead(t *testing.T) {
	s := newScene(t)
	s.Store = damaged{s.Store}
	s.wantError("change", s.ChangePIN(s.ctx, s.alice, "hsm", []byte(secondPIN)), users.ErrUnreadable)
	s.settled(firstPIN)
	s.noError("alice signs", s.signs(s.alice))
}

func TestSomebodyElseSettlesFirst(t *testing.T) {
	for name, act := range map[string]func(*scene, *Office) error{
		"a signer logs in":    func(s *scene, other *Office) error { return signs(s.t, other, s.alice, "release") },
		"an operator settles": func(s *scene, other *Office) error { _, err := other.SettlePIN(s.ctx, s.alice, "hsm"); return err },
		"an operator repairs": func(s *scene, other *Office) error { return other.RepairPIN(s.ctx, "hsm", []byte(secondPIN)) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			other := *s.Office
			s.Store = &interfering{Store: other.Store, beforeCommit: func() { s.noError(name, act(s, &other)) }}
			s.noError("change", s.ChangePIN(s.ctx, s.alice, "hsm", []byte(secondPIN)))
			s.settled(secondPIN)
			s.noError("alice signs", s.signs(s.alice))
		})
	}
}

// A repair with the old PIN, in the moment before the token changes, drops the staged wraps; the change puts its PIN back.
func TestARepairInTheWrongMomentLosesNothing(t *testing.T) {
	s := newScene(t)
	s.Store = &interfering{Store: s.Store, beforeCommit: func() {
		record := s.record()
		s.noError("abandon", s.Store.AbandonPIN(s.ctx, record.ID, record.PINVersion))
	}}
	s.noError("change", s.ChangePIN(s.ctx, s.alice, "hsm", []byte(secondPIN)))
	s.settled(secondPIN)
	s.noError("alice signs", s.signs(s.alice))
}

func TestGrantArrivesWhileTheChangeIsPrepared(t *testing.T) {
	s := newScene(t)
	s.Store = &interfering{Store: s.Store, beforeStage: func() { s.grant(users.RoleSigner, enrolled(t, "bob", bobPass)) }}
	s.noError("change", s.ChangePIN(s.ctx, s.alice, "hsm", []byte(secondPIN)))
	s.settled(secondPIN)
	s.noError("bob signs", s.signs(s.bob))
}

func TestInterruptedCallerDoesNotInterruptTheChange(t *testing.T) {
	s := newScene(t)
	ctx, cancel := context.WithCancel(s.ctx)
	s.Store = &interfering{Store: s.Store, beforeStage: cancel}
	s.noError("change", s.ChangePIN(ctx, s.alice, "hsm", []byte(secondPIN)))
	s.settled(secondPIN)
}

func TestTwoOperatorsChangeThePIN(t *testing.T) {
	s := newScene(t)
	pins := []string{"the first's PIN", "the second's PIN"}
	errs := make([]error, len(pins))
	var group sync.WaitGroup
	for i, pin := range pins {
		group.Go(func() { errs[i] = s.ChangePIN(s.ctx, s.alice, "hsm", []byte(pin)) })
	}
	group.Wait()
	for _, err := range errs {
		if err != nil && !errors.Is(err, users.ErrPINChangeInFlight) && !errors.Is(err, users.ErrStale) && !errors.Is(err, token.ErrPINIncorrect) {
			t.Error(err)
		}
	}
	s.device.wrong = 0
	s.noError("alice signs", s.signs(s.alice))
	_, err := s.SettlePIN(s.ctx, s.alice, "hsm")
	s.noError("settle", err)
	s.noError("alice signs", s.signs(s.alice))
}
