package users

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"chancery/access"
)

// Snapshot is all of a Store at one moment. It is immutable: share it freely, change nothing in it.
type Snapshot struct {
	Revision int64

	users  []User // each list by ascending ID
	tokens []Token
	keys   []Key
	grants []Grant

	unreadable []Unreadable
	closed     error

	usersByName  map[string]*User
	usersByID    map[int64]*User
	tokensByName map[string]*Token
	tokensByID   map[int64]*Token
	keysByName   map[string]*Key
	keysByID     map[int64]*Key
	grantsByID   map[int64]*Grant
	grantsByUser map[int64][]*Grant
}

// Unreadable is a row that is left out of a Snapshot, so that nobody can use it.
type Unreadable struct {
	Kind string // user, token, replica, key, certificate, grant, seal or failed unlocks of user
	ID   int64
	Err  error // wraps ErrUnreadable
}

// String tells for people which row it is and why it is left out.
func (u Unreadable) String() string { return fmt.Sprintf("%s %d: %s", u.Kind, u.ID, u.Err) }

// NewSnapshot indexes what a Store has read, and what it could not read. It keeps the slices and sorts them by ID.
func NewSnapshot(revision int64, users []User, tokens []Token, keys []Key, grants []Grant, unreadable ...Unreadable) *Snapshot {
	slices.SortFunc(users, func(a, b User) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(tokens, func(a, b Token) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(keys, func(a, b Key) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(grants, func(a, b Grant) int { return cmp.Compare(a.ID, b.ID) })
	s := &Snapshot{
		Revision: revision, users: users, tokens: tokens, keys: keys, grants: grants, unreadable: unreadable,
		usersByName: index(users, func(u *User) string { return u.Name }), usersByID: index(users, func(u *User) int64 { return u.ID }),
		tokensByName: index(tokens, func(t *Token) string { return t.Name }), tokensByID: index(tokens, func(t *Token) int64 { return t.ID }),
		keysByName: index(keys, func(k *Key) string { return k.Name }), keysByID: index(keys, func(k *Key) int64 { return k.ID }),
		grantsByID:   index(grants, func(g *Grant) int64 { return g.ID }),
		grantsByUser: make(map[int64][]*Grant),
	}
	for i := range grants {
		g := &grants[i]
		s.grantsByUser[g.UserID] = append(s.grantsByUser[g.UserID], g)
	}
	return s
}

// NewClosedSnapshot is what can be read of a sealed Store while the seal does not open. What it has is not to be relied
// on, and it has no grants. Why wraps ErrSealClosed or ErrSealBroken.
func NewClosedSnapshot(revision int64, users []User, tokens []Token, keys []Key, why error, unreadable ...Unreadable) *Snapshot {
	s := NewSnapshot(revision, users, tokens, keys, nil, unreadable...)
	s.closed = why
	return s
}

// Closed tells why the seal over the Store did not open, or nil. A later Snapshot of the same Revision may be open.
func (s *Snapshot) Closed() error { return s.closed }

// Users returns all users by ascending ID.
func (s *Snapshot) Users() []User { return s.users }

// Tokens returns all tokens by ascending ID.
func (s *Snapshot) Tokens() []Token { return s.tokens }

// Keys returns all keys by ascending ID.
func (s *Snapshot) Keys() []Key { return s.keys }

// Grants returns all grants by ascending ID.
func (s *Snapshot) Grants() []Grant { return s.grants }

// Unreadable returns the rows that were left out.
func (s *Snapshot) Unreadable() []Unreadable { return s.unreadable }

// User finds a user by name.
func (s *Snapshot) User(name string) (*User, bool) { return found(s.usersByName, name) }

// UserByID finds a user by ID.
func (s *Snapshot) UserByID(id int64) (*User, bool) { return found(s.usersByID, id) }

// Token finds a token by name.
func (s *Snapshot) Token(name string) (*Token, bool) { return found(s.tokensByName, name) }

// TokenByID finds a token by ID.
func (s *Snapshot) TokenByID(id int64) (*Token, bool) { return found(s.tokensByID, id) }

// Key finds a key by name.
func (s *Snapshot) Key(name string) (*Key, bool) { return found(s.keysByName, name) }

// KeyByID finds a key by ID.
func (s *Snapshot) KeyByID(id int64) (*Key, bool) { return found(s.keysByID, id) }

// Grant finds a grant by ID.
func (s *Snapshot) Grant(id int64) (*Grant, bool) { return found(s.grantsByID, id) }

// GrantsOf returns a user's grants by ascending ID.
func (s *Snapshot) GrantsOf(userID int64) []*Grant { return s.grantsByUser[userID] }

// KeyGrant finds the user's grant on a key.
func (s *Snapshot) KeyGrant(userID, keyID int64) (*Grant, bool) {
	for _, g := range s.grantsByUser[userID] {
		if g.KeyID == keyID && keyID != 0 {
			return g, true
		}
	}
	return nil, false
}

// TokenGrant finds the user's token manager's grant on a token.
func (s *Snapshot) TokenGrant(userID, tokenID int64) (*Grant, bool) {
	for _, g := range s.grantsByUser[userID] {
		if g.TokenID == tokenID && g.Role == RoleTokenManager {
			return g, true
		}
	}
	return nil, false
}

// Usable finds the user's grant on a key if it allows signing at the given time: user and key enabled, grant not expired.
func (s *Snapshot) Usable(userID, keyID int64, now time.Time) (*Grant, bool) {
	user, userFound := s.UserByID(userID)
	key, keyFound := s.KeyByID(keyID)
	grant, grantFound := s.KeyGrant(userID, keyID)
	if !userFound || !keyFound || !grantFound {
		return nil, false
	}
	if user.Disabled || key.Disabled || grant.Expired(now) {
		return nil, false
	}
	return grant, true
}

// Binding is what the grant's wrapped PIN is bound to.
func (s *Snapshot) Binding(g *Grant) (access.Binding, bool) {
	user, userFound := s.UserByID(g.UserID)
	t, tokenFound := s.TokenByID(g.TokenID)
	if !userFound || !tokenFound {
		return access.Binding{}, false
	}
	b := access.Binding{TokenSerial: t.Serial, User: user.Name, Role: string(g.Role), Expires: g.Expires}
	if g.KeyID == 0 {
		return b, true
	}
	key, keyFound := s.KeyByID(g.KeyID)
	if !keyFound {
		return access.Binding{}, false
	}
	b.KeyHandle = key.Handle
	return b, true
}

func index[K comparable, V any](values []V, key func(*V) K) map[K]*V {
	m := make(map[K]*V, len(values))
	for i := range values {
		m[key(&values[i])] = &values[i]
	}
	return m
}

func found[K comparable, V any](m map[K]*V, key K) (*V, bool) {
	v, ok := m[key]
	return v, ok
}
