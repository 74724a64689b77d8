package admin

import (
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/access"
	"chancery/token"
	"chancery/users"
	"chancery/users/sqlite"
)

const (
	firstPIN                      = "123456"
	alicePass, bobPass, carolPass = "alice's passphrase", "bob's passphrase", "carol's passphrase"
)

// cheap costs as little as is accepted, and has the same salt each time, so that deriveOnce pays.
func cheap() access.Parameters {
	return access.Parameters{Time: access.MinTime, MemoryKiB: access.MinMemoryKiB, Threads: 1}
}

var derived sync.Map // passphrase to access key

// deriveOnce derives each passphrase's key once: Argon2id takes most of these tests' time.
func deriveOnce(passphrase []byte, p access.Parameters) (*access.Key, error) {
	if key, ok := derived.Load(string(passphrase)); ok && p == cheap() {
		return key.(*access.Key), nil
	}
	key, err := access.DeriveKey(passphrase, p)
	if err == nil && p == cheap() {
		derived.Store(string(passphrase), key)
	}
	return key, err
}

// scene is an office with a device "hsm", whose token manager alice has made the key
// "release", and with the users bob and carol, who hold nothing.
type scene struct {
	*Office
	t      *testing.T
	ctx    context.Context
	device *device
	alice  Actor
	bob    Actor
	key    users.Key

	database []byte // the file as every scene finds it
}

// scenery is what all scenes begin with, made once: Argon2id is slow under the race detector.
var scenery = sync.OnceValues(func() (*scene, error) {
	dir, err := os.MkdirTemp("", "chancery-admin-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	s := &scene{ctx: context.Background(), device: newDevice("serial-1", firstPIN)}
	store, err := sqlite.Open(s.ctx, filepath.Join(dir, "users.db"))
	if err != nil {
		return nil, err
	}
	s.office(store)
	for _, name := range []string{"alice", "bob", "carol"} {
		if _, err := store.AddUser(s.ctx, name); err != nil {
			return nil, err
		}
	}
	if _, err = s.AddToken(s.ctx, TokenSpec{Name: "hsm", Driver: "fake", Location: "/dev/null"}, []byte(firstPIN), typed("alice", alicePass)); err != nil {
		return nil, err
	}
	if s.key, err = s.CreateKey(s.ctx, s.alice, KeySpec{Name: "release", Token: "hsm"}, token.P256); err != nil {
		return nil, err
	}
	if err := store.Close(); err != nil {
		return nil, err
	}
	s.database, err = os.ReadFile(filepath.Join(dir, "users.db"))
	return s, err
})

// office puts an office over a store, in front of the scene's device.
func (s *scene) office(store users.Store) {
	s.alice, s.bob = Actor{"alice", []byte(alicePass)}, Actor{"bob", []byte(bobPass)}
	s.Office = &Office{Store: store, Parameters: cheap, derive: deriveOnce, Open: func(context.Context, users.Token) (token.Token, error) { return s.device.handle() }}
}

// newScene sets a fresh scene. Tests with a scene run side by side.
func newScene(t *testing.T) *scene {
	t.Helper()
	t.Parallel()
	first, err := scenery()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "users.db")
	if err := os.WriteFile(path, first.database, 0o600); err != nil {
		t.Fatal(err)
	}
	store, err := sqlite.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	s := &scene{t: t, ctx: t.Context(), device: first.device.clone(), key: first.key}
	s.office(store)
	t.Cleanup(func() {
		if s.device.open != 0 {
			t.Errorf("%d token handles were not closed", s.device.open)
		}
	})
	return s
}

func typed(user, passphrase string) Grantee {
	return Grantee{User: user, Passphrase: []byte(passphrase)}
}

func enrolled(t *testing.T, user, passphrase string) Grantee {
	t.Helper()
	key, err := deriveOnce([]byte(passphrase), cheap())
	if err != nil {
		t.Fatal(err)
	}
	enrolment, err := access.ParseEnrolment(access.Enrolment{User: user, Key: key.Public()}.String())
	if err != nil {
		t.Fatal(err)
	}
	return Grantee{User: user, Enrolment: &enrolment}
}

func (s *scene) noError(what string, err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatalf("%s: %v", what, err)
	}
}

func (s *scene) wantError(what string, got, want error) {
	s.t.Helper()
	if !errors.Is(got, want) {
		s.t.Errorf("%s: error %v, want %v", what, got, want)
	}
}

func (s *scene) snapshot() *users.Snapshot {
	s.t.Helper()
	snapshot, err := s.Store.Snapshot(s.ctx)
	s.noError("snapshot", err)
	return snapshot
}

func (s *scene) grant(role users.Role, grantee Grantee) users.Grant {
	s.t.Helper()
	spec := GrantSpec{Target: Target{Key: "release"}, Role: role}
	if role == users.RoleTokenManager {
		spec.Target = Target{Token: "hsm"}
	}
	g, err := s.AddGrant(s.ctx, s.alice, spec, grantee)
	s.noError("grant", err)
	return g
}

// signs tells whether the actor can sign with the key "release", and verifies what comes out.
func (s *scene) signs(actor Actor) error {
	s.t.Helper()
	return signs(s.t, s.Office, actor, "release")
}

func signs(t *testing.T, office *Office, actor Actor, name string) error {
	t.Helper()
	signer, err := office.Signer(t.Context(), actor, name)
	if err != nil {
		return err
	}
	defer signer.Close()
	digest := sha256.Sum256([]byte("a document"))
	signature, err := signer.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		return err
	}
	if !verifies(signer.Public(), digest[:], signature) {
		t.Error("the signature does not verify")
	}
	return nil
}

// forgetSent empties what the device remembers of PINs.
func (s *scene) forgetSent() { s.device.sent = nil }

func TestFirstUse(t *testing.T) {
	s := newScene(t)
	record, _ := s.snapshot().Token("hsm")
	if record.Serial != "serial-1" || record.Label != "fake label" || !record.Hardware {
		t.Errorf("recorded %+v", record)
	}
	if s.key.Origin != users.OriginGenerated || len(s.key.TokenKeyID) != keyIDSize || s.key.Algorithm != token.P256 {
		t.Errorf("key %+v", s.key)
	}
	s.noError("alice signs", s.signs(s.alice))
	if got := strings.Join(s.device.sent, " "); got != "123456 123456 123456" {
		t.Errorf("PINs sent for adding, creating and signing: %s", got)
	}
}

func TestNoPINStandsInTheDatabase(t *testing.T) {
	const pin = "a PIN that is easy to find"
	dir := t.TempDir()
	store, err := sqlite.Open(t.Context(), filepath.Join(dir, "users.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	if _, err := store.AddUser(t.Context(), "alice"); err != nil {
		t.Fatal(err)
	}
	office := &Office{Store: store, Parameters: cheap, derive: deriveOnce, Open: func(context.Context, users.Token) (token.Token, error) {
		return newDevice("1", pin).handle()
	}}
	if _, err := office.AddToken(t.Context(), TokenSpec{Name: "hsm", Driver: "fake"}, []byte(pin), typed("alice", alicePass)); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		content, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(content), pin) || strings.Contains(string(content), alicePass) {
			t.Errorf("%s holds the PIN or the passphrase", entry.Name())
		}
	}
}

func TestAddTokenRefuses(t *testing.T) {
	s := newScene(t)
	bob := enrolled(t, "bob", bobPass)
	for name, test := range map[string]struct {
		change func(*scene)
		spec   TokenSpec
		pin    string
		first  Grantee
		want   error
	}{
		"wrong PIN":          {pin: "654321", want: token.ErrPINIncorrect},
		"no PIN":             {pin: "", want: ErrRequest},
		"locked":             {change: func(s *scene) { s.device.wrong = maxTries }, pin: firstPIN, want: token.ErrPINLocked},
		"final try":          {change: func(s *scene) { s.device.wrong = maxTries - 1 }, pin: firstPIN, want: users.ErrFinalTry},
		"absent":             {change: func(s *scene) { s.device.fail("open", token.ErrTokenAbsent) }, pin: firstPIN, want: token.ErrTokenAbsent},
		"another serial":     {spec: TokenSpec{Serial: "serial-2"}, pin: firstPIN, want: token.ErrTokenAbsent},
		"no serial":          {change: func(s *scene) { s.device.serial = "" }, pin: firstPIN, want: ErrRequest},
		"registered already": {change: func(s *scene) { s.device.serial = "serial-1" }, pin: firstPIN, want: users.ErrExists},
		"name in use":        {spec: TokenSpec{Name: "hsm"}, pin: firstPIN, want: users.ErrExists},
		"bad name":           {spec: TokenSpec{Name: "a/b"}, pin: firstPIN, want: users.ErrName},
		"short passphrase":   {first: typed("bob", "short"), pin: firstPIN, want: ErrRequest},
		"unknown manager":    {first: Grantee{User: "nobody", Enrolment: &access.Enrolment{User: "nobody"}}, pin: firstPIN, want: users.ErrNotFound},
		"nobody named":       {first: Grantee{User: "bob"}, pin: firstPIN, want: ErrRequest},
	} {
		s.device = newDevice("serial-9", firstPIN)
		if test.change != nil {
			test.change(s)
		}
		if test.spec.Name == "" {
			test.spec.Name = "second"
		}
		if test.first.User == "" {
			test.first = bob
		}
		test.spec.Driver = "fake"
		_, err := s.AddToken(s.ctx, test.spec, []byte(test.pin), test.first)
		s.wantError(name, err, test.want)
		early := errors.Is(test.want, users.ErrFinalTry) || errors.Is(test.want, token.ErrPINLocked) || errors.Is(test.want, ErrRequest)
		if early && len(s.device.sent) != 0 {
			t.Errorf("%s: a PIN was sent", name)
		}
		if len(s.snapshot().Tokens()) != 1 {
			t.Fatalf("%s: the token was registered", name)
		}
	}
}

func TestWrongPassphraseNeverReachesTheToken(t *testing.T) {
	s := newScene(t)
	s.grant(users.RoleSigner, typed("bob", bobPass))
	s.forgetSent()
	wrong := Actor{"alice", []byte("not alice's passphrase")}
	release, hsm := Target{Key: "release"}, Target{Token: "hsm"}
	for name, act := range map[string]func() error{
		"create": func() error {
			_, err := s.CreateKey(s.ctx, wrong, KeySpec{Name: "k", Token: "hsm"}, token.P256)
			return err
		},
		"grant": func() error {
			_, err := s.AddGrant(s.ctx, wrong, GrantSpec{Target: release, Role: users.RoleSigner}, typed("carol", carolPass))
			return err
		},
		"sign":       func() error { return s.signs(wrong) },
		"change PIN": func() error { return s.ChangePIN(s.ctx, wrong, "hsm", []byte("999999")) },
		"settle":     func() error { _, err := s.SettlePIN(s.ctx, wrong, "hsm"); return err },
		"destroy":    func() error { return s.DestroyKey(s.ctx, wrong, "release") },
		"passphrase": func() error {
			_, err := s.ChangePassphrase(s.ctx, wrong, hsm, typed("alice", "another passphrase"))
			return err
		},
		"another's passphrase": func() error { return s.signs(Actor{"bob", []byte(alicePass)}) },
		"endless":              func() error { return s.signs(Actor{"bob", make([]byte, 1<<20)}) },
	} {
		s.wantError(name, act(), access.ErrWrongPassphrase)
	}
	if len(s.device.sent) != 0 {
		t.Errorf("the token was sent %d PINs", len(s.device.sent))
	}
}

func TestMovedRowsDoNotOpen(t *testing.T) {
	s := newScene(t)
	expires := time.Now().Add(time.Hour)
	_, err := s.AddGrant(s.ctx, s.alice, GrantSpec{Target: Target{Key: "release"}, Role: users.RoleSigner, Expires: expires}, typed("bob", bobPass))
	s.noError("grant", err)
	_, err = s.CreateKey(s.ctx, s.alice, KeySpec{Name: "other", Token: "hsm"}, token.P256)
	s.noError("second key", err)
	snapshot := s.snapshot()
	bob, _ := snapshot.User("bob")
	carol, _ := snapshot.User("carol")
	other, _ := snapshot.Key("other")
	original, _ := snapshot.KeyGrant(bob.ID, s.key.ID)
	ring := s.keyring([]byte(bobPass))
	for name, change := range map[string]func(*users.Grant){
		"as it is":         func(*users.Grant) {},
		"to a user":        func(g *users.Grant) { g.UserID = carol.ID },
		"to a key":         func(g *users.Grant) { g.KeyID = other.ID },
		"to the token":     func(g *users.Grant) { g.KeyID, g.Role = 0, users.RoleTokenManager },
		"to a role":        func(g *users.Grant) { g.Role = users.RoleManager },
		"to a longer time": func(g *users.Grant) { g.Expires = g.Expires.Add(time.Hour) },
		"to all times":     func(g *users.Grant) { g.Expires = time.Time{} },
	} {
		moved := *original
		change(&moved)
		p, err := s.prove(snapshot, bob, &moved, ring)
		if name == "as it is" {
			s.noError(name, err)
			p.clear()
			continue
		}
		s.wantError(name, err, access.ErrWrongPassphrase)
	}
}

func TestAnotherTokenInItsPlaceIsSentNothing(t *testing.T) {
	s := newScene(t)
	s.device = newDevice("serial-2", "000000")
	s.wantError("sign", s.signs(s.alice), token.ErrTokenAbsent)
	if len(s.device.sent) != 0 {
		t.Error("the other token learned the PIN")
	}
}

func TestInspect(t *testing.T) {
	s := newScene(t)
	s.forgetSent()
	info, keys, err := s.Inspect(s.ctx, "hsm")
	if err != nil || info.Serial != "serial-1" || len(keys) != 1 || keys[0].Label != "release" {
		t.Errorf("info %+v, keys %+v, error %v", info, keys, err)
	}
	_, _, err = s.Inspect(s.ctx, "none")
	s.wantError("unknown token", err, users.ErrNotFound)
	if len(s.device.sent) != 0 {
		t.Error("looking at a token sent a PIN")
	}
}
