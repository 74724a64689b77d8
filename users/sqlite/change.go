package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"chancery/users"
)

// change is one transaction that changes something.
type change struct {
	*sql.Tx
	ctx      context.Context
	seal     *sealing
	before   *reader // what was there, under the seal
	revision int64   // what this change moves the store's revision to; no other change ever has the same
	now      int64
}

// change runs act in an immediate transaction that moves the revision, and makes it durable. What act wrote
// is sealed if the database is.
func (s *Store) change(ctx context.Context, act func(*change) error) error {
	return s.withSeal(ctx, func(key users.SealKey) error {
		return s.transact(ctx, func(c *change) error { return c.sealed(key, key, act) })
	})
}

func (s *Store) transact(ctx context.Context, act func(*change) error) error {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return s.explain(err)
	}
	defer tx.Rollback()
	c := &change{Tx: tx, ctx: ctx, seal: &s.seal, now: time.Now().Unix()}
	if err := act(c); err != nil {
		return s.explain(err)
	}
	return s.explain(tx.Commit())
}

// moveRevision is part of every change.
func (c *change) moveRevision() error {
	return c.QueryRowContext(c.ctx, `UPDATE revision SET number = number + 1 RETURNING number`).Scan(&c.revision)
}

// follows fails with ErrStale where others changed the store since this revision, by which the caller decided; 0 stands for any.
func (c *change) follows(revision int64) error {
	if revision != 0 && c.revision != revision+1 {
		return fmt.Errorf("revision %d: %w", revision, users.ErrStale)
	}
	return nil
}

// insert runs an INSERT and returns the new row's identifier. What is the name for a violated uniqueness.
func (c *change) insert(what, statement string, args ...any) (int64, error) {
	result, err := c.ExecContext(c.ctx, statement, args...)
	if err != nil {
		return 0, constrained(what, err)
	}
	return result.LastInsertId()
}

// exec runs a statement that has to touch exactly one row; ErrNotFound when it touches none.
func (c *change) exec(what, statement string, args ...any) error {
	result, err := c.ExecContext(c.ctx, statement, args...)
	if err != nil {
		return constrained(what, err)
	}
	rows, err := result.RowsAffected()
	if err == nil && rows == 0 {
		return fmt.Errorf("%s: %w", what, users.ErrNotFound)
	}
	return err
}

// constrained translates violated constraints to the errors of package users (sqlite.org/rescode.html).
func constrained(what string, err error) error {
	switch code(err) {
	case sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY:
		return fmt.Errorf("%s: %w", what, users.ErrExists)
	case sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
		return fmt.Errorf("%s: the user, token or key that it refers to: %w", what, users.ErrNotFound)
	}
	return err
}

// explain says of the database's own troubles what an operator can do; other errors pass.
func (s *Store) explain(err error) error {
	switch code(err) & 0xff {
	case 0:
		return err
	case sqlite3.SQLITE_FULL:
		return fmt.Errorf("users/sqlite: the disk of %s is full, nothing was changed: %w", s.path, err)
	case sqlite3.SQLITE_READONLY:
		return fmt.Errorf("users/sqlite: %s or its directory cannot be written, nothing was changed: check owner and mode: %w", s.path, err)
	case sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH:
		return fmt.Errorf("users/sqlite: %s or the files beside it cannot be opened: check owner and mode: %w", s.path, err)
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return fmt.Errorf("users/sqlite: another process has been changing %s for longer than %v: try again: %w", s.path, BusyTimeout, err)
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return fmt.Errorf("users/sqlite: %s is damaged or no database: restore it from a backup: %w", s.path, err)
	case sqlite3.SQLITE_IOERR:
		return fmt.Errorf("users/sqlite: the disk of %s fails: %w", s.path, err)
	}
	return fmt.Errorf("users/sqlite: %s: %w", s.path, err)
}

// code is SQLite's extended result code, or 0 when the error is not SQLite's.
func code(err error) int {
	var failed *sqlite.Error
	if errors.As(err, &failed) {
		return failed.Code()
	}
	return 0
}

// seconds is how times are stored: whole seconds, NULL for the zero time.
func seconds(t time.Time) sql.NullInt64 {
	return sql.NullInt64{Int64: t.Unix(), Valid: !t.IsZero()}
}

func fromUnix(stored int64) time.Time { return time.Unix(stored, 0).UTC() }
