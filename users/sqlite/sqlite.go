// Package sqlite keeps users.Store in one SQLite file: the embedded default,
// good for one host. Daemon and operators' commands may have it open at once.
//
// The file has mode 0600 and its directory is writable by nobody else. It is in WAL mode with synchronous=FULL, so
// that a change is on the disk before the method that made it returns. Each
// change is one immediate transaction and waits up to BusyTimeout for those of other processes.
//
// Use it on a local file system: WAL needs shared memory between the processes (sqlite.org/wal.html).
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"time"

	_ "modernc.org/sqlite" // the driver "sqlite"

	"chancery/users"
)

// ErrSchema says that a newer Chancery wrote the database.
var ErrSchema = errors.New("users/sqlite: the database is of a newer version")

// ErrPermissions says that others than the owner could read the database or replace it.
var ErrPermissions = errors.New("users/sqlite: others have access to the database")

// BusyTimeout is how long a change waits for other processes' changes before it fails.
const BusyTimeout = 10 * time.Second

// Store is an open database. Its methods may be called from several goroutines at once.
type Store struct {
	db   *sql.DB
	path string
	seal sealing
}

var _ users.SealStore = (*Store)(nil)

// Open opens the database at path, making file and directory where they do not exist, and brings its
// tables up to date. A database that is sealed stays closed. Errors: ErrPermissions, ErrSchema, or what the file system said.
func Open(ctx context.Context, path string) (*Store, error) {
	return OpenSealed(ctx, path, nil)
}

// OpenSealed is Open with a way to find the data key if the database is sealed. It does not ask for it yet.
func OpenSealed(ctx context.Context, path string, opener users.SealOpener) (*Store, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("users/sqlite: %w", err)
	}
	release, err := prepare(ctx, path)
	if err != nil {
		return nil, err
	}
	defer release()
	db, err := sql.Open("sqlite", dataSource(path))
	if err != nil {
		return nil, fmt.Errorf("users/sqlite: %s: %w", path, err)
	}
	// One connection: changes of one process queue up here instead of polling for SQLite's lock.
	db.SetMaxOpenConns(1)
	s := &Store{db: db, path: path, seal: sealing{opener: opener}}
	if err := s.migrate(ctx); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return s, nil
}

// dataSource is a URI, in which any path is safe (sqlite.org/uri.html).
func dataSource(path string) string {
	parameters := url.Values{
		"mode":          {"rw"},
		"_txlock":       {"immediate"},
		"_busy_timeout": {fmt.Sprint(BusyTimeout.Milliseconds())},
		"_foreign_keys": {"1"},
		"_journal_mode": {"WAL"},
		"_synchronous":  {"FULL"},
		"_defensive":    {"1"},
		"_dqs":          {"0"},
		"_error_rc":     {"1"},
		"_pragma":       {"secure_delete(1)"}, // a revoked wrap is overwritten, not only unlinked
	}
	return (&url.URL{Scheme: "file", Path: path, RawQuery: parameters.Encode()}).String()
}

// Close gives the file back and overwrites the data key.
func (s *Store) Close() error {
	s.seal.forget()
	return s.db.Close()
}

// Revision returns a number that every change moves.
func (s *Store) Revision(ctx context.Context) (int64, error) {
	var number int64
	err := s.db.QueryRowContext(ctx, `SELECT number FROM revision`).Scan(&number)
	return number, s.explain(err)
}
