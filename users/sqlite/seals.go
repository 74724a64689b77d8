package sqlite

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"slices"

	"chancery/users"
)

// Seals returns how the database is sealed.
func (s *Store) Seals(ctx context.Context) (state users.SealState, err error) {
	err = s.reading(ctx, func(r *reader) error {
		if state.KeyID, _, err = r.sealRow(); err != nil || len(state.KeyID) == 0 {
			return err
		}
		if state.Seals, err = read(&reader{ctx: ctx, tx: r.tx}, kindSeal, selectSeals+` ORDER BY id`, scanSeal); err != nil || r.key == nil {
			return err
		}
		authentic, err := read(r, kindSeal, selectSeals, scanSeal)
		for _, known := range authentic {
			for i := range state.Seals {
				state.Seals[i].Authentic = state.Seals[i].Authentic || state.Seals[i].Name == known.Name
			}
		}
		return err
	})
	return state, err
}

// SealWith seals everything anew.
func (s *Store) SealWith(ctx context.Context, was []byte, key users.SealKey, seals []users.Seal) error {
	if len(seals) == 0 {
		return users.ErrLastSeal
	}
	err := s.withSeal(ctx, func(now users.SealKey) error {
		if now == nil && len(was) > 0 || now != nil && !bytes.Equal(now.ID(), was) {
			return fmt.Errorf("the data key of the seal: %w", users.ErrStale)
		}
		return s.transact(ctx, func(c *change) error {
			return c.sealed(now, key, func(c *change) error { return c.replaceSeals(seals) })
		})
	})
	if err == nil {
		s.seal.use(key)
	}
	return err
}

func (c *change) replaceSeals(seals []users.Seal) error {
	if err := (&reader{ctx: c.ctx, tx: c.Tx}).refuseOtherSchema(); err != nil {
		return err
	}
	if _, err := c.ExecContext(c.ctx, `DELETE FROM seals`); err != nil {
		return err
	}
	for _, seal := range seals {
		if err := c.addSeal(seal); err != nil {
			return err
		}
	}
	return nil
}

func (c *change) addSeal(seal users.Seal) error {
	if err := users.CheckName(seal.Name); err != nil {
		return err
	}
	created := c.now
	if !seal.CreatedAt.IsZero() {
		created = seal.CreatedAt.Unix()
	}
	_, err := c.insert(fmt.Sprintf("seal %q", seal.Name), `INSERT INTO seals (name, kind, parameters, wrapped, created_at) VALUES (?, ?, ?, ?, ?)`,
		seal.Name, seal.Kind, string(seal.Parameters), seal.Wrapped, created)
	return err
}

// AddSeal adds a seal beside those that are there.
func (s *Store) AddSeal(ctx context.Context, keyID []byte, seal users.Seal) error {
	return s.changeSealed(ctx, func(c *change, key users.SealKey) error {
		if !bytes.Equal(key.ID(), keyID) {
			return fmt.Errorf("the data key of the seal: %w", users.ErrStale)
		}
		return c.addSeal(seal)
	})
}

// RemoveSeal removes a seal, but not the last one that was written under the seal.
func (s *Store) RemoveSeal(ctx context.Context, name string) error {
	return s.changeSealed(ctx, func(c *change, _ users.SealKey) error {
		if err := c.exec(fmt.Sprintf("seal %q", name), `DELETE FROM seals WHERE name = ?`, name); err != nil {
			return err
		}
		left, err := read(&reader{ctx: ctx, tx: c.Tx}, kindSeal, `SELECT id FROM seals`, scanID)
		left = slices.DeleteFunc(left, func(id int64) bool { return c.before.refuses(rowID{kindSeal, id}) })
		if err == nil && len(left) == 0 {
			return fmt.Errorf("seal %q: %w", name, users.ErrLastSeal)
		}
		return err
	})
}

func scanID(rows *sql.Rows) (id int64, err error) {
	err = rows.Scan(&id)
	return id, err
}

// Unseal stores everything in the clear again.
func (s *Store) Unseal(ctx context.Context) error {
	err := s.withSeal(ctx, func(key users.SealKey) error {
		if key == nil {
			return users.ErrNotSealed
		}
		return s.transact(ctx, func(c *change) error {
			return c.sealed(key, nil, func(c *change) error {
				_, err := c.ExecContext(ctx, `DELETE FROM seals`)
				return err
			})
		})
	})
	if err == nil {
		s.seal.unsealedByUs()
	}
	return err
}

// changeSealed is change for what only a sealed database can do.
func (s *Store) changeSealed(ctx context.Context, act func(*change, users.SealKey) error) error {
	return s.withSeal(ctx, func(key users.SealKey) error {
		if key == nil {
			return users.ErrNotSealed
		}
		return s.transact(ctx, func(c *change) error {
			return c.sealed(key, key, func(c *change) error { return act(c, key) })
		})
	})
}

// Scrub moves everything out of the write-ahead log, which is cut off, so that what was stored before is in none of the
// files any more: freed parts of the database itself are overwritten at once (secure_delete). Copies and the disk's own
// reserve are out of its reach. Another process that reads meanwhile makes it fail; a retry helps.
func (s *Store) Scrub(ctx context.Context) error {
	var busy, frames, moved int
	err := s.db.QueryRowContext(ctx, `PRAGMA wal_checkpoint(TRUNCATE)`).Scan(&busy, &frames, &moved)
	if err == nil && busy != 0 {
		return fmt.Errorf("users/sqlite: the write-ahead log of %s is in use: try again", s.path)
	}
	return s.explain(err)
}
