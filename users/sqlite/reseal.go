package sqlite

import (
	"bytes"
	"database/sql"
	"fmt"
	"maps"

	"chancery/users"
)

// sealed runs act in a database that is sealed under was, and leaves it sealed under next; nil is for not sealed. Rows
// that were not written under the seal are not made good by being there.
func (c *change) sealed(was, next users.SealKey, act func(*change) error) error {
	before := &reader{ctx: c.ctx, tx: c.Tx}
	if err := before.unseal(c.seal, was, nil); err != nil {
		return err
	}
	if before.closed != nil {
		return before.closed
	}
	c.before = before
	wraps, err := before.survey()
	if err != nil {
		return err
	}
	if err := c.moveRevision(); err != nil {
		return err
	}
	if was != nil || next != nil {
		// An index that somebody replaced leads to another row than the one that was named.
		if _, err := c.ExecContext(c.ctx, `REINDEX`); err != nil {
			return fmt.Errorf("%w: its indexes: %w", users.ErrSealBroken, err)
		}
	}
	if err := act(c); err != nil {
		return err
	}
	if was == nil && next == nil {
		return nil
	}
	if next == nil && len(before.unreadable) > 0 {
		row := before.unreadable[0]
		return fmt.Errorf("%d rows, such as %s %d, would come to life: restore the database from its backup first: %w", len(before.unreadable), row.Kind, row.ID, row.Err)
	}
	if err := c.rewrap(before, wraps, was, next); err != nil {
		return err
	}
	return c.enlist(before, next)
}

// survey looks at all rows under the seal, and returns the wraps in them as they are stored, by grant.
func (r *reader) survey() (map[int64]stored, error) {
	if r.found == nil {
		return nil, nil
	}
	wraps := make(map[int64]stored)
	collect := func(rows *sql.Rows) (stored, error) {
		g, err := scanGrant(rows)
		w := stored{g.Wrapped, g.Staged}
		wraps[g.ID] = w
		return w, err
	}
	nothing := func(*sql.Rows) (struct{}, error) { return struct{}{}, nil }
	for _, table := range []struct{ kind, query string }{
		{kindUser, selectUsers}, {kindToken, selectTokens}, {kindReplica, selectReplicas}, {kindKey, selectKeys}, {kindCertificate, selectCertificates}, {kindSeal, selectSeals},
	} {
		if _, err := read(r, table.kind, table.query, nothing); err != nil {
			return nil, err
		}
	}
	_, err := read(r, kindGrant, selectGrants, collect)
	return wraps, err
}

// refuses tells whether a row was there that was not written under the seal.
func (r *reader) refuses(row rowID) bool {
	sum, there := r.found[row]
	listed, known := r.listed[row]
	return there && (!known || listed != sum)
}

// stored is what a grant's row holds of the PIN.
type stored struct{ wrapped, staged []byte }

// has tells whether these bytes were there, in either place: CommitPIN moves them from one to the other.
func (s stored) has(wrap []byte) bool {
	return bytes.Equal(s.wrapped, wrap) || len(s.staged) > 0 && bytes.Equal(s.staged, wrap)
}

// rewrap encrypts under next what this change wrote in the clear, and, where the data key changes, what was there before.
func (c *change) rewrap(before *reader, wraps map[int64]stored, was, next users.SealKey) error {
	after, err := c.wraps()
	if err != nil {
		return err
	}
	for id, now := range after {
		if before.refuses(rowID{kindGrant, id}) {
			continue
		}
		then := wraps[id]
		bring := func(wrap []byte) ([]byte, error) {
			if len(wrap) == 0 {
				return nil, nil
			}
			return convert(id, wrap, then.has(wrap), was, next)
		}
		wrapped, err := bring(now.wrapped)
		if err != nil {
			return err
		}
		staged, err := bring(now.staged)
		if err != nil {
			return err
		}
		if bytes.Equal(wrapped, now.wrapped) && bytes.Equal(staged, now.staged) {
			continue
		}
		if err := c.exec(fmt.Sprintf("grant %d", id), `UPDATE grants SET wrapped = ?, staged = ? WHERE id = ?`, wrapped, staged, id); err != nil {
			return err
		}
	}
	return nil
}

// convert brings one wrap from one data key to the next. An old one is there under was, if there is such a key.
func convert(grant int64, wrap []byte, old bool, was, next users.SealKey) ([]byte, error) {
	if old && was == next {
		return wrap, nil
	}
	clear := wrap
	if old {
		var err error
		if clear, err = was.Open(wrap, wrapContext(grant)); err != nil {
			return nil, err
		}
	}
	if next == nil {
		return clear, nil
	}
	return next.Seal(clear, wrapContext(grant))
}

func (c *change) wraps() (map[int64]stored, error) {
	rows, err := c.QueryContext(c.ctx, `SELECT id, wrapped, staged FROM grants`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	all := make(map[int64]stored)
	for rows.Next() {
		var id int64
		var w stored
		if err := rows.Scan(&id, &w.wrapped, &w.staged); err != nil {
			return nil, err
		}
		all[id] = w
	}
	return all, rows.Err()
}

// enlist writes the roster of what is there now. A row is on it that was before, or that this change added.
func (c *change) enlist(before *reader, next users.SealKey) error {
	if next == nil {
		_, err := c.ExecContext(c.ctx, `DELETE FROM seal_state`)
		return err
	}
	after := &reader{ctx: c.ctx, tx: c.Tx, found: make(roster)}
	if _, err := after.survey(); err != nil {
		return err
	}
	maps.DeleteFunc(after.found, func(row rowID, _ digest) bool { return before.refuses(row) })
	sealed, err := next.Seal(after.found.encode(), rosterContext(c.revision))
	if err != nil {
		return err
	}
	_, err = c.ExecContext(c.ctx, `INSERT INTO seal_state (id, key_id, roster) VALUES (1, ?, ?)
		ON CONFLICT (id) DO UPDATE SET key_id = excluded.key_id, roster = excluded.roster`, next.ID(), sealed)
	return err
}
