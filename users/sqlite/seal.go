package sqlite

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"chancery/users"
)

// sealing is what a Store knows of its seal between transactions.
type sealing struct {
	opener users.SealOpener // nil: a sealed database stays closed

	opening sync.Mutex // held while the data key is looked for, which may take long

	mu       sync.Mutex
	key      users.SealKey // the last one that opened
	sealed   bool          // it was seen sealed: that it no longer is, this process does not believe
	revision int64         // the highest that was seen under the seal
}

var (
	errKeyMoved = errors.New("users/sqlite: the data key changed meanwhile")

	errNoOpener   = fmt.Errorf("%w: this program was not told how to open it", users.ErrSealClosed)
	errSealGone   = fmt.Errorf("%w: it has no seal any more; if an operator removed it, restart the daemon", users.ErrSealBroken)
	errSealNeeded = fmt.Errorf("%w: it has no seal, and the configuration asks for one", users.ErrSealBroken)
	errOlder      = fmt.Errorf("%w: it is an older copy than this process has seen; if an operator restored it, restart the daemon", users.ErrSealBroken)
	errRosterOpen = fmt.Errorf("%w: the list of its rows is not that of its revision", users.ErrSealBroken)
	errSchema     = fmt.Errorf("%w: it has other tables, indexes, triggers or views than Chancery makes", users.ErrSealBroken)
)

// keyMoves bounds how often a transaction begins anew because somebody else changed the data key meanwhile.
const keyMoves = 4

// withSealOrWithout runs act with the data key in force, nil where there is none, or with why it is not to be had. The key is
// found before act begins a transaction, since asking a seal may take seconds.
func (s *Store) withSealOrWithout(ctx context.Context, act func(key users.SealKey, closed error) error) error {
	for range keyMoves {
		key, closed, err := s.findKey(ctx)
		if err != nil {
			return s.explain(err)
		}
		if err := act(key, closed); !errors.Is(err, errKeyMoved) {
			return err
		}
	}
	return fmt.Errorf("the data key of the seal: %w", users.ErrStale)
}

// withSeal is withSealOrWithout for what cannot be done while the seal is closed.
func (s *Store) withSeal(ctx context.Context, act func(users.SealKey) error) error {
	return s.withSealOrWithout(ctx, func(key users.SealKey, closed error) error {
		if closed != nil {
			return closed
		}
		return act(key)
	})
}

func (s *Store) findKey(ctx context.Context) (key users.SealKey, closed, err error) {
	state, err := s.sealState(ctx)
	if err != nil {
		return nil, nil, err
	}
	if len(state.KeyID) == 0 {
		return nil, s.seal.unsealed(), nil
	}
	key, closed = s.seal.open(ctx, state)
	return key, closed, nil
}

// unsealed tells why a database without a seal is refused, or nil.
func (g *sealing) unsealed() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.sealed:
		return errSealGone
	case g.opener != nil && g.opener.Required():
		return errSealNeeded
	}
	return nil
}

func (g *sealing) open(ctx context.Context, state users.SealState) (users.SealKey, error) {
	g.mu.Lock()
	g.sealed = true
	g.mu.Unlock()
	if key := g.inForce(state.KeyID); key != nil {
		return key, nil
	}
	if g.opener == nil {
		return nil, errNoOpener
	}
	g.opening.Lock()
	defer g.opening.Unlock()
	if key := g.inForce(state.KeyID); key != nil {
		return key, nil
	}
	key, err := g.opener.OpenSeal(ctx, state)
	if err != nil {
		return nil, err
	}
	g.use(key)
	return key, nil
}

// inForce is the key at hand if it has the given ID.
func (g *sealing) inForce(id []byte) users.SealKey {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.key != nil && bytes.Equal(g.key.ID(), id) {
		return g.key
	}
	return nil
}

// use takes a key over and closes the one before. Whoever works with that at this moment meets ErrSealClosed.
func (g *sealing) use(key users.SealKey) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.key != nil && g.key != key {
		g.key.Close()
	}
	g.key = key
	g.sealed = g.sealed || key != nil
}

// forget overwrites the key at hand.
func (g *sealing) forget() { g.use(nil) }

// unsealedByUs says that this process itself has removed the seal.
func (g *sealing) unsealedByUs() {
	g.forget()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.sealed, g.revision = false, 0
}

// seen remembers how new the newest sealed state is that this process has read.
func (g *sealing) seen(r *reader, revision int64) {
	if r.key == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.revision = max(g.revision, revision)
}

// older tells whether a revision is behind one that was seen under the seal.
func (g *sealing) older(revision int64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return revision < g.revision
}

// sealState reads how the database is sealed, which nothing vouches for yet.
func (s *Store) sealState(ctx context.Context) (state users.SealState, err error) {
	tx, err := s.db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return state, err
	}
	defer tx.Rollback()
	r := &reader{ctx: ctx, tx: tx}
	state.KeyID, _, err = r.sealRow()
	if err != nil || len(state.KeyID) == 0 {
		return state, err
	}
	state.Seals, err = read(r, kindSeal, selectSeals+` ORDER BY id`, scanSeal)
	return state, err
}

// sealRow returns the data key's ID and the sealed roster; nothing where the database is not sealed.
func (r *reader) sealRow() (keyID, sealed []byte, err error) {
	err = r.tx.QueryRowContext(r.ctx, `SELECT key_id, roster FROM seal_state`).Scan(&keyID, &sealed)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil, nil
	}
	return keyID, sealed, err
}

// unseal prepares to read under the seal. Errors: errKeyMoved, or the database's own; that the seal does not
// open, or does not fit, is not an error here but r.closed.
func (r *reader) unseal(g *sealing, key users.SealKey, closed error) error {
	keyID, sealed, err := r.sealRow()
	if err != nil {
		return err
	}
	if closed != nil {
		r.closed = closed
		return nil
	}
	if key == nil && len(keyID) == 0 {
		return nil
	}
	if key == nil || !bytes.Equal(key.ID(), keyID) {
		return errKeyMoved
	}
	revision, err := r.revision()
	if err != nil {
		return err
	}
	if g.older(revision) {
		r.closed = errOlder
		return nil
	}
	return r.openRoster(key, sealed, revision)
}

func (r *reader) openRoster(key users.SealKey, sealed []byte, revision int64) error {
	err := r.refuseOtherSchema()
	if errors.Is(err, errSchema) {
		r.closed = err
		return nil
	}
	if err != nil {
		return err
	}
	encoded, err := key.Open(sealed, rosterContext(revision))
	if errors.Is(err, users.ErrSealClosed) {
		return errKeyMoved
	}
	if err != nil {
		r.closed = errRosterOpen
		return nil
	}
	if r.listed, err = decodeRoster(encoded); err != nil {
		r.closed = fmt.Errorf("%w: %w", users.ErrSealBroken, err)
		return nil
	}
	r.key, r.found = key, make(roster)
	return nil
}

func rosterContext(revision int64) []byte {
	return binary.BigEndian.AppendUint64([]byte("chancery roster\x00"), uint64(revision))
}

func wrapContext(grantID int64) []byte {
	return binary.BigEndian.AppendUint64([]byte("chancery grant wrap\x00"), uint64(grantID))
}

// check refuses a row that is not what was written under the seal.
func (r *reader) check(kind string, rows *sql.Rows) error {
	if r.found == nil || kinds[kind] == 0 {
		return nil
	}
	sum, err := digestOf(kind, rows)
	if err != nil {
		return err
	}
	row := rowID{kind, identifier(rows)}
	r.found[row] = sum
	if r.listed != nil && r.refuses(row) {
		return users.ErrUnsealedRow
	}
	return nil
}

// missed says which rows were taken away.
func (r *reader) missed() {
	for row := range r.listed {
		if _, there := r.found[row]; !there {
			r.leaveOut(row.kind, row.id, fmt.Errorf("%w: somebody took it away", users.ErrUnsealedRow))
		}
	}
}

// openGrant is scanGrant, with the wraps decrypted.
func (r *reader) openGrant(rows *sql.Rows) (users.Grant, error) {
	g, err := scanGrant(rows)
	if err != nil || r.key == nil {
		return g, err
	}
	if g.Wrapped, err = r.key.Open(g.Wrapped, wrapContext(g.ID)); err != nil {
		return g, err
	}
	if g.Staged != nil {
		g.Staged, err = r.key.Open(g.Staged, wrapContext(g.ID))
	}
	return g, err
}

func scanSeal(rows *sql.Rows) (seal users.Seal, err error) {
	var id, created int64
	err = rows.Scan(&id, &seal.Name, &seal.Kind, &seal.Parameters, &seal.Wrapped, &created)
	seal.CreatedAt = fromUnix(created)
	return seal, err
}
