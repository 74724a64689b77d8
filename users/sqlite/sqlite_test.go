package sqlite

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/users"
	"chancery/users/storetest"
)

const childEnv = "CHANCERY_TEST_ADD_USERS_TO"

func TestMain(m *testing.M) {
	if path := os.Getenv(childEnv); path != "" {
		addUsersForEver(path)
	}
	if arguments := os.Getenv(sealChildEnv); arguments != "" {
		rotateForEver(arguments)
	}
	os.Exit(m.Run())
}

func TestContract(t *testing.T) {
	storetest.Run(t, func(t *testing.T) func() users.Store {
		path := filepath.Join(t.TempDir(), "users.db")
		return func() users.Store { return open(t, path) }
	})
}

func open(t testing.TB, path string) *Store {
	t.Helper()
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestFileIsForItsOwnerOnly(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made", "on the way")
	path := filepath.Join(dir, "100%?#users.db") // a URI must not take it apart
	s := open(t, path)
	if _, err := s.AddUser(t.Context(), "alice"); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v (%v)", entry.Name(), info.Mode(), err)
		}
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory mode %v (%v)", info.Mode(), err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}

func TestAccessByOthersIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users.db")
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	chmod := func(path string, mode os.FileMode) {
		t.Helper()
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(what string) {
		t.Helper()
		s, err := Open(t.Context(), path)
		if err == nil {
			s.Close()
		}
		if !errors.Is(err, ErrPermissions) || !strings.Contains(err.Error(), "chmod") {
			t.Errorf("%s: %v", what, err)
		}
	}
	chmod(path, 0o640)
	refused("readable by the group")
	chmod(path, 0o602)
	refused("writable by all")
	chmod(path, 0o600)
	chmod(filepath.Dir(path), 0o777)
	refused("directory writable by all")
	chmod(filepath.Dir(path), 0o755)
	open(t, path)
}

func TestUnusableFiles(t *testing.T) {
	dir := t.TempDir()
	garbage := filepath.Join(dir, "garbage")
	if err := os.WriteFile(garbage, []byte(strings.Repeat("not a database ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		garbage:                         "restore it from a backup",
		dir:                             "not a regular file",
		filepath.Join(garbage, "below"): "not a directory",
	} {
		s, err := Open(t.Context(), path)
		if err == nil {
			s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestNewerTablesAreRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users.db")
	s := open(t, path)
	if _, err := s.db.ExecContext(t.Context(), `INSERT INTO goose_db_version (version_id, is_applied) VALUES (99, 1)`); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), path); !errors.Is(err, ErrSchema) || !strings.Contains(err.Error(), "version 99") {
		t.Errorf("error %v", err)
	}
}

func TestSafeSettings(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "users.db"))
	for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1", "busy_timeout": "10000", "secure_delete": "1"} {
		var got string
		if err := s.db.QueryRowContext(t.Context(), "PRAGMA "+pragma).Scan(&got); err != nil || got != want {
			t.Errorf("%s is %q (%v), want %q", pragma, got, err, want)
		}
	}
}

func TestManyOpenAFreshDatabaseAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users.db")
	var group sync.WaitGroup
	for range 6 {
		group.Go(func() {
			s, err := Open(t.Context(), path)
			if err != nil {
				t.Error(err)
				return
			}
			s.Close()
		})
	}
	group.Wait()
}

func TestFullDiskChangesNothing(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "users.db"))
	ctx := t.Context()
	var pages int
	if err := s.db.QueryRowContext(ctx, `PRAGMA page_count`).Scan(&pages); err != nil {
		t.Fatal(err)
	}
	if _, err := s.db.ExecContext(ctx, fmt.Sprintf(`PRAGMA max_page_count = %d`, pages+1)); err != nil {
		t.Fatal(err)
	}
	var err error
	added := 0
	for ; err == nil && added < 1000; added++ {
		_, err = s.AddUser(ctx, fmt.Sprintf("user with a long name, so that pages fill up sooner, %d", added))
	}
	if err == nil || !strings.Contains(err.Error(), "is full, nothing was changed") {
		t.Fatalf("error %v", err)
	}
	snapshot, err := s.Snapshot(ctx)
	if err != nil || len(snapshot.Users()) != added-1 || snapshot.Revision != int64(added-1) {
		t.Errorf("%d users and revision %d after %d were added (%v)", len(snapshot.Users()), snapshot.Revision, added-1, err)
	}
}

func TestReadOnlyDatabaseSaysSo(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "users.db"))
	if _, err := s.db.ExecContext(t.Context(), `PRAGMA query_only = 1`); err != nil {
		t.Fatal(err)
	}
	if _, err := s.AddUser(t.Context(), "alice"); err == nil || !strings.Contains(err.Error(), "cannot be written") {
		t.Errorf("error %v", err)
	}
}

// addUsersForEver is what the killed process does: each name goes to standard output once its user is stored.
func addUsersForEver(path string) {
	s, err := Open(context.Background(), path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for i := 0; ; i++ {
		name := fmt.Sprintf("user-%d-%d", os.Getpid(), i)
		if _, err := s.AddUser(context.Background(), name); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(name)
	}
}

func TestAcknowledgedUsersSurviveKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users.db")
	var acknowledged []string
	for range 3 {
		acknowledged = append(acknowledged, killWhileAdding(t, path, 25)...)
	}
	s := open(t, path)
	snapshot, err := s.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range acknowledged {
		if _, found := snapshot.User(name); !found {
			t.Errorf("%s was acknowledged and is not there", name)
		}
	}
	if len(acknowledged) < 75 {
		t.Errorf("only %d users were acknowledged", len(acknowledged))
	}
}

// killWhileAdding starts a process that adds users, kills it after some and returns what it acknowledged.
func killWhileAdding(t *testing.T, path string, after int) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	child := exec.CommandContext(ctx, os.Args[0])
	child.Env = append(os.Environ(), childEnv+"="+path)
	child.Stderr = os.Stderr
	stdout, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	var names []string
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		names = append(names, lines.Text())
		if len(names) == after {
			child.Process.Kill() // what is in the pipe by then was acknowledged too
		}
	}
	child.Wait()
	return names
}
