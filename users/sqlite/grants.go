package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"chancery/users"
)

// AddGrant stores a grant.
func (s *Store) AddGrant(ctx context.Context, g users.Grant) (users.Grant, error) {
	err := s.change(ctx, func(c *change) error { return c.addGrant(&g) })
	if err != nil {
		return users.Grant{}, err
	}
	return g, nil
}

func (c *change) addGrant(g *users.Grant) (err error) {
	if err := c.checkPINVersion(g); err != nil {
		return err
	}
	normalise(g)
	g.Generation, g.CreatedAt = c.revision, fromUnix(c.now)
	g.ID, err = c.insert("grant of this user", `INSERT INTO grants
		(user_id, token_id, key_id, role, expires, generation, access_key, wrapped, staged, created_at, created_by, lease_seconds, lease_uses, priority)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		g.UserID, g.TokenID, sql.NullInt64{Int64: g.KeyID, Valid: g.KeyID != 0}, string(g.Role), seconds(g.Expires),
		g.Generation, g.Access.Bytes(), g.Wrapped, g.Staged, c.now, g.CreatedBy, int64(g.Lease/time.Second), g.LeaseUses, g.Priority)
	return err
}

// normalise makes the value that is returned equal to what a Snapshot will read.
func normalise(g *users.Grant) {
	if !g.Expires.IsZero() {
		g.Expires = g.Expires.UTC().Truncate(time.Second)
	}
	if len(g.Staged) == 0 {
		g.Staged = nil
	}
	g.Lease = g.Lease.Truncate(time.Second)
}

// checkPINVersion refuses wraps that were computed before the token's PIN changed or began to.
func (c *change) checkPINVersion(g *users.Grant) error {
	var version int64
	var staged bool
	err := c.QueryRowContext(c.ctx, `SELECT pin_version, pin_staged FROM tokens WHERE id = ?`, g.TokenID).Scan(&version, &staged)
	if errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("grant on token %d: %w", g.TokenID, users.ErrNotFound)
	}
	if err != nil {
		return err
	}
	if version != g.PINVersion || staged != (len(g.Staged) > 0) {
		return fmt.Errorf("grant: the PIN of its token: %w", users.ErrStale)
	}
	return nil
}

// ReplaceGrant changes access key, wraps, role, expiry, lease and priority of a grant.
func (s *Store) ReplaceGrant(ctx context.Context, g users.Grant) (users.Grant, error) {
	err := s.change(ctx, func(c *change) error { return c.replaceGrant(&g) })
	if err != nil {
		return users.Grant{}, err
	}
	return g, nil
}

func (c *change) replaceGrant(g *users.Grant) error {
	var generation, created int64
	var key sql.NullInt64
	row := c.QueryRowContext(c.ctx, `SELECT generation, user_id, token_id, key_id, created_at, created_by FROM grants WHERE id = ?`, g.ID)
	err := row.Scan(&generation, &g.UserID, &g.TokenID, &key, &created, &g.CreatedBy)
	if errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("grant %d: %w", g.ID, users.ErrNotFound)
	}
	if err != nil {
		return err
	}
	if generation != g.Generation {
		return fmt.Errorf("grant %d: %w", g.ID, users.ErrStale)
	}
	if err := c.checkPINVersion(g); err != nil {
		return err
	}
	normalise(g)
	g.KeyID, g.CreatedAt, g.Generation = key.Int64, fromUnix(created), c.revision
	return c.exec(fmt.Sprintf("grant %d", g.ID),
		`UPDATE grants SET role = ?, expires = ?, generation = ?, access_key = ?, wrapped = ?, staged = ?, lease_seconds = ?, lease_uses = ?, priority = ?
		WHERE id = ?`,
		string(g.Role), seconds(g.Expires), g.Generation, g.Access.Bytes(), g.Wrapped, g.Staged, int64(g.Lease/time.Second), g.LeaseUses, g.Priority, g.ID)
}

// RevokeGrant removes a grant.
func (s *Store) RevokeGrant(ctx context.Context, id, revision int64) error {
	return s.change(ctx, func(c *change) error {
		if err := c.follows(revision); err != nil {
			return err
		}
		return c.exec(fmt.Sprintf("grant %d", id), `DELETE FROM grants WHERE id = ?`, id)
	})
}
