package sqlite

import (
	"context"
	"fmt"

	"chancery/users"
)

// AddUser adds an enabled user.
func (s *Store) AddUser(ctx context.Context, name string) (users.User, error) {
	if err := users.CheckName(name); err != nil {
		return users.User{}, err
	}
	user := users.User{Name: name}
	err := s.change(ctx, func(c *change) (err error) {
		user.CreatedAt = fromUnix(c.now)
		user.ID, err = c.insert(fmt.Sprintf("user %q", name), `INSERT INTO users (name, created_at) VALUES (?, ?)`, name, c.now)
		return err
	})
	if err != nil {
		return users.User{}, err
	}
	return user, nil
}

// SetUserDisabled disables or enables a user.
func (s *Store) SetUserDisabled(ctx context.Context, name string, disabled bool) error {
	return s.change(ctx, func(c *change) error {
		return c.exec(fmt.Sprintf("user %q", name), `UPDATE users SET disabled = ? WHERE name = ?`, disabled, name)
	})
}

// DeleteUser removes the user with all their grants.
func (s *Store) DeleteUser(ctx context.Context, name string, revision int64) error {
	return s.change(ctx, func(c *change) error {
		if err := c.follows(revision); err != nil {
			return err
		}
		return c.exec(fmt.Sprintf("user %q", name), `DELETE FROM users WHERE name = ?`, name)
	})
}
