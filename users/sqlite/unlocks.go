package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"chancery/users"
)

// AddUnlockFailure counts a wrong passphrase.
func (s *Store) AddUnlockFailure(ctx context.Context, userID, keyID int64, at time.Time) error {
	_, err := s.db.ExecContext(ctx, `INSERT INTO unlock_failures (user_id, key_id, count, last_at) VALUES (?, ?, 1, ?)
		ON CONFLICT (user_id, key_id) DO UPDATE SET count = count + 1, last_at = excluded.last_at`, userID, keyID, at.Unix())
	return s.explain(constrained(fmt.Sprintf("failed unlock of user %d and key %d", userID, keyID), err))
}

// ClearUnlockFailures forgets the wrong passphrases of a user for a key.
func (s *Store) ClearUnlockFailures(ctx context.Context, userID, keyID int64) error {
	_, err := s.db.ExecContext(ctx, `DELETE FROM unlock_failures WHERE user_id = ? AND key_id = ?`, userID, keyID)
	return s.explain(err)
}

// UnlockFailures returns all that is remembered.
func (s *Store) UnlockFailures(ctx context.Context) ([]users.UnlockFailures, error) {
	tx, err := s.db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return nil, s.explain(err)
	}
	defer tx.Rollback()
	r := &reader{ctx: ctx, tx: tx}
	failures, err := read(r, kindFailures, selectFailures, scanUnlockFailures)
	if err == nil && len(r.unreadable) > 0 { // to forget it would let a guesser begin anew
		return nil, fmt.Errorf("users/sqlite: %s: %w", r.unreadable[0], r.unreadable[0].Err)
	}
	return failures, s.explain(err)
}

func scanUnlockFailures(rows *sql.Rows) (f users.UnlockFailures, err error) {
	var last int64
	err = rows.Scan(&f.UserID, &f.KeyID, &f.Count, &last)
	f.Last = fromUnix(last)
	return f, err
}
