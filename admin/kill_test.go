package admin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"chancery/softhsm"
	"chancery/token"
	"chancery/token/pkcs11"
	"chancery/token/soft"
	"chancery/users"
	"chancery/users/sqlite"
)

// The moments at which a process that changes a PIN is killed.
const (
	beforeStage  = "before-stage"
	afterStage   = "after-stage"
	afterChange  = "after-change"
	afterCommit  = "after-commit"
	envDatabase  = "CHANCERY_TEST_CHANGE_PIN_IN"
	envMoment    = "CHANCERY_TEST_KILL"
	envPIN       = "CHANCERY_TEST_NEW_PIN"
	lastResort   = time.Minute
	pinOfTheTest = "a PIN of the test"
)

func TestMain(m *testing.M) {
	if database := os.Getenv(envDatabase); database != "" {
		fmt.Fprintln(os.Stderr, "still alive:", changePINAndDie(database, os.Getenv(envMoment), os.Getenv(envPIN)))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// openDriver opens a real token, as the daemon's wiring does.
func openDriver(_ context.Context, t users.Token) (token.Token, error) {
	if t.Driver == "soft" {
		return soft.Open(t.Location)
	}
	return pkcs11.Open(pkcs11.Config{Module: t.Location, Serial: t.Serial, MaxSessions: pkcs11.MinSessions})
}

func die() { syscall.Kill(os.Getpid(), syscall.SIGKILL) }

// dying is a store whose process is killed at a moment.
type dying struct {
	users.Store
	moment string
}

func (d dying) StagePIN(ctx context.Context, tokenID int64, grants []users.Grant) (int64, error) {
	if d.moment == beforeStage {
		die()
	}
	version, err := d.Store.StagePIN(ctx, tokenID, grants)
	if err == nil && d.moment == afterStage {
		die()
	}
	return version, err
}

func (d dying) CommitPIN(ctx context.Context, tokenID, version int64) error {
	if d.moment == afterChange {
		die()
	}
	err := d.Store.CommitPIN(ctx, tokenID, version)
	if err == nil && d.moment == afterCommit {
		die()
	}
	return err
}

func changePINAndDie(database, moment, pin string) error {
	ctx, cancel := context.WithTimeout(context.Background(), lastResort)
	defer cancel()
	store, err := sqlite.Open(ctx, database)
	if err != nil {
		return err
	}
	office := &Office{Store: dying{store, moment}, Parameters: cheap, derive: deriveOnce, Open: openDriver}
	err = office.ChangePIN(ctx, Actor{"alice", []byte(alicePass)}, "hsm", []byte(pin))
	return errors.Join(errors.New("the PIN change ended"), err)
}

func TestPINChangeSurvivesKill(t *testing.T) {
	t.Run("soft", func(t *testing.T) {
		t.Parallel()
		dir := filepath.Join(t.TempDir(), "token")
		if err := soft.Create(dir, "a soft token", []byte(pinOfTheTest)); err != nil {
			t.Fatal(err)
		}
		killAtEachMoment(t, TokenSpec{Driver: "soft", Location: dir})
	})
	t.Run("SoftHSM", func(t *testing.T) {
		hsm := softhsm.ForTest(t)
		if err := resetPIN(t.Context(), hsm); err != nil {
			t.Fatal(err)
		}
		killAtEachMoment(t, TokenSpec{Driver: "pkcs11", Location: hsm.Store.Module, Serial: hsm.Serial})
	})
}

// resetPIN gives SoftHSM's token the PIN that the test begins with.
func resetPIN(ctx context.Context, hsm *softhsm.Token) error {
	open, err := pkcs11.Open(pkcs11.Config{Module: hsm.Store.Module, Serial: hsm.Serial, MaxSessions: pkcs11.MinSessions})
	if err != nil {
		return err
	}
	defer open.Close()
	if err := open.Login(ctx, hsm.PIN); err != nil {
		return err
	}
	return open.ChangePIN(ctx, hsm.PIN, []byte(pinOfTheTest))
}

// killAtEachMoment lets processes that change the token's PIN be killed, one after the other, and has
// everybody sign after each of them.
func killAtEachMoment(t *testing.T, spec TokenSpec) {
	ctx := t.Context()
	database := filepath.Join(t.TempDir(), "users.db")
	store, err := sqlite.Open(ctx, database)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	office := &Office{Store: store, Parameters: cheap, derive: deriveOnce, Open: openDriver}
	alice, bob := Actor{"alice", []byte(alicePass)}, Actor{"bob", []byte(bobPass)}
	furnish(t, office, spec, alice)

	pin := pinOfTheTest
	for _, test := range []struct {
		moment   string
		inFlight bool
	}{{beforeStage, false}, {afterStage, true}, {afterChange, true}, {afterCommit, false}} {
		next := "the PIN after " + test.moment
		killed(t, database, test.moment, next)
		if record := tokenRecord(t, office); record.PINStaged != test.inFlight {
			t.Fatalf("%s: in flight %v, want %v", test.moment, record.PINStaged, test.inFlight)
		}
		if err := signs(t, office, bob, "release"); err != nil {
			t.Fatalf("%s: bob: %v", test.moment, err)
		}
		if _, err := office.SettlePIN(ctx, alice, "hsm"); err != nil {
			t.Fatalf("%s: settle: %v", test.moment, err)
		}
		if record := tokenRecord(t, office); record.PINStaged || record.PINRejected {
			t.Errorf("%s: not settled: %+v", test.moment, record)
		}
		if err := signs(t, office, alice, "release"); err != nil {
			t.Fatalf("%s: alice: %v", test.moment, err)
		}
		if test.moment != beforeStage {
			pin = next
		}
		if got := pinInGrants(t, office, alice); got != pin {
			t.Errorf("%s: the grants hold %q, want %q", test.moment, got, pin)
		}
	}
}

// pinInGrants is the PIN that alice manages the token with.
func pinInGrants(t *testing.T, office *Office, alice Actor) string {
	t.Helper()
	s, err := office.Store.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p, err := office.tokenManager(s, alice, "hsm", office.keyring(alice.Passphrase))
	if err != nil {
		t.Fatal(err)
	}
	defer p.clear()
	return string(p.pins.Current)
}

// furnish registers the token, a key, its manager alice and, by enrolment, the signer bob.
func furnish(t *testing.T, office *Office, spec TokenSpec, alice Actor) {
	t.Helper()
	ctx := t.Context()
	for _, name := range []string{"alice", "bob"} {
		if _, err := office.Store.AddUser(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	spec.Name = "hsm"
	if _, err := office.AddToken(ctx, spec, []byte(pinOfTheTest), typed("alice", alicePass)); err != nil {
		t.Fatal(err)
	}
	if _, err := office.CreateKey(ctx, alice, KeySpec{Name: "release", Token: "hsm"}, token.P256); err != nil {
		t.Fatal(err)
	}
	if _, err := office.AddGrant(ctx, alice, GrantSpec{Target: Target{Key: "release"}, Role: users.RoleSigner}, enrolled(t, "bob", bobPass)); err != nil {
		t.Fatal(err)
	}
}

func tokenRecord(t *testing.T, office *Office) *users.Token {
	t.Helper()
	s, err := office.Store.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	record, ok := s.Token("hsm")
	if !ok {
		t.Fatal("no token")
	}
	return record
}

// killed runs a process that changes the PIN and is killed at the moment.
func killed(t *testing.T, database, moment, pin string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), lastResort)
	defer cancel()
	child := exec.CommandContext(ctx, os.Args[0])
	child.Env = append(os.Environ(), envDatabase+"="+database, envMoment+"="+moment, envPIN+"="+pin)
	output, err := child.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL || ctx.Err() != nil {
		t.Fatalf("%s: the process was not killed: %v\n%s", moment, err, output)
	}
}

// Every act on real tokens, of both kinds.
func TestActsOnRealTokens(t *testing.T) {
	t.Run("soft", func(t *testing.T) {
		t.Parallel()
		dir := filepath.Join(t.TempDir(), "token")
		if err := soft.Create(dir, "a soft token", []byte(pinOfTheTest)); err != nil {
			t.Fatal(err)
		}
		actOnRealToken(t, TokenSpec{Driver: "soft", Location: dir}, false)
	})
	t.Run("SoftHSM", func(t *testing.T) {
		hsm := softhsm.ForTest(t)
		if err := resetPIN(t.Context(), hsm); err != nil {
			t.Fatal(err)
		}
		actOnRealToken(t, TokenSpec{Driver: "pkcs11", Location: hsm.Store.Module, Serial: hsm.Serial}, true)
	})
}

func actOnRealToken(t *testing.T, spec TokenSpec, counts bool) {
	ctx := t.Context()
	store, err := sqlite.Open(ctx, filepath.Join(t.TempDir(), "users.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	office := &Office{Store: store, Parameters: cheap, derive: deriveOnce, Open: openDriver}
	alice, bob := Actor{"alice", []byte(alicePass)}, Actor{"bob", []byte(bobPass)}
	furnish(t, office, spec, alice)

	if err := office.ChangePIN(ctx, alice, "hsm", []byte("1")); !errors.Is(err, token.ErrPINInvalid) {
		t.Errorf("a PIN that is too short: %v", err)
	}
	info, keys, err := office.Inspect(ctx, "hsm")
	if err != nil || len(keys) != 1 || info.PIN.CountLow {
		t.Errorf("info %+v, %d keys, error %v", info, len(keys), err)
	}
	id := keys[0].ID
	if err := store.DeleteKey(ctx, "release"); err != nil {
		t.Fatal(err)
	}
	if _, err := office.AdoptKey(ctx, alice, AdoptSpec{KeySpec: KeySpec{Name: "release", Token: "hsm", Manager: enrolled(t, "bob", bobPass)}, ID: id}); err != nil {
		t.Fatal(err)
	}
	if err := signs(t, office, bob, "release"); err != nil {
		t.Errorf("bob signs with the adopted key: %v", err)
	}
	if err := office.DestroyKey(ctx, bob, "release"); err != nil {
		t.Error(err)
	}
	if err := office.RepairPIN(ctx, "hsm", []byte("wrong PIN")); !errors.Is(err, token.ErrPINIncorrect) {
		t.Errorf("repair with a wrong PIN: %v", err)
	}
	if info, _, err := office.Inspect(ctx, "hsm"); err != nil || info.PIN.CountLow != counts {
		t.Errorf("after a wrong PIN: info %+v, error %v", info, err)
	}
}
