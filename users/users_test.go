package users_test

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/access"
	"chancery/users"
	"chancery/users/sqlite"
	"chancery/users/storetest"
)

func TestNames(t *testing.T) {
	for name, ok := range map[string]bool{
		"alice":                   true,
		"Alice Ångström":          true,
		"alice@example.org":       true,
		"0":                       true,
		strings.Repeat("x", 64):   true,
		"":                        false,
		strings.Repeat("x", 65):   false,
		"-rf":                     false,
		" alice":                  false,
		"alice ":                  false,
		"a/b":                     false,
		"a\nb":                    false,
		"a\x00b":                  false,
		"a\u202eb":                false, // would turn the text around it
		"a\u00a0b":                false,
		"\xff":                    false,
		strings.Repeat("\x1b", 3): false,
	} {
		if err := users.CheckName(name); (err == nil) != ok || err != nil && !errors.Is(err, users.ErrName) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// small is a snapshot in which alice manages token and key, and bob signs until the year 2040.
func small(t *testing.T) (*users.Snapshot, users.Grant) {
	t.Helper()
	until := time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC)
	signer := users.Grant{ID: 3, UserID: 2, TokenID: 1, KeyID: 1, Role: users.RoleSigner, Expires: until}
	return users.NewSnapshot(7,
		[]users.User{{ID: 2, Name: "bob"}, {ID: 1, Name: "alice"}},
		[]users.Token{{ID: 1, Name: "hsm", Serial: "S"}},
		[]users.Key{{ID: 1, Name: "release", TokenID: 1, Handle: "H"}},
		[]users.Grant{signer, {ID: 1, UserID: 1, TokenID: 1, Role: users.RoleTokenManager}, {ID: 2, UserID: 1, TokenID: 1, KeyID: 1, Role: users.RoleManager}},
	), signer
}

func TestSnapshotFinds(t *testing.T) {
	s, signer := small(t)
	if s.Users()[0].Name != "alice" || s.Grants()[0].ID != 1 {
		t.Error("lists are not by identifier")
	}
	if _, found := s.KeyGrant(2, 0); found {
		t.Error("a grant on no key was found")
	}
	if g, found := s.TokenGrant(1, 1); !found || g.ID != 1 {
		t.Errorf("alice's token grant: %+v, %v", g, found)
	}
	if _, found := s.TokenGrant(2, 1); found {
		t.Error("a signer manages the token")
	}
	if len(s.GrantsOf(1)) != 2 || len(s.GrantsOf(3)) != 0 {
		t.Error("grants of users")
	}
	for when, usable := range map[time.Time]bool{
		signer.Expires.Add(-time.Second): true,
		signer.Expires:                   false,
		signer.Expires.Add(time.Second):  false,
	} {
		if _, ok := s.Usable(2, 1, when); ok != usable {
			t.Errorf("usable at %v: %v", when, ok)
		}
	}
	if _, ok := s.Usable(3, 1, time.Now()); ok {
		t.Error("an unknown user may sign")
	}
}

func TestBindingOfEachRole(t *testing.T) {
	s, signer := small(t)
	want := access.Binding{TokenSerial: "S", KeyHandle: "H", User: "bob", Role: "signer", Expires: signer.Expires}
	if got, ok := s.Binding(&signer); !ok || got != want {
		t.Errorf("signer: %+v, %v", got, ok)
	}
	manager, _ := s.Grant(1)
	if got, ok := s.Binding(manager); !ok || got != (access.Binding{TokenSerial: "S", User: "alice", Role: "token-manager"}) {
		t.Errorf("token manager: %+v, %v", got, ok)
	}
	for name, g := range map[string]users.Grant{
		"user":  {UserID: 9, TokenID: 1, KeyID: 1},
		"token": {UserID: 1, TokenID: 9, KeyID: 1},
		"key":   {UserID: 1, TokenID: 1, KeyID: 9},
	} {
		if _, ok := s.Binding(&g); ok {
			t.Errorf("binding of an unknown %s", name)
		}
		if _, err := s.Unwrap(&g, nil); !errors.Is(err, users.ErrNotFound) {
			t.Errorf("unwrapping of an unknown %s: %v", name, err)
		}
	}
}

// sometimes is a store whose reads fail while broken is set.
type sometimes struct {
	users.Store
	mu     sync.Mutex
	broken bool
}

func (s *sometimes) set(broken bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = broken
}

func (s *sometimes) Revision(ctx context.Context) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken {
		return 0, errors.New("the disk fails")
	}
	return s.Store.Revision(ctx)
}

func TestWatch(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users.db")
	here, elsewhere := openStore(t, path), openStore(t, path)
	store := &sometimes{Store: here}
	snapshots, failures := make(chan *users.Snapshot, 100), make(chan error, 100)
	watcher, err := users.Watch(t.Context(), store, 5*time.Millisecond, func(s *users.Snapshot) { snapshots <- s }, func(err error) {
		select {
		case failures <- err:
		default:
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case first := <-snapshots:
		if len(first.Users()) != 0 {
			t.Error("the first snapshot has users")
		}
	default:
		t.Fatal("no snapshot before Watch returned")
	}
	add := func(name string) {
		t.Helper()
		if _, err := elsewhere.AddUser(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	add("alice")
	if next := <-snapshots; len(next.Users()) != 1 {
		t.Errorf("%d users", len(next.Users()))
	}
	store.set(true)
	add("bob")
	<-failures
	store.set(false)
	if next := <-snapshots; len(next.Users()) != 2 {
		t.Errorf("%d users after the failure", len(next.Users()))
	}
	store.set(true)
	before := time.Now()
	if err := watcher.Refresh(t.Context()); err == nil {
		t.Error("a failing refresh succeeded")
	}
	if look := watcher.Looked(); look.Err == nil || look.At.Before(before) || look.Good.IsZero() || !look.Good.Before(look.At) {
		t.Errorf("after a failure: %+v", look)
	}
	store.set(false)
	if err := watcher.Refresh(t.Context()); err != nil {
		t.Error(err)
	}
	if look := watcher.Looked(); look.Err != nil || !look.Good.Equal(look.At) {
		t.Errorf("after a good look: %+v", look)
	}
}

func TestRefreshSeesWhatIsStored(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users.db")
	here, elsewhere := openStore(t, path), openStore(t, path)
	calls, last := 0, 0
	watcher, err := users.Watch(t.Context(), here, time.Hour, func(s *users.Snapshot) { calls, last = calls+1, len(s.Users()) }, func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := elsewhere.AddUser(t.Context(), "alice"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := watcher.Refresh(t.Context()); err != nil || calls != 2 || last != 1 {
			t.Errorf("%d calls, %d users, error %v", calls, last, err)
		}
	}
}

func TestWatchFailsAtOnce(t *testing.T) {
	store := openStore(t, filepath.Join(t.TempDir(), "users.db"))
	store.Close()
	if _, err := users.Watch(t.Context(), store, time.Hour, func(*users.Snapshot) {}, func(error) {}); err == nil {
		t.Error("watching a closed store")
	}
}

func openStore(t *testing.T, path string) users.Store {
	t.Helper()
	s, err := sqlite.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestUnwrapGivesBothPINs(t *testing.T) {
	s, _ := small(t)
	parameters := storetest.PublicKey(t, "a passphrase").Parameters
	key, err := access.DeriveKey([]byte("a passphrase"), parameters)
	if err != nil {
		t.Fatal(err)
	}
	g, _ := s.Grant(1)
	binding, _ := s.Binding(g)
	wrap := func(pin string) []byte {
		wrapped, err := access.Wrap([]byte(pin), key.Public(), binding)
		if err != nil {
			t.Fatal(err)
		}
		return wrapped
	}
	grant := *g
	grant.Wrapped = wrap("old")
	pins, err := s.Unwrap(&grant, key)
	if err != nil || string(pins.Current) != "old" || pins.Staged != nil {
		t.Errorf("%q, %v", pins, err)
	}
	grant.Staged = wrap("new")
	pins, err = s.Unwrap(&grant, key)
	if err != nil || string(pins.Current) != "old" || string(pins.Staged) != "new" {
		t.Errorf("%q, %v", pins, err)
	}
	pins.Clear()
	if strings.Trim(string(pins.Current)+string(pins.Staged), "\x00") != "" {
		t.Error("not cleared")
	}
	grant.Staged[0] ^= 1
	if _, err := s.Unwrap(&grant, key); !errors.Is(err, access.ErrWrongPassphrase) {
		t.Errorf("altered staged wrap: %v", err)
	}
}
