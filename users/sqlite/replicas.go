package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"chancery/users"
)

// AddReplica registers a further token that holds the keys of a registered one.
func (s *Store) AddReplica(ctx context.Context, r users.Replica, version int64) (users.Replica, error) {
	if err := users.CheckName(r.Name); err != nil {
		return users.Replica{}, err
	}
	err := s.change(ctx, func(c *change) (err error) {
		if err := c.checkPrimary(r.TokenID, version); err != nil {
			return err
		}
		if err := c.checkHome("token", r.Name, r.Serial, `SELECT count(*) FROM tokens WHERE name = ? OR serial = ?`); err != nil {
			return err
		}
		r.CreatedAt = fromUnix(c.now)
		r.ID, err = c.insert(homeText("replica", r.Name, r.Serial), `INSERT INTO replicas (token_id, name, driver, location, serial, label, max_sessions, created_at)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?)`, r.TokenID, r.Name, r.Driver, r.Location, r.Serial, r.Label, r.MaxSessions, c.now)
		return err
	})
	if err != nil {
		return users.Replica{}, err
	}
	return r, nil
}

// checkPrimary refuses a replica that was compared with its primary before the PIN of that changed or began to.
func (c *change) checkPrimary(tokenID, version int64) error {
	var now int64
	var staged bool
	err := c.QueryRowContext(c.ctx, `SELECT pin_version, pin_staged FROM tokens WHERE id = ?`, tokenID).Scan(&now, &staged)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return fmt.Errorf("token %d: %w", tokenID, users.ErrNotFound)
	case err != nil:
		return err
	case staged:
		return fmt.Errorf("token %d: %w", tokenID, users.ErrPINChangeInFlight)
	case now != version:
		return fmt.Errorf("replica: the PIN of its token: %w", users.ErrStale)
	}
	return nil
}

// checkHome refuses a name or serial number that the query finds among the other kind of homes.
func (c *change) checkHome(what, name, serial, query string) error {
	var found int
	err := c.QueryRowContext(c.ctx, query, name, serial).Scan(&found)
	if err == nil && found > 0 {
		return fmt.Errorf("%s: %w", homeText(what, name, serial), users.ErrExists)
	}
	return err
}

func homeText(what, name, serial string) string {
	return fmt.Sprintf("%s %q with the serial number %q", what, name, serial)
}

// RemoveReplica forgets a replica.
func (s *Store) RemoveReplica(ctx context.Context, name string) error {
	return s.change(ctx, func(c *change) error {
		return c.exec(fmt.Sprintf("replica %q", name), `DELETE FROM replicas WHERE name = ?`, name)
	})
}

func scanReplica(rows *sql.Rows) (r users.Replica, err error) {
	var created int64
	err = rows.Scan(&r.ID, &r.TokenID, &r.Name, &r.Driver, &r.Location, &r.Serial, &r.Label, &r.MaxSessions, &created)
	r.CreatedAt = fromUnix(created)
	return r, err
}

// tokens reads all tokens with their replicas.
func (r *reader) tokens() ([]users.Token, error) {
	tokens, err := read(r, kindToken, selectTokens, scanToken)
	if err != nil {
		return nil, err
	}
	replicas, err := read(r, kindReplica, selectReplicas+` ORDER BY id`, scanReplica)
	if err != nil {
		return nil, err
	}
	byID := make(map[int64]*users.Token)
	for i := range tokens {
		byID[tokens[i].ID] = &tokens[i]
	}
	for _, replica := range replicas {
		primary, found := byID[replica.TokenID]
		if !found {
			r.leaveOut(kindReplica, replica.ID, fmt.Errorf("its token %d is missing or cannot be read", replica.TokenID))
			continue
		}
		primary.Replicas = append(primary.Replicas, replica)
	}
	return tokens, nil
}
