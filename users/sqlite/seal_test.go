package sqlite

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"chancery/seal"
	"chancery/users"
	"chancery/users/storetest"
)

const sealChildEnv = "CHANCERY_TEST_ROTATE"

// vault is a secret file that seals databases, and can be taken away.
type vault struct {
	*seal.Opener
	path     string
	away     atomic.Bool
	required bool
}

func newVault(t testing.TB) *vault {
	t.Helper()
	return vaultAt(t, filepath.Join(t.TempDir(), "secret"))
}

func vaultAt(t testing.TB, path string) *vault {
	t.Helper()
	if _, err := os.Stat(path); err != nil {
		random := make([]byte, 32)
		rand.Read(random)
		if err := os.WriteFile(path, random, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return openVault(path)
}

func openVault(path string) *vault {
	v := &vault{path: path}
	v.Opener = seal.NewOpener(seal.Config{Keeper: func(string, []byte) (seal.Keeper, error) {
		if v.away.Load() {
			return nil, seal.ErrAbsent
		}
		return seal.Secret{File: seal.File{Path: path}}, nil
	}})
	return v
}

func (v *vault) Required() bool { return v.required }

// wrap makes the named seals for a data key.
func (v *vault) wrap(ctx context.Context, key *seal.Key, names ...string) ([]users.Seal, error) {
	var seals []users.Seal
	for _, name := range names {
		s := users.Seal{Name: name, Kind: seal.KindSecret, Parameters: []byte(`{}`)}
		if err := v.Wrap(ctx, &s, key); err != nil {
			return nil, err
		}
		seals = append(seals, s)
	}
	return seals, nil
}

func (v *vault) open(t testing.TB, path string) *Store {
	t.Helper()
	s, err := OpenSealed(t.Context(), path, v)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if _, err := s.db.ExecContext(t.Context(), `PRAGMA synchronous = OFF`); err != nil { // quick: no power fails here
		t.Fatal(err)
	}
	return s
}

// seal seals a database that is not, or rotates its data key.
func (v *vault) seal(t testing.TB, s *Store, names ...string) {
	t.Helper()
	if err := v.rotate(t.Context(), s, names...); err != nil {
		t.Fatal(err)
	}
}

func (v *vault) rotate(ctx context.Context, s *Store, names ...string) error {
	state, err := s.Seals(ctx)
	if err != nil {
		return err
	}
	key := seal.NewKey()
	seals, err := v.wrap(ctx, key, names...)
	if err != nil {
		return err
	}
	return s.SealWith(ctx, state.KeyID, key, seals)
}

// sealed returns a sealed store that populate filled.
func sealed(t *testing.T) (*vault, *Store) {
	t.Helper()
	v := newVault(t)
	s := v.open(t, filepath.Join(t.TempDir(), "users.db"))
	populate(t, s)
	certificate := users.Certificate{KeyID: 1, Kind: users.CertificateX509, Name: "leaf", Fingerprint: "AB", Armored: "pem"}
	if _, err := s.AddCertificate(t.Context(), certificate); err != nil {
		t.Fatal(err)
	}
	replica := users.Replica{TokenID: 1, Name: "twin", Driver: "soft", Location: "/twin", Serial: "T", Label: "twin"}
	if _, err := s.AddReplica(t.Context(), replica, 0); err != nil {
		t.Fatal(err)
	}
	v.seal(t, s, "office")
	return v, s
}

func TestContractUnderASeal(t *testing.T) {
	storetest.Run(t, func(t *testing.T) func() users.Store {
		v, path := newVault(t), filepath.Join(t.TempDir(), "users.db")
		v.seal(t, v.open(t, path), "first", "second")
		v.required = true
		return func() users.Store { return v.open(t, path) }
	})
}

func (s *Store) damage(t testing.TB, statements ...string) {
	t.Helper()
	for _, statement := range append([]string{"PRAGMA foreign_keys = 0", "PRAGMA ignore_check_constraints = 1"}, statements...) {
		if _, err := s.db.ExecContext(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
}

// redefine changes the definition of what is in the database, which only a connection that is not defensive does.
func (s *Store) redefine(t testing.TB, statement string) {
	t.Helper()
	db, err := sql.Open("sqlite", s.path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), "PRAGMA writable_schema = ON; "+statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func snapshotOf(t testing.TB, s *Store) *users.Snapshot {
	t.Helper()
	snapshot, err := s.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return snapshot
}

// refused returns which rows are left out because they were not written under the seal.
func refused(t testing.TB, s *Store) []string {
	t.Helper()
	var rows []string
	for _, row := range snapshotOf(t, s).Unreadable() {
		if errors.Is(row.Err, users.ErrUnsealedRow) {
			rows = append(rows, fmt.Sprintf("%s %d", row.Kind, row.ID))
		}
	}
	slices.Sort(rows)
	return rows
}

// TestEveryColumnIsUnderTheSeal alters each column of each table, those of later versions too, and looks that the row is left out.
func TestEveryColumnIsUnderTheSeal(t *testing.T) {
	_, s := sealed(t)
	for table, kind := range map[string]string{
		"users": kindUser, "tokens": kindToken, "keys": kindKey, "certificates": kindCertificate, "grants": kindGrant, "seals": kindSeal,
		"replicas": kindReplica,
	} {
		for _, column := range columns(t, s, table) {
			if column == "id" {
				continue
			}
			update := fmt.Sprintf("UPDATE %s SET %s = ? WHERE id = 1", table, column)
			was := s.valueOf(t, table, column)
			s.damage(t)
			if _, err := s.db.ExecContext(t.Context(), update, altered(column, was)); err != nil {
				t.Fatalf("%s.%s: %v", table, column, err)
			}
			if got := refused(t, s); !slices.Contains(got, kind+" 1") {
				t.Errorf("%s.%s altered, left out: %q", table, column, got)
			}
			if _, err := s.db.ExecContext(t.Context(), update, was); err != nil {
				t.Fatal(err)
			}
			if got := refused(t, s); len(got) > 0 {
				t.Fatalf("%s.%s as it was, left out: %q", table, column, got)
			}
		}
	}
}

func (s *Store) valueOf(t *testing.T, table, column string) (value any) {
	t.Helper()
	if err := s.db.QueryRowContext(t.Context(), fmt.Sprintf("SELECT %s FROM %s WHERE id = 1", column, table)).Scan(&value); err != nil {
		t.Fatal(err)
	}
	return value
}

// altered is another value of the same type.
func altered(column string, was any) any {
	switch v := was.(type) {
	case int64:
		return v + 1
	case string:
		return v + "x"
	case []byte:
		return append(bytes.Clone(v), 0)
	}
	if column == "staged" {
		return []byte("planted")
	}
	return int64(7)
}

func columns(t *testing.T, s *Store, table string) (names []string) {
	t.Helper()
	rows, err := s.db.QueryContext(t.Context(), `SELECT name FROM pragma_table_info(?)`, table)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	return names
}

func TestRowsThatSomebodyElseWroteDoNotWork(t *testing.T) {
	const plantGrant = `INSERT INTO grants (user_id, token_id, key_id, role, generation, access_key, wrapped, created_at, created_by)
		SELECT 2, token_id, NULL, 'token-manager', generation, access_key, x'07', 0, '' FROM grants WHERE id = 1`
	const plantReplica = `INSERT INTO replicas (token_id, name, driver, location, serial, label, max_sessions, created_at) VALUES (1, 'x', 'soft', '/x', 'X', '', 0, 0)`
	for name, c := range map[string]struct {
		statements []string
		want       []string
	}{
		"a planted user":             {[]string{`INSERT INTO users (name, created_at) VALUES ('mallory', 0)`}, []string{"user 3"}},
		"a planted grant":            {[]string{plantGrant}, []string{"grant 6"}},
		"a planted seal":             {[]string{`INSERT INTO seals (name, kind, parameters, wrapped, created_at) VALUES ('x', 'secret', '{}', x'00', 0)`}, []string{"seal 2"}},
		"a planted replica":          {[]string{plantReplica}, []string{"replica 2"}},
		"a replica taken away":       {[]string{`DELETE FROM replicas`}, []string{"replica 1"}},
		"a grant taken away":         {[]string{`DELETE FROM grants WHERE id = 3`}, []string{"grant 3"}},
		"a seal taken away":          {[]string{`DELETE FROM seals`}, []string{"seal 1"}},
		"two wraps exchanged":        {[]string{`UPDATE grants SET wrapped = (SELECT wrapped FROM grants WHERE id = 8 - grants.id) WHERE id IN (3, 5)`}, []string{"grant 3", "grant 5"}},
		"two names of keys":          {[]string{`UPDATE keys SET name = 'x' || id`, `UPDATE keys SET name = 'second' WHERE id = 1`, `UPDATE keys SET name = 'first' WHERE id = 2`}, []string{"key 1", "key 2"}},
		"a row under another number": {[]string{`UPDATE users SET id = 9 WHERE id = 2`}, []string{"user 2", "user 9"}},
		"nothing":                    {nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			_, s := sealed(t)
			s.damage(t, c.statements...)
			if got := refused(t, s); !slices.Equal(got, c.want) {
				t.Errorf("left out %q, want %q", got, c.want)
			}
		})
	}
}

func TestAnOldRowIsNotPutBack(t *testing.T) {
	_, s := sealed(t)
	s.damage(t, "CREATE TEMP TABLE kept AS SELECT * FROM grants WHERE id = 3")
	if err := s.RevokeGrant(t.Context(), 3, 0); err != nil {
		t.Fatal(err)
	}
	s.damage(t, "INSERT INTO grants SELECT * FROM kept")
	if got := refused(t, s); !slices.Equal(got, []string{"grant 3"}) {
		t.Errorf("left out %q", got)
	}
	if err := s.SetUserDisabled(t.Context(), "bob", true); err != nil {
		t.Fatal(err)
	}
	s.damage(t, "UPDATE users SET disabled = 0 WHERE id = 2")
	if got := refused(t, s); !slices.Contains(got, "user 2") {
		t.Errorf("left out %q", got)
	}
	if _, found := snapshotOf(t, s).User("bob"); found {
		t.Error("bob is back")
	}
}

func TestAChangeDoesNotMakeAPlantedRowGood(t *testing.T) {
	_, s := sealed(t)
	s.damage(t, `INSERT INTO users (name, created_at) VALUES ('mallory', 0)`, `UPDATE tokens SET pin_version = 17`)
	for range 2 {
		if err := s.SetUserDisabled(t.Context(), "mallory", true); err != nil {
			t.Fatal(err)
		}
		if err := s.RequestReload(t.Context(), "hsm"); err != nil {
			t.Fatal(err)
		}
		if got := refused(t, s); !slices.Contains(got, "user 3") || !slices.Contains(got, "token 1") {
			t.Errorf("left out %q", got)
		}
	}
}

// TestTheWholeDatabaseIsUnderTheSeal changes what all rows depend on.
func TestTheWholeDatabaseIsUnderTheSeal(t *testing.T) {
	for name, statement := range map[string]string{
		"the revision":     `UPDATE revision SET number = number + 1`,
		"the roster":       `UPDATE seal_state SET roster = CAST(roster || x'00' AS BLOB)`,
		"a cut roster":     `UPDATE seal_state SET roster = x''`,
		"a trigger":        `CREATE TRIGGER evil AFTER UPDATE ON users BEGIN UPDATE tokens SET location = '/evil'; END`,
		"a view":           `CREATE VIEW evil AS SELECT * FROM users`,
		"an index":         `CREATE INDEX evil ON users (disabled)`,
		"a column":         `ALTER TABLE users ADD COLUMN evil TEXT`,
		"a table":          `CREATE TABLE evil (user_id INTEGER REFERENCES users (id) ON DELETE RESTRICT)`,
		"the data key":     `UPDATE seal_state SET key_id = x'00112233445566778899aabbccddeeff'`,
		"the seal":         `DELETE FROM seal_state`,
		"an older copy":    `UPDATE revision SET number = 1`,
		"the seal's state": `UPDATE seal_state SET key_id = x'00'`,
	} {
		t.Run(name, func(t *testing.T) {
			_, s := sealed(t)
			if closed := snapshotOf(t, s).Closed(); closed != nil {
				t.Fatal(closed)
			}
			s.damage(t, statement)
			expectClosed(t, s)
		})
	}
}

func expectClosed(t *testing.T, s *Store) {
	t.Helper()
	snapshot := snapshotOf(t, s)
	if !errors.Is(snapshot.Closed(), users.ErrSealClosed) || len(snapshot.Grants()) > 0 {
		t.Errorf("%d grants, closed: %v", len(snapshot.Grants()), snapshot.Closed())
	}
	if err := s.SetUserDisabled(t.Context(), "alice", false); !errors.Is(err, users.ErrSealClosed) {
		t.Errorf("a change: %v", err)
	}
}

// TestAnIndexLeadsNowhereElse has the index of users' names exchange two of them, with all definitions as they were.
func TestAnIndexLeadsNowhereElse(t *testing.T) {
	v, s := sealed(t)
	s.redefine(t, `CREATE TABLE other (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
		INSERT INTO other SELECT 3 - id, name FROM users;
		UPDATE sqlite_schema SET rootpage = (SELECT rootpage FROM sqlite_schema WHERE name = 'sqlite_autoindex_other_1') WHERE name = 'sqlite_autoindex_users_1';
		DELETE FROM sqlite_schema WHERE tbl_name = 'other'`)
	again := v.open(t, s.path)
	if err := again.SetUserDisabled(t.Context(), "alice", true); err != nil {
		t.Fatal(err)
	}
	for _, user := range snapshotOf(t, again).Users() {
		if user.Disabled != (user.Name == "alice") {
			t.Errorf("%s is disabled: %v", user.Name, user.Disabled)
		}
	}
}

// TestDefinitionsAreUnderTheSeal changes them as somebody who can write to the file does.
func TestDefinitionsAreUnderTheSeal(t *testing.T) {
	for name, statement := range map[string]string{
		"a default": `UPDATE sqlite_schema SET sql = replace(sql, 'DEFAULT 0', 'DEFAULT 1') WHERE name = 'users'`,
		"an action": `UPDATE sqlite_schema SET sql = replace(sql, 'REFERENCES users', 'REFERENCES tokens') WHERE name = 'grants'`,
		"a trigger by a name of SQLite's own": `INSERT INTO sqlite_schema (type, name, tbl_name, rootpage, sql) VALUES ('trigger', 'sqlite_evil', 'users', 0,
			'CREATE TRIGGER sqlite_evil AFTER UPDATE ON users BEGIN UPDATE tokens SET location = ''/evil''; END')`,
	} {
		t.Run(name, func(t *testing.T) {
			v, s := sealed(t)
			s.redefine(t, statement)
			expectClosed(t, v.open(t, s.path))
		})
	}
}

func TestASealThatWentAwayIsMissed(t *testing.T) {
	v, s := sealed(t)
	s.damage(t, `DELETE FROM seals`, `DELETE FROM seal_state`)
	again := v.open(t, s.path)
	if closed := snapshotOf(t, again).Closed(); closed != nil {
		t.Errorf("nothing asks for a seal: %v", closed)
	}
	v.required = true
	if closed := snapshotOf(t, again).Closed(); !errors.Is(closed, users.ErrSealBroken) {
		t.Errorf("a seal is asked for: %v", closed)
	}
	if _, err := again.AddUser(t.Context(), "mallory"); !errors.Is(err, users.ErrSealBroken) {
		t.Errorf("a change: %v", err)
	}
	if err := v.rotate(t.Context(), again, "office"); !errors.Is(err, users.ErrSealBroken) {
		t.Errorf("sealed anew: %v", err)
	}
}

func TestAClosedSealOpensLater(t *testing.T) {
	v, first := sealed(t)
	v.away.Store(true)
	s := v.open(t, first.path)
	opened := make(chan struct{})
	watcher, err := users.Watch(t.Context(), s, 5*time.Millisecond, func(next *users.Snapshot) {
		if next.Closed() == nil {
			close(opened)
			return
		}
		if len(next.Grants()) > 0 || len(next.Users()) != 2 || len(next.Keys()) != 2 {
			t.Errorf("closed, with %d grants, %d users, %d keys", len(next.Grants()), len(next.Users()), len(next.Keys()))
		}
	}, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func() error{
		"a change":  func() error { return s.SetUserDisabled(t.Context(), "bob", true) },
		"a removal": func() error { return s.RemoveSeal(t.Context(), "office") },
		"unsealing": func() error { return s.Unseal(t.Context()) },
		"rotation":  func() error { return v.rotate(t.Context(), s, "office") },
	} {
		if err := change(); err == nil {
			t.Errorf("%s while the seal is closed", what)
		}
	}
	if err := s.AddUnlockFailure(t.Context(), 2, 1, time.Now()); err != nil {
		t.Errorf("a wrong passphrase is not counted: %v", err)
	}
	v.away.Store(false)
	if err := watcher.Refresh(t.Context()); err != nil {
		t.Error(err)
	}
	select {
	case <-opened:
	case <-time.After(20 * time.Second):
		t.Error("it does not open again")
	}
}

func grantsOf(t *testing.T, s *Store) (all []string) {
	t.Helper()
	snapshot := snapshotOf(t, s)
	if rows := snapshot.Unreadable(); len(rows) > 0 || snapshot.Closed() != nil {
		t.Errorf("left out: %v; closed: %v", rows, snapshot.Closed())
	}
	for _, g := range snapshot.Grants() {
		all = append(all, fmt.Sprintf("%d %d %d %s %s %s", g.ID, g.UserID, g.KeyID, g.Role, g.Wrapped, g.Staged))
	}
	return all
}

func TestRotationKeepsEveryGrant(t *testing.T) {
	v, s := sealed(t)
	other := v.open(t, s.path)
	before := grantsOf(t, other)
	var blobs []string
	for i := range 3 {
		v.seal(t, s, fmt.Sprint("office-", i))
		if got := grantsOf(t, other); !slices.Equal(got, before) {
			t.Fatalf("rotation %d: %q, before %q", i, got, before)
		}
		var blob []byte
		if err := s.db.QueryRowContext(t.Context(), `SELECT wrapped FROM grants WHERE id = 1`).Scan(&blob); err != nil {
			t.Fatal(err)
		}
		if slices.Contains(blobs, string(blob)) || bytes.Contains(blob, []byte("wrapped")) {
			t.Error("the wrap was not encrypted anew")
		}
		blobs = append(blobs, string(blob))
	}
	if err := s.SealWith(t.Context(), []byte("another"), seal.NewKey(), []users.Seal{{Name: "x"}}); !errors.Is(err, users.ErrStale) {
		t.Errorf("another data key was in force: %v", err)
	}
	if err := s.Unseal(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := grantsOf(t, s); !slices.Equal(got, before) {
		t.Errorf("in the clear %q, before %q", got, before)
	}
	if closed := snapshotOf(t, other).Closed(); !errors.Is(closed, users.ErrSealBroken) {
		t.Errorf("a process that saw it sealed believes that it no longer is: %v", closed)
	}
	if err := s.Unseal(t.Context()); !errors.Is(err, users.ErrNotSealed) {
		t.Errorf("unsealed twice: %v", err)
	}
}

func TestUnsealingDoesNotBringPlantedRowsToLife(t *testing.T) {
	_, s := sealed(t)
	s.damage(t, `INSERT INTO users (name, created_at) VALUES ('mallory', 0)`)
	if err := s.Unseal(t.Context()); !errors.Is(err, users.ErrUnsealedRow) {
		t.Errorf("unsealed: %v", err)
	}
	if got := refused(t, s); !slices.Equal(got, []string{"user 3"}) {
		t.Errorf("left out %q", got)
	}
}

func TestSealsSideBySide(t *testing.T) {
	v, s := sealed(t)
	state, err := s.Seals(t.Context())
	if err != nil || len(state.Seals) != 1 || !state.Seals[0].Authentic {
		t.Fatalf("%+v, %v", state, err)
	}
	opened, err := v.Open(t.Context(), &state.Seals[0], state.KeyID)
	if err != nil {
		t.Fatal(err)
	}
	seals, err := v.wrap(t.Context(), opened, "safe")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.AddSeal(t.Context(), state.KeyID, seals[0]); err != nil {
		t.Fatal(err)
	}
	if err := s.AddSeal(t.Context(), state.KeyID, seals[0]); !errors.Is(err, users.ErrExists) {
		t.Errorf("twice: %v", err)
	}
	if err := s.AddSeal(t.Context(), []byte("other"), users.Seal{Name: "third"}); !errors.Is(err, users.ErrStale) {
		t.Errorf("of another data key: %v", err)
	}
	if err := s.RemoveSeal(t.Context(), "none"); !errors.Is(err, users.ErrNotFound) {
		t.Errorf("no such seal: %v", err)
	}
	if err := s.RemoveSeal(t.Context(), "office"); err != nil {
		t.Fatal(err)
	}
	s.damage(t, `INSERT INTO seals (name, kind, parameters, wrapped, created_at) VALUES ('planted', 'secret', '{}', x'00', 0)`)
	if err := s.RemoveSeal(t.Context(), "safe"); !errors.Is(err, users.ErrLastSeal) {
		t.Errorf("the last one: %v", err)
	}
	again := v.open(t, s.path)
	if got := refused(t, again); !slices.Equal(got, []string{"seal 3"}) || len(snapshotOf(t, again).Grants()) != 5 {
		t.Errorf("by the second seal, left out: %q", got)
	}
}

func TestNoClearWrapIsLeftInTheFiles(t *testing.T) {
	v := newVault(t)
	s := v.open(t, filepath.Join(t.TempDir(), "users.db"))
	populate(t, s)
	half := storetest.PublicKey(t, "x")
	for i := range 40 {
		user, err := s.AddUser(t.Context(), fmt.Sprint("user-", i))
		if err != nil {
			t.Fatal(err)
		}
		g := users.Grant{UserID: user.ID, TokenID: 1, KeyID: 1, Role: users.RoleSigner, Access: half, Wrapped: []byte("a very clear wrap")}
		if _, err := s.AddGrant(t.Context(), g); err != nil {
			t.Fatal(err)
		}
	}
	v.seal(t, s, "office")
	if err := s.Scrub(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, suffix := range []string{"", "-wal"} {
		content, err := os.ReadFile(s.path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if n := bytes.Count(content, []byte("a very clear wrap")); n > 0 {
			t.Errorf("%d clear wraps are left in users.db%s", n, suffix)
		}
	}
}

// rotateForEver is what the killed process does: it seals the database, and then rotates its data key.
func rotateForEver(arguments string) {
	path, secret, _ := strings.Cut(arguments, "|")
	v := openVault(secret)
	s, err := OpenSealed(context.Background(), path, v)
	for i := 0; err == nil; i++ {
		if err = v.rotate(context.Background(), s, "office", "safe"); err == nil {
			fmt.Println(i)
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func TestSealingAndRotationSurviveKill(t *testing.T) {
	v := newVault(t)
	path := filepath.Join(t.TempDir(), "users.db")
	s := v.open(t, path)
	populate(t, s)
	before := grantsOf(t, s)
	for i := range 8 {
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), sealChildEnv+"="+path+"|"+v.path)
		child.Stderr = os.Stderr
		rotations, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		if i%2 == 1 { // the others are killed wherever they are, which may be before they have sealed
			bufio.NewReader(rotations).ReadString('\n')
		}
		time.Sleep(time.Duration(40+13*i) * time.Millisecond)
		child.Process.Kill()
		child.Wait()
		if got := grantsOf(t, v.open(t, path)); !slices.Equal(got, before) {
			t.Fatalf("after kill %d: %q, before %q", i, got, before)
		}
	}
	state, err := v.open(t, path).Seals(t.Context())
	if err != nil || len(state.Seals) != 2 {
		t.Errorf("%d seals, %v", len(state.Seals), err)
	}
}

// TestWhatIsStoredKeepsItsForm: later versions have to read what this one has written.
func TestWhatIsStoredKeepsItsForm(t *testing.T) {
	listed := roster{{kindGrant, 7}: {0xaa}, {kindUser, 258}: {0xbb}, {kindUser, 2}: {0xcc}}
	rest := strings.Repeat("00", 31)
	want := "01" + "010000000000000002cc" + rest + "010000000000000102bb" + rest + "050000000000000007aa" + rest
	if got := fmt.Sprintf("%x", listed.encode()); got != want {
		t.Errorf("a roster is %s", got)
	}
	s := open(t, filepath.Join(t.TempDir(), "users.db"))
	r := &reader{ctx: t.Context(), found: make(roster)}
	rows, err := s.db.QueryContext(t.Context(), `SELECT 7 AS id, 'alice' AS name, x'0102' AS key, NULL AS missing, 0 AS zero`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		if err := r.check(kindUser, rows); err != nil {
			t.Fatal(err)
		}
	}

	if got := fmt.Sprintf("%x", r.found[rowID{kindUser, 7}]); got != "9a009610d5fe0fbcdb9b28f565e649bbdb39e9ef98a68a8e2955f464119265be" {
		t.Errorf("the digest of a row is %s", got)
	}
}

func FuzzRoster(f *testing.F) {
	f.Add(roster{{kindUser, 1}: {1}, {kindGrant, 7}: {2}}.encode())
	f.Add([]byte{rosterVersion})
	f.Fuzz(func(t *testing.T, encoded []byte) {
		decoded, err := decodeRoster(encoded)
		if err != nil {
			return
		}
		again, err := decodeRoster(decoded.encode())
		if err != nil || len(again) != len(decoded) {
			t.Fatalf("%v, %d rows of %d", err, len(again), len(decoded))
		}
	})
}
