package sqlite

import (
	"context"
	"fmt"

	"chancery/users"
)

// AddToken registers a token and its first token manager.
func (s *Store) AddToken(ctx context.Context, t users.Token, manager users.Grant) (users.Token, error) {
	if err := users.CheckName(t.Name); err != nil {
		return users.Token{}, err
	}
	t.Replicas = nil
	t.Reload, t.PINVersion, t.PINStaged, t.PINRejected, t.StagedRejected = 0, 0, false, false, false
	err := s.change(ctx, func(c *change) (err error) {
		if err := c.checkHome("replica", t.Name, t.Serial, `SELECT count(*) FROM replicas WHERE name = ? OR serial = ?`); err != nil {
			return err
		}
		t.CreatedAt = fromUnix(c.now)
		t.ID, err = c.insert(homeText("token", t.Name, t.Serial), `INSERT INTO tokens (name, driver, location, serial, label, hardware, max_sessions, created_at)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?)`, t.Name, t.Driver, t.Location, t.Serial, t.Label, t.Hardware, t.MaxSessions, c.now)
		if err != nil {
			return err
		}
		manager.TokenID, manager.KeyID, manager.Role, manager.PINVersion = t.ID, 0, users.RoleTokenManager, 0
		return c.addGrant(&manager)
	})
	if err != nil {
		return users.Token{}, err
	}
	return t, nil
}

// RequestReload grows the token's Reload counter.
func (s *Store) RequestReload(ctx context.Context, name string) error {
	return s.change(ctx, func(c *change) error {
		return c.exec(fmt.Sprintf("token %q", name), `UPDATE tokens SET reload = reload + 1 WHERE name = ?`, name)
	})
}

// Unblock lets rejected PINs be tried again, and grows the token's Reload counter.
func (s *Store) Unblock(ctx context.Context, name string) error {
	return s.change(ctx, func(c *change) error {
		return c.exec(fmt.Sprintf("token %q", name),
			`UPDATE tokens SET reload = reload + 1, pin_rejected = 0, staged_rejected = 0 WHERE name = ?`, name)
	})
}

// RemoveToken forgets a token that no key is registered on.
func (s *Store) RemoveToken(ctx context.Context, name string) error {
	return s.change(ctx, func(c *change) error {
		var keys int
		err := c.QueryRowContext(ctx, `SELECT count(*) FROM keys JOIN tokens ON keys.token_id = tokens.id WHERE tokens.name = ?`, name).Scan(&keys)
		if err != nil {
			return err
		}
		if keys > 0 {
			return fmt.Errorf("token %q: %w: %d keys are registered on it: delete them first", name, users.ErrInUse, keys)
		}
		return c.exec(fmt.Sprintf("token %q", name), `DELETE FROM tokens WHERE name = ?`, name)
	})
}
