// Package storetest is the contract that every users.Store keeps. An implementation's test calls Run.
package storetest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/access"
	"chancery/token"
	"chancery/users"
)

// Backend makes a fresh, empty database and returns a function that opens a
// handle on it. Each call opens another one, as another process would. The backend closes them when the test ends.
type Backend func(t *testing.T) (open func() users.Store)

// Run checks the contract of users.Store.
func Run(t *testing.T, backend Backend) {
	for name, check := range map[string]func(*testing.T, *fixture){
		"users":                  testUsers,
		"tokens":                 testTokens,
		"replicas":               testReplicas,
		"refused replicas":       testRefusedReplicas,
		"keys":                   testKeys,
		"certificates":           testCertificates,
		"grants":                 testGrants,
		"grants that contradict": testContradictingGrants,
		"replaced grants":        testReplacedGrants,
		"cascades":               testCascades,
		"PIN change":             testPINChange,
		"PIN change gone stale":  testStalePINChange,
		"rejected PINs":          testRejectedPINs,
		"rejected in a change":   testRejectionDuringChange,
		"revision":               testRevision,
		"leases":                 testLeases,
		"priorities":             testPriorities,
		"failed unlocks":         testUnlockFailures,
	} {
		t.Run(name, func(t *testing.T) {
			open := backend(t)
			check(t, newFixture(t, open()))
		})
	}
	t.Run("two handles", func(t *testing.T) { testTwoHandles(t, backend(t)) })
}

// PublicKey returns the public half of a fresh access key at the lowest cost that is accepted.
func PublicKey(t testing.TB, passphrase string) access.PublicKey {
	t.Helper()
	p := access.NewParameters()
	p.Time, p.MemoryKiB, p.Threads = access.MinTime, access.MinMemoryKiB, 1
	key, err := access.DeriveKey([]byte(passphrase), p)
	if err != nil {
		t.Fatal(err)
	}
	return key.Public()
}

// fixture is a store with two users, a token and a key.
type fixture struct {
	users.Store
	ctx        context.Context
	access     access.PublicKey
	alice, bob users.User
	token      users.Token // alice manages it
	key        users.Key   // alice manages it
}

func newFixture(t *testing.T, store users.Store) *fixture {
	t.Helper()
	f := &fixture{Store: store, ctx: t.Context(), access: PublicKey(t, "a passphrase")}
	f.alice = must(store.AddUser(f.ctx, "alice"))(t)
	f.bob = must(store.AddUser(f.ctx, "bob"))(t)
	f.token = must(store.AddToken(f.ctx, f.newToken("hsm"), f.grant(f.alice, users.RoleTokenManager)))(t)
	f.key = must(store.AddKey(f.ctx, f.newKey("release"), f.grant(f.alice, users.RoleManager)))(t)
	return f
}

func must[T any](value T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

func (f *fixture) newToken(name string) users.Token {
	return users.Token{Name: name, Driver: "soft", Location: "/tokens/" + name, Serial: "serial of " + name, Label: "label", Hardware: true, MaxSessions: 4}
}

func (f *fixture) newKey(name string) users.Key {
	public := []byte("public half of " + name)
	sum := sha256.Sum256(public)
	return users.Key{
		Name: name, TokenID: f.token.ID, TokenKeyID: []byte("id of " + name), Algorithm: token.P256,
		Public: public, Handle: strings.ToUpper(hex.EncodeToString(sum[:])), Origin: users.OriginGenerated,
	}
}

// grant is a grant on the fixture's token, and for other roles than token manager on its key, with wraps that nothing opens.
func (f *fixture) grant(user users.User, role users.Role) users.Grant {
	g := users.Grant{UserID: user.ID, TokenID: f.token.ID, Role: role, Access: f.access, Wrapped: []byte("wrapped"), CreatedBy: "operator"}
	if role != users.RoleTokenManager {
		g.KeyID = f.key.ID
	}
	return g
}

func (f *fixture) snapshot(t testing.TB) *users.Snapshot {
	t.Helper()
	s := must(f.Snapshot(f.ctx))(t)
	if rows := s.Unreadable(); len(rows) > 0 {
		t.Errorf("cannot be read: %v", rows)
	}
	return s
}

func (f *fixture) currentToken(t testing.TB) *users.Token {
	t.Helper()
	current, ok := f.snapshot(t).TokenByID(f.token.ID)
	if !ok {
		t.Fatal("the token is gone")
	}
	return current
}

func wantError(t testing.TB, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: error %v, want %v", what, got, want)
	}
}

func testUsers(t *testing.T, f *fixture) {
	_, err := f.AddUser(f.ctx, "alice")
	wantError(t, "the same name", err, users.ErrExists)
	if err == nil || !strings.Contains(err.Error(), `"alice"`) {
		t.Errorf("the error does not name the user: %v", err)
	}
	for _, name := range []string{"", "-x", "a/b", "a\nb", " a", strings.Repeat("x", 65), "\xff"} {
		_, err := f.AddUser(f.ctx, name)
		wantError(t, fmt.Sprintf("name %q", name), err, users.ErrName)
	}
	odd := must(f.AddUser(f.ctx, `Zoë O'Neil "; DROP TABLE users`))(t)
	if err := f.SetUserDisabled(f.ctx, odd.Name, true); err != nil {
		t.Fatal(err)
	}
	got, ok := f.snapshot(t).User(odd.Name)
	if !ok || !got.Disabled || got.ID != odd.ID || !got.CreatedAt.Equal(odd.CreatedAt) {
		t.Errorf("read %+v, found %v", got, ok)
	}
	if err := f.DeleteUser(f.ctx, odd.Name, 0); err != nil {
		t.Fatal(err)
	}
	wantError(t, "delete again", f.DeleteUser(f.ctx, odd.Name, 0), users.ErrNotFound)
	wantError(t, "disable nobody", f.SetUserDisabled(f.ctx, "Alice", true), users.ErrNotFound)
	if again := must(f.AddUser(f.ctx, odd.Name))(t); again.ID <= odd.ID {
		t.Errorf("identifier %d was given again after %d", again.ID, odd.ID)
	}
}

func testTokens(t *testing.T, f *fixture) {
	manager := f.grant(f.bob, users.RoleTokenManager)
	_, err := f.AddToken(f.ctx, f.newToken("hsm"), manager)
	wantError(t, "the same name", err, users.ErrExists)
	same := f.newToken("other")
	same.Serial = f.token.Serial
	_, err = f.AddToken(f.ctx, same, manager)
	wantError(t, "the same serial number", err, users.ErrExists)
	nobody := manager
	nobody.UserID = 4711
	_, err = f.AddToken(f.ctx, f.newToken("other"), nobody)
	wantError(t, "unknown manager", err, users.ErrNotFound)
	if _, found := f.snapshot(t).Token("other"); found {
		t.Error("a token without manager was stored")
	}

	second := must(f.AddToken(f.ctx, f.newToken("other"), manager))(t)
	got, ok := f.snapshot(t).Token("other")
	if !ok || !reflect.DeepEqual(*got, second) {
		t.Errorf("read %+v\nadded %+v", got, second)
	}
	if err := f.RequestReload(f.ctx, "other"); err != nil {
		t.Fatal(err)
	}
	if got, _ := f.snapshot(t).Token("other"); got.Reload != second.Reload+1 {
		t.Errorf("reload counter %d after %d", got.Reload, second.Reload)
	}
	wantError(t, "reload of nothing", f.RequestReload(f.ctx, "none"), users.ErrNotFound)
	wantError(t, "removing a token with keys", f.RemoveToken(f.ctx, "hsm"), users.ErrInUse)
	if err := f.RemoveToken(f.ctx, "other"); err != nil {
		t.Fatal(err)
	}
	wantError(t, "removing again", f.RemoveToken(f.ctx, "other"), users.ErrNotFound)
	if _, found := f.snapshot(t).TokenGrant(f.bob.ID, second.ID); found {
		t.Error("the removed token's grant is there")
	}
}

func testKeys(t *testing.T, f *fixture) {
	manager := f.grant(f.bob, users.RoleManager)
	_, err := f.AddKey(f.ctx, f.newKey("release"), manager)
	wantError(t, "the same name", err, users.ErrExists)
	same := f.newKey("alias")
	same.TokenKeyID = f.key.TokenKeyID
	_, err = f.AddKey(f.ctx, same, manager)
	wantError(t, "the same object under another name", err, users.ErrExists)
	elsewhere := f.newKey("elsewhere")
	elsewhere.TokenID = 4711
	_, err = f.AddKey(f.ctx, elsewhere, manager)
	wantError(t, "unknown token", err, users.ErrNotFound)
	for name, change := range map[string]func(*users.Key){
		"handle of another key": func(k *users.Key) { k.Handle = f.key.Handle },
		"unknown algorithm":     func(k *users.Key) { k.Algorithm = "rot13" },
		"no identifier":         func(k *users.Key) { k.TokenKeyID = nil },
		"unknown origin":        func(k *users.Key) { k.Origin = "found" },
	} {
		k := f.newKey("bad")
		change(&k)
		if _, err := f.AddKey(f.ctx, k, manager); err == nil {
			t.Errorf("%s: stored", name)
		}
	}

	second := must(f.AddKey(f.ctx, f.newKey("second"), manager))(t)
	s := f.snapshot(t)
	if len(s.Keys()) != 2 {
		t.Errorf("%d keys, want 2", len(s.Keys()))
	}
	got, ok := s.Key("second")
	if !ok || fmt.Sprint(*got) != fmt.Sprint(second) {
		t.Errorf("read %+v\nadded %+v", got, second)
	}
	grant, ok := s.KeyGrant(f.bob.ID, second.ID)
	if !ok || grant.Role != users.RoleManager || grant.TokenID != f.token.ID || grant.Generation == 0 {
		t.Errorf("the first manager's grant: %+v, found %v", grant, ok)
	}
	if err := f.SetKeyDisabled(f.ctx, "second", true); err != nil {
		t.Fatal(err)
	}
	if _, ok := f.snapshot(t).Usable(f.bob.ID, second.ID, time.Now()); ok {
		t.Error("a disabled key is usable")
	}
	wantError(t, "disable nothing", f.SetKeyDisabled(f.ctx, "none", true), users.ErrNotFound)
	wantError(t, "delete nothing", f.DeleteKey(f.ctx, "none"), users.ErrNotFound)
}

func testCertificates(t *testing.T, f *fixture) {
	with := f.newKey("certified")
	with.Certificates = []users.Certificate{
		{Kind: users.CertificateOpenPGP, Name: "release", Fingerprint: "AB", Armored: "pgp"},
		{Kind: users.CertificateX509, Name: "ca", Fingerprint: "CD", Armored: "pem"},
	}
	key := must(f.AddKey(f.ctx, with, f.grant(f.alice, users.RoleManager)))(t)
	later := users.Certificate{KeyID: key.ID, Kind: users.CertificateX509, Name: "leaf", Fingerprint: "EF", Armored: "pem"}
	added := must(f.AddCertificate(f.ctx, later))(t)
	_, err := f.AddCertificate(f.ctx, later)
	wantError(t, "the same certificate", err, users.ErrExists)
	later.KeyID = 4711
	_, err = f.AddCertificate(f.ctx, later)
	wantError(t, "of no key", err, users.ErrNotFound)

	got, _ := f.snapshot(t).Key("certified")
	var order []string
	for _, certificate := range got.Certificates {
		order = append(order, certificate.Fingerprint)
	}
	if fmt.Sprint(order) != "[CD EF AB]" {
		t.Errorf("order %v: X.509 comes first", order)
	}
	if got.Certificates[1] != added {
		t.Errorf("read %+v\nadded %+v", got.Certificates[1], added)
	}
}

func testGrants(t *testing.T, f *fixture) {
	wanted := f.grant(f.bob, users.RoleSigner)
	wanted.Expires = time.Now().Add(time.Hour)
	added := must(f.AddGrant(f.ctx, wanted))(t)
	got, ok := f.snapshot(t).KeyGrant(f.bob.ID, f.key.ID)
	if !ok || got.Expires.Unix() != wanted.Expires.Unix() || !got.Expires.Equal(added.Expires) {
		t.Fatalf("read %+v, found %v, added %+v", got, ok, added)
	}
	if string(got.Access.Bytes()) != string(wanted.Access.Bytes()) || string(got.Wrapped) != "wrapped" || got.Staged != nil || got.CreatedBy != "operator" {
		t.Errorf("read %+v", got)
	}
	_, err := f.AddGrant(f.ctx, f.grant(f.bob, users.RoleManager))
	wantError(t, "a second grant on the key", err, users.ErrExists)
	must(f.AddGrant(f.ctx, f.grant(f.bob, users.RoleTokenManager)))(t)
	_, err = f.AddGrant(f.ctx, f.grant(f.bob, users.RoleTokenManager))
	wantError(t, "a second grant on the token", err, users.ErrExists)

	seen := must(f.Revision(f.ctx))(t)
	wantError(t, "revoke by an older state", f.RevokeGrant(f.ctx, added.ID, seen-1), users.ErrStale)
	wantError(t, "delete a user by an older state", f.DeleteUser(f.ctx, f.bob.Name, seen-1), users.ErrStale)
	if err := f.RevokeGrant(f.ctx, added.ID, seen); err != nil {
		t.Fatal(err)
	}
	wantError(t, "revoke again", f.RevokeGrant(f.ctx, added.ID, 0), users.ErrNotFound)
	again := must(f.AddGrant(f.ctx, f.grant(f.bob, users.RoleSigner)))(t)
	if again.ID <= added.ID || again.Generation <= added.Generation {
		t.Errorf("grant %d generation %d was followed by grant %d generation %d: a session could take one for the other", added.ID, added.Generation, again.ID, again.Generation)
	}
	if got, _ := f.snapshot(t).Grant(again.ID); !got.Expires.IsZero() {
		t.Errorf("a grant without end ends %v", got.Expires)
	}
}

func testContradictingGrants(t *testing.T, f *fixture) {
	other := must(f.AddToken(f.ctx, f.newToken("other"), f.grant(f.alice, users.RoleTokenManager)))(t)
	for name, change := range map[string]func(*users.Grant){
		"token manager of a key":   func(g *users.Grant) { g.Role = users.RoleTokenManager },
		"signer of a token":        func(g *users.Grant) { g.KeyID = 0 },
		"unknown role":             func(g *users.Grant) { g.Role = "king" },
		"key of another token":     func(g *users.Grant) { g.TokenID = other.ID },
		"unknown key":              func(g *users.Grant) { g.KeyID = 4711 },
		"unknown token":            func(g *users.Grant) { g.TokenID = 4711 },
		"unknown user":             func(g *users.Grant) { g.UserID = 4711 },
		"nothing wrapped":          func(g *users.Grant) { g.Wrapped = nil },
		"another PIN version":      func(g *users.Grant) { g.PINVersion = 4711 },
		"staged without a change":  func(g *users.Grant) { g.Staged = []byte("staged") },
		"expired before the epoch": func(g *users.Grant) { g.Expires = time.Unix(-5, 0) },
	} {
		g := f.grant(f.bob, users.RoleSigner)
		change(&g)
		if _, err := f.AddGrant(f.ctx, g); err == nil {
			t.Errorf("%s: stored", name)
		}
	}
	if grants := f.snapshot(t).GrantsOf(f.bob.ID); len(grants) != 0 {
		t.Errorf("bob holds %d grants", len(grants))
	}
}

func testReplacedGrants(t *testing.T, f *fixture) {
	first := must(f.AddGrant(f.ctx, f.grant(f.bob, users.RoleSigner)))(t)
	next := first
	next.Role, next.Wrapped, next.Access = users.RoleManager, []byte("wrapped anew"), PublicKey(t, "another passphrase")
	next.Expires = time.Now().Add(time.Hour)
	second := must(f.ReplaceGrant(f.ctx, next))(t)
	if second.Generation <= first.Generation {
		t.Errorf("generation %d after %d", second.Generation, first.Generation)
	}
	got, _ := f.snapshot(t).Grant(first.ID)
	if got.Role != users.RoleManager || string(got.Wrapped) != "wrapped anew" || !got.Expires.Equal(second.Expires) || got.Generation != second.Generation {
		t.Errorf("read %+v", got)
	}
	if string(got.Access.Bytes()) != string(next.Access.Bytes()) || !got.CreatedAt.Equal(first.CreatedAt) {
		t.Error("access key or creation differ")
	}
	_, err := f.ReplaceGrant(f.ctx, next)
	wantError(t, "a generation behind", err, users.ErrStale)
	second.ID = 4711
	_, err = f.ReplaceGrant(f.ctx, second)
	wantError(t, "unknown grant", err, users.ErrNotFound)
}

func testCascades(t *testing.T, f *fixture) {
	must(f.AddGrant(f.ctx, f.grant(f.bob, users.RoleSigner)))(t)
	must(f.AddCertificate(f.ctx, users.Certificate{KeyID: f.key.ID, Kind: users.CertificateX509, Fingerprint: "AB", Armored: "x"}))(t)
	if err := f.DeleteUser(f.ctx, "bob", 0); err != nil {
		t.Fatal(err)
	}
	if s := f.snapshot(t); len(s.Grants()) != 2 || len(s.GrantsOf(f.bob.ID)) != 0 {
		t.Errorf("grants after bob left: %+v", s.Grants())
	}
	if err := f.DeleteKey(f.ctx, "release"); err != nil {
		t.Fatal(err)
	}
	s := f.snapshot(t)
	if len(s.Grants()) != 1 || s.Grants()[0].Role != users.RoleTokenManager {
		t.Errorf("grants after the key left: %+v", s.Grants())
	}
	if err := f.RemoveToken(f.ctx, "hsm"); err != nil {
		t.Fatal(err)
	}
	if s := f.snapshot(t); len(s.Grants())+len(s.Keys())+len(s.Tokens()) != 0 {
		t.Error("something is left")
	}
}

// staged returns the token's grants with something staged.
func (f *fixture) staged(t *testing.T) []users.Grant {
	t.Helper()
	var grants []users.Grant
	for _, g := range f.snapshot(t).Grants() {
		if g.TokenID == f.token.ID {
			g.Staged = []byte("staged")
			grants = append(grants, g)
		}
	}
	return grants
}

func testPINChange(t *testing.T, f *fixture) {
	before := f.snapshot(t)
	version := must(f.StagePIN(f.ctx, f.token.ID, f.staged(t)))(t)
	if now := f.currentToken(t); !now.PINStaged || now.PINVersion != version || version == f.token.PINVersion {
		t.Errorf("staged as version %d: %+v", version, now)
	}
	_, err := f.StagePIN(f.ctx, f.token.ID, f.staged(t))
	wantError(t, "a second change", err, users.ErrPINChangeInFlight)

	early := f.grant(f.bob, users.RoleSigner)
	_, err = f.AddGrant(f.ctx, early)
	wantError(t, "a grant computed before", err, users.ErrStale)
	early.PINVersion = version
	_, err = f.AddGrant(f.ctx, early)
	wantError(t, "a grant without staged wrap", err, users.ErrStale)
	early.Staged = []byte("staged")
	must(f.AddGrant(f.ctx, early))(t)

	if err := f.CommitPIN(f.ctx, f.token.ID, version); err != nil {
		t.Fatal(err)
	}
	after := f.snapshot(t)
	for _, g := range after.Grants() {
		if string(g.Wrapped) != "staged" || g.Staged != nil {
			t.Errorf("grant %d: wrapped %q, staged %q", g.ID, g.Wrapped, g.Staged)
		}
		if old, ok := before.Grant(g.ID); ok && old.Generation != g.Generation {
			t.Errorf("grant %d: the PIN change voids live sessions", g.ID)
		}
	}
	if now := f.currentToken(t); now.PINStaged || now.PINVersion == version {
		t.Errorf("committed: %+v", now)
	}
	wantError(t, "commit again", f.CommitPIN(f.ctx, f.token.ID, version), users.ErrStale)
	wantError(t, "abandon after commit", f.AbandonPIN(f.ctx, f.token.ID, version), users.ErrStale)
	_, err = f.ReplaceGrant(f.ctx, before.Grants()[0])
	wantError(t, "a grant wrapped before the change", err, users.ErrStale)
}

func testStalePINChange(t *testing.T, f *fixture) {
	grants := f.staged(t)
	_, err := f.StagePIN(f.ctx, f.token.ID, grants[1:])
	wantError(t, "a grant is missing", err, users.ErrStale)
	_, err = f.StagePIN(f.ctx, 4711, nil)
	wantError(t, "unknown token", err, users.ErrNotFound)

	replaced := grants[0]
	replaced.Staged = nil
	must(f.ReplaceGrant(f.ctx, replaced))(t)
	_, err = f.StagePIN(f.ctx, f.token.ID, grants)
	wantError(t, "a grant was replaced", err, users.ErrStale)

	grants = f.staged(t)
	added := must(f.AddGrant(f.ctx, f.grant(f.bob, users.RoleSigner)))(t)
	_, err = f.StagePIN(f.ctx, f.token.ID, grants)
	wantError(t, "a grant came", err, users.ErrStale)
	grants = f.staged(t)
	if err := f.RevokeGrant(f.ctx, added.ID, 0); err != nil {
		t.Fatal(err)
	}
	_, err = f.StagePIN(f.ctx, f.token.ID, grants)
	wantError(t, "a grant went", err, users.ErrStale)
	if now := f.currentToken(t); now.PINStaged || now.PINVersion != f.token.PINVersion {
		t.Errorf("a refused change left %+v", now)
	}

	first := must(f.StagePIN(f.ctx, f.token.ID, f.staged(t)))(t)
	if err := f.AbandonPIN(f.ctx, f.token.ID, first); err != nil {
		t.Fatal(err)
	}
	for _, g := range f.snapshot(t).Grants() {
		if string(g.Wrapped) != "wrapped" || g.Staged != nil {
			t.Errorf("abandoned: wrapped %q, staged %q", g.Wrapped, g.Staged)
		}
	}
	second := must(f.StagePIN(f.ctx, f.token.ID, f.staged(t)))(t)
	wantError(t, "commit of the abandoned change", f.CommitPIN(f.ctx, f.token.ID, first), users.ErrStale)
	if err := f.CommitPIN(f.ctx, f.token.ID, second); err != nil {
		t.Fatal(err)
	}
}

// testRejectionDuringChange rejects the current PIN after a change of it was begun, and given up: it is the same PIN.
func testRejectionDuringChange(t *testing.T, f *fixture) {
	rejected := func(what string, version int64) {
		t.Helper()
		if err := f.RejectPIN(f.ctx, f.token.ID, version, false); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if now := f.currentToken(t); !now.PINRejected || now.StagedRejected {
			t.Errorf("%s: %+v", what, now)
		}
		if err := f.Unblock(f.ctx, f.token.Name); err != nil {
			t.Fatal(err)
		}
	}
	before := f.currentToken(t).PINVersion
	version := must(f.StagePIN(f.ctx, f.token.ID, f.staged(t)))(t)
	rejected("begun since", before)
	if err := f.AbandonPIN(f.ctx, f.token.ID, version); err != nil {
		t.Fatal(err)
	}
	rejected("begun and given up since", before)
	rejected("given up since", version)
	version = must(f.StagePIN(f.ctx, f.token.ID, f.staged(t)))(t)
	if err := f.CommitPIN(f.ctx, f.token.ID, version); err != nil {
		t.Fatal(err)
	}
	for _, old := range []int64{before, version} {
		wantError(t, "the PIN before", f.RejectPIN(f.ctx, f.token.ID, old, false), users.ErrStale)
	}
	rejected("the new PIN", f.currentToken(t).PINVersion)
}

func testRejectedPINs(t *testing.T, f *fixture) {
	check := func(what string, current, staged bool) {
		t.Helper()
		if now := f.currentToken(t); now.PINRejected != current || now.StagedRejected != staged {
			t.Errorf("%s: current rejected %v, staged rejected %v", what, now.PINRejected, now.StagedRejected)
		}
	}
	reject := func(version int64, staged bool) {
		t.Helper()
		if err := f.RejectPIN(f.ctx, f.token.ID, version, staged); err != nil {
			t.Fatal(err)
		}
	}
	wantError(t, "nothing is staged", f.RejectPIN(f.ctx, f.token.ID, f.token.PINVersion, true), users.ErrStale)
	reject(f.token.PINVersion, false)
	check("rejected", true, false)
	version := must(f.StagePIN(f.ctx, f.token.ID, f.staged(t)))(t)
	wantError(t, "of the version before", f.RejectPIN(f.ctx, f.token.ID, f.token.PINVersion, true), users.ErrStale)
	wantError(t, "of a version to come", f.RejectPIN(f.ctx, f.token.ID, version+1, false), users.ErrStale)
	reject(version, true)
	check("both rejected", true, true)
	if err := f.RequestReload(f.ctx, f.token.Name); err != nil {
		t.Fatal(err)
	}
	check("a reload is not an operator's word", true, true)
	before := f.currentToken(t).Reload
	if err := f.Unblock(f.ctx, f.token.Name); err != nil {
		t.Fatal(err)
	}
	check("an operator says so", false, false)
	if now := f.currentToken(t).Reload; now != before+1 {
		t.Errorf("reload counter %d after %d", now, before)
	}
	wantError(t, "unblocking nothing", f.Unblock(f.ctx, "none"), users.ErrNotFound)
	reject(version, false)
	reject(version, true)
	if err := f.AbandonPIN(f.ctx, f.token.ID, version); err != nil {
		t.Fatal(err)
	}
	check("the old PIN is still the rejected one", true, false)
	version = must(f.StagePIN(f.ctx, f.token.ID, f.staged(t)))(t)
	if err := f.CommitPIN(f.ctx, f.token.ID, version); err != nil {
		t.Fatal(err)
	}
	check("a new PIN", false, false)
}

func testRevision(t *testing.T, f *fixture) {
	last := must(f.Revision(f.ctx))(t)
	moved := func(what string, want bool) {
		t.Helper()
		now := must(f.Revision(f.ctx))(t)
		if (now > last) != want {
			t.Errorf("%s: revision %d after %d", what, now, last)
		}
		last = now
	}
	if f.snapshot(t).Revision != last {
		t.Error("snapshot and store name different revisions")
	}
	moved("a snapshot", false)
	f.AddUser(f.ctx, "alice")
	moved("a refused change", false)
	g := f.grant(f.bob, users.RoleSigner)
	g.PINVersion = 4711
	f.AddGrant(f.ctx, g)
	moved("a stale change", false)
	must(f.AddUser(f.ctx, "carol"))(t)
	moved("a user", true)
	must(f.AddGrant(f.ctx, f.grant(f.bob, users.RoleSigner)))(t)
	moved("a grant", true)
	ended, cancel := context.WithCancel(f.ctx)
	cancel()
	if _, err := f.AddUser(ended, "dave"); err == nil {
		t.Error("a change under an ended context was made")
	}
	moved("an ended context", false)
}

// testTwoHandles changes one database through two handles at once.
func testTwoHandles(t *testing.T, open func() users.Store) {
	const each = 20
	first, second := open(), open()
	f := newFixture(t, first)
	start := must(first.Revision(f.ctx))(t)
	var group sync.WaitGroup
	for h, store := range []users.Store{first, second} {
		for worker := range 2 {
			group.Go(func() {
				for i := range each {
					if _, err := store.AddUser(f.ctx, fmt.Sprintf("user-%d-%d-%d", h, worker, i)); err != nil {
						t.Error(err)
					}
					if _, err := store.Snapshot(f.ctx); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	group.Wait()
	s := must(second.Snapshot(f.ctx))(t)
	if len(s.Users()) != 2+4*each || s.Revision != start+4*each {
		t.Errorf("%d users, revision %d after %d", len(s.Users()), s.Revision, start)
	}
	racing := make(chan error, 2)
	for _, store := range []users.Store{first, second} {
		go func() {
			_, err := store.AddGrant(f.ctx, f.grant(f.bob, users.RoleSigner))
			racing <- err
		}()
	}
	a, b := <-racing, <-racing
	if (a == nil) == (b == nil) || !errors.Is(errors.Join(a, b), users.ErrExists) {
		t.Errorf("the same grant twice: %v and %v", a, b)
	}
}
