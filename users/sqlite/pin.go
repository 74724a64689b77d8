package sqlite

import (
	"context"
	"fmt"

	"chancery/users"
)

// StagePIN stores the new PIN's wraps beside the current ones.
func (s *Store) StagePIN(ctx context.Context, tokenID int64, grants []users.Grant) (int64, error) {
	var version int64
	err := s.change(ctx, func(c *change) error {
		if err := c.unchangedPIN(tokenID, grants); err != nil {
			return err
		}
		version = c.revision
		what := fmt.Sprintf("token %d", tokenID)
		if err := c.exec(what, `UPDATE tokens SET pin_version = ? WHERE id = ? AND pin_staged = 0`, version, tokenID); err != nil {
			return c.whyNotStaged(tokenID, err)
		}
		if err := c.exec(what, `UPDATE tokens SET pin_staged = 1, staged_rejected = 0 WHERE id = ?`, tokenID); err != nil {
			return err
		}
		return c.stage(tokenID, grants)
	})
	return version, err
}

// unchangedPIN refuses grants that were read before the PIN was changed, or a change of it was begun or given up: what the caller
// knows of the token's PIN may be wrong by now.
func (c *change) unchangedPIN(tokenID int64, grants []users.Grant) error {
	var version int64
	var staged bool
	err := c.QueryRowContext(c.ctx, `SELECT pin_version, pin_staged FROM tokens WHERE id = ?`, tokenID).Scan(&version, &staged)
	if err != nil || staged {
		return nil // which is told next
	}
	for _, g := range grants {
		if g.PINVersion != version {
			return fmt.Errorf("grant %d: PIN of token %d: %w", g.ID, tokenID, users.ErrStale)
		}
	}
	return nil
}

// whyNotStaged tells a token in flight from one that does not exist.
func (c *change) whyNotStaged(tokenID int64, cause error) error {
	var name string
	if err := c.QueryRowContext(c.ctx, `SELECT name FROM tokens WHERE id = ?`, tokenID).Scan(&name); err != nil {
		return cause
	}
	return fmt.Errorf("token %q: %w", name, users.ErrPINChangeInFlight)
}

// stage fills in the staged wraps. All grants of the token have to be there, unchanged since they were read.
func (c *change) stage(tokenID int64, grants []users.Grant) error {
	for _, g := range grants {
		result, err := c.ExecContext(c.ctx, `UPDATE grants SET staged = ? WHERE id = ? AND token_id = ? AND generation = ? AND staged IS NULL`,
			g.Staged, g.ID, tokenID, g.Generation)
		if err != nil {
			return err
		}
		if rows, err := result.RowsAffected(); err != nil || rows != 1 {
			return fmt.Errorf("grant %d: %w", g.ID, users.ErrStale)
		}
	}
	var missing int
	if err := c.QueryRowContext(c.ctx, `SELECT count(*) FROM grants WHERE token_id = ? AND staged IS NULL`, tokenID).Scan(&missing); err != nil {
		return err
	}
	if missing > 0 {
		return fmt.Errorf("%d new grants: %w", missing, users.ErrStale)
	}
	return nil
}

// CommitPIN makes the staged wraps the current ones.
func (s *Store) CommitPIN(ctx context.Context, tokenID, version int64) error {
	return s.change(ctx, func(c *change) error {
		if err := c.settle(tokenID, version, true); err != nil {
			return err
		}
		_, err := c.ExecContext(ctx, `UPDATE grants SET wrapped = staged, staged = NULL WHERE token_id = ?`, tokenID)
		return err
	})
}

// AbandonPIN drops the staged wraps.
func (s *Store) AbandonPIN(ctx context.Context, tokenID, version int64) error {
	return s.change(ctx, func(c *change) error {
		if err := c.settle(tokenID, version, false); err != nil {
			return err
		}
		_, err := c.ExecContext(ctx, `UPDATE grants SET staged = NULL WHERE token_id = ?`, tokenID)
		return err
	})
}

// settle ends the change in flight if it is the one that is meant.
func (c *change) settle(tokenID, version int64, committed bool) error {
	return c.ofVersion(tokenID, version, `UPDATE tokens SET pin_staged = 0, staged_rejected = 0, pin_version = ?,
		pin_rejected = iif(?, 0, pin_rejected), pin_since = iif(?, ?, pin_since)
		WHERE id = ? AND pin_version = ? AND pin_staged = 1`,
		c.revision, committed, committed, c.revision, tokenID, version)
}

// RejectPIN remembers that the token rejected a PIN. The present one it was in every version since it came.
func (s *Store) RejectPIN(ctx context.Context, tokenID, version int64, staged bool) error {
	statement := `UPDATE tokens SET pin_rejected = 1 WHERE id = ? AND ? BETWEEN pin_since AND pin_version`
	if staged {
		statement = `UPDATE tokens SET staged_rejected = 1 WHERE id = ? AND pin_version = ? AND pin_staged = 1`
	}
	return s.change(ctx, func(c *change) error { return c.ofVersion(tokenID, version, statement, tokenID, version) })
}

// ofVersion runs a statement that touches the token only while its PIN is of the given version; ErrStale otherwise.
func (c *change) ofVersion(tokenID, version int64, statement string, args ...any) error {
	result, err := c.ExecContext(c.ctx, statement, args...)
	if err != nil {
		return err
	}
	rows, err := result.RowsAffected()
	if err == nil && rows == 0 {
		return fmt.Errorf("PIN version %d of token %d: %w", version, tokenID, users.ErrStale)
	}
	return err
}
