package sqlite

import (
	"cmp"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"chancery/access"
	"chancery/token"
	"chancery/users"
)

// The kinds of rows.
const (
	kindUser        = "user"
	kindToken       = "token"
	kindReplica     = "replica"
	kindKey         = "key"
	kindCertificate = "certificate"
	kindGrant       = "grant"
	kindSeal        = "seal"
	kindFailures    = "failed unlocks of user" // identified by the user
)

// What is read of each kind.
const (
	selectUsers  = `SELECT id, name, disabled, created_at FROM users`
	selectTokens = `SELECT id, name, driver, location, serial, label, hardware, max_sessions, reload,
		pin_version, pin_staged, pin_rejected, staged_rejected, created_at, pin_since FROM tokens`
	selectReplicas     = `SELECT id, token_id, name, driver, location, serial, label, max_sessions, created_at FROM replicas`
	selectKeys         = `SELECT id, name, token_id, token_key_id, algorithm, public, handle, origin, disabled, created_at, attestation FROM keys`
	selectCertificates = `SELECT id, key_id, kind, name, fingerprint, armored, created_at FROM certificates`
	selectGrants       = `SELECT grants.id AS id, user_id, token_id, key_id, role, expires, generation, coalesce(pin_version, 0) AS pin_version,
		access_key, wrapped, staged, grants.created_at AS created_at, created_by, lease_seconds, lease_uses, priority
		FROM grants LEFT JOIN tokens ON tokens.id = token_id`
	selectSeals    = `SELECT id, name, kind, parameters, wrapped, created_at FROM seals`
	selectFailures = `SELECT user_id, key_id, count, last_at FROM unlock_failures ORDER BY user_id, key_id`
)

// Snapshot reads everything in one transaction. What Chancery cannot have written, or not under the seal, is left out,
// with all that depends on it.
func (s *Store) Snapshot(ctx context.Context) (snapshot *users.Snapshot, err error) {
	err = s.reading(ctx, func(r *reader) error {
		if snapshot, err = r.all(); err == nil {
			s.seal.seen(r, snapshot.Revision)
		}
		return err
	})
	return snapshot, err
}

// reading runs act within one transaction that has found how the database is sealed.
func (s *Store) reading(ctx context.Context, act func(*reader) error) error {
	return s.withSealOrWithout(ctx, func(key users.SealKey, closed error) error {
		tx, err := s.db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
		if err != nil {
			return s.explain(err)
		}
		defer tx.Rollback()
		r := &reader{ctx: ctx, tx: tx}
		if err := r.unseal(&s.seal, key, closed); err != nil {
			return s.explain(err)
		}
		return s.explain(act(r))
	})
}

// reader reads rows within one transaction.
type reader struct {
	ctx        context.Context
	tx         *sql.Tx
	unreadable []users.Unreadable

	key    users.SealKey // nil: not sealed, or closed
	closed error         // why nothing can be relied on, or nil
	listed roster        // what was written under the seal
	found  roster        // what was read; nil where nobody wants to know
}

func (r *reader) revision() (number int64, err error) {
	err = r.tx.QueryRowContext(r.ctx, `SELECT number FROM revision`).Scan(&number)
	return number, err
}

func (r *reader) all() (*users.Snapshot, error) {
	revision, err := r.revision()
	if err != nil {
		return nil, err
	}
	people, err := read(r, kindUser, selectUsers, scanUser)
	if err != nil {
		return nil, err
	}
	tokens, err := r.tokens()
	if err != nil {
		return nil, err
	}
	keys, err := r.keys()
	if err != nil {
		return nil, err
	}
	if r.closed != nil {
		keys, _ = r.complete(people, tokens, keys, nil)
		return users.NewClosedSnapshot(revision, people, tokens, keys, r.closed, r.unreadable...), nil
	}
	grants, err := read(r, kindGrant, selectGrants, r.openGrant)
	if err != nil {
		return nil, err
	}
	if _, err := read(r, kindSeal, selectSeals, scanSeal); err != nil {
		return nil, err
	}
	r.missed()
	keys, grants = r.complete(people, tokens, keys, grants)
	return users.NewSnapshot(revision, people, tokens, keys, grants, r.unreadable...), nil
}

// complete leaves out what refers to something that is not there: it was left out, or somebody wrote to the database
// without its rules.
func (r *reader) complete(people []users.User, tokens []users.Token, keys []users.Key, grants []users.Grant) ([]users.Key, []users.Grant) {
	userIDs, tokenIDs, keyIDs := make(map[int64]bool), make(map[int64]bool), make(map[int64]bool)
	for _, u := range people {
		userIDs[u.ID] = true
	}
	for _, t := range tokens {
		tokenIDs[t.ID] = true
	}
	keys = slices.DeleteFunc(keys, func(k users.Key) bool {
		if !tokenIDs[k.TokenID] {
			r.leaveOut(kindKey, k.ID, fmt.Errorf("its token %d is missing or cannot be read", k.TokenID))
			return true
		}
		keyIDs[k.ID] = true
		return false
	})
	grants = slices.DeleteFunc(grants, func(g users.Grant) bool {
		if userIDs[g.UserID] && tokenIDs[g.TokenID] && (g.KeyID == 0 || keyIDs[g.KeyID]) {
			return false
		}
		r.leaveOut(kindGrant, g.ID, errors.New("its user, token or key is missing or cannot be read"))
		return true
	})
	return keys, grants
}

func (r *reader) leaveOut(kind string, id int64, why error) {
	r.unreadable = append(r.unreadable, users.Unreadable{Kind: kind, ID: id, Err: fmt.Errorf("%w: %w", users.ErrUnreadable, why)})
}

// read scans every row of a query whose first column is the identifier. A row that cannot be scanned, or is not what was
// written under the seal, is left out; the error is the database's.
func read[T any](r *reader, kind, query string, scan func(*sql.Rows) (T, error)) ([]T, error) {
	rows, err := r.tx.QueryContext(r.ctx, query)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []T
	for rows.Next() {
		err := r.check(kind, rows)
		var value T
		if err == nil {
			value, err = scan(rows)
		}
		if errors.Is(err, users.ErrSealClosed) { // somebody else put another data key in place of this one
			return nil, errKeyMoved
		}
		if err != nil {
			r.leaveOut(kind, identifier(rows), err)
			continue
		}
		all = append(all, value)
	}
	return all, rows.Err()
}

// identifier is the first column of a row that could not be scanned, or 0.
func identifier(rows *sql.Rows) int64 {
	columns, err := rows.Columns()
	if err != nil {
		return 0
	}
	values, targets := make([]any, len(columns)), make([]any, len(columns))
	for i := range values {
		targets[i] = &values[i]
	}
	if err := rows.Scan(targets...); err != nil {
		return 0
	}
	id, _ := values[0].(int64)
	return id
}

func scanUser(rows *sql.Rows) (u users.User, err error) {
	var created int64
	err = rows.Scan(&u.ID, &u.Name, &u.Disabled, &created)
	u.CreatedAt = fromUnix(created)
	return u, err
}

func scanToken(rows *sql.Rows) (t users.Token, err error) {
	var created, since int64
	err = rows.Scan(&t.ID, &t.Name, &t.Driver, &t.Location, &t.Serial, &t.Label, &t.Hardware, &t.MaxSessions, &t.Reload,
		&t.PINVersion, &t.PINStaged, &t.PINRejected, &t.StagedRejected, &created, &since)
	t.CreatedAt = fromUnix(created)
	return t, err
}

func scanGrant(rows *sql.Rows) (g users.Grant, err error) {
	var key, expires sql.NullInt64
	var created, lease int64
	var accessKey []byte
	err = rows.Scan(&g.ID, &g.UserID, &g.TokenID, &key, &g.Role, &expires, &g.Generation, &g.PINVersion, &accessKey,
		&g.Wrapped, &g.Staged, &created, &g.CreatedBy, &lease, &g.LeaseUses, &g.Priority)
	if err != nil {
		return g, err
	}
	g.KeyID, g.CreatedAt, g.Lease = key.Int64, fromUnix(created), time.Duration(lease)*time.Second
	if expires.Valid {
		g.Expires = fromUnix(expires.Int64)
	}
	if g.Access, err = access.ParsePublicKey(accessKey); err != nil {
		return g, fmt.Errorf("its access key: %w", err)
	}
	return g, nil
}

func scanCertificate(rows *sql.Rows) (c users.Certificate, err error) {
	var created int64
	err = rows.Scan(&c.ID, &c.KeyID, &c.Kind, &c.Name, &c.Fingerprint, &c.Armored, &created)
	c.CreatedAt = fromUnix(created)
	return c, err
}

func scanKey(rows *sql.Rows) (k users.Key, err error) {
	var created int64
	err = rows.Scan(&k.ID, &k.Name, &k.TokenID, &k.TokenKeyID, &k.Algorithm, &k.Public, &k.Handle, &k.Origin, &k.Disabled, &created, &k.Attestation)
	if err != nil {
		return k, err
	}
	k.CreatedAt = fromUnix(created)
	return k, checkKey(&k)
}

// keys reads all keys with their certificates.
func (r *reader) keys() ([]users.Key, error) {
	certificates, err := read(r, kindCertificate, selectCertificates, scanCertificate)
	if err != nil {
		return nil, err
	}
	keys, err := read(r, kindKey, selectKeys, scanKey)
	if err != nil {
		return nil, err
	}
	ofKey := make(map[int64][]users.Certificate)
	for _, certificate := range certificates {
		ofKey[certificate.KeyID] = append(ofKey[certificate.KeyID], certificate)
	}
	for i := range keys {
		keys[i].Certificates = ofKey[keys[i].ID]
		sortCertificates(keys[i].Certificates)
	}
	return keys, nil
}

// sortCertificates puts X.509 first, then OpenPGP, each by ascending ID.
func sortCertificates(certificates []users.Certificate) {
	slices.SortFunc(certificates, func(a, b users.Certificate) int {
		return cmp.Or(cmp.Compare(b.Kind, a.Kind), cmp.Compare(a.ID, b.ID))
	})
}

// checkKey refuses a key whose handle, to which its grants are bound, is not its public half's.
func checkKey(k *users.Key) error {
	if _, err := token.ParseAlgorithm(string(k.Algorithm)); err != nil {
		return fmt.Errorf("%q: %w", k.Name, err)
	}
	sum := sha256.Sum256(k.Public)
	if strings.ToUpper(hex.EncodeToString(sum[:])) != k.Handle {
		return fmt.Errorf("%q: its handle is not that of its public half", k.Name)
	}
	return nil
}
