package admin

import (
	"fmt"

	"chancery/access"
	"chancery/users"
)

// deriver makes an access key of a passphrase, as access.DeriveKey does.
type deriver func(passphrase []byte, p access.Parameters) (*access.Key, error)

// keyring derives the access keys of one passphrase, each once: Argon2id is slow on purpose.
type keyring struct {
	passphrase []byte
	derive     deriver
	keys       map[access.Parameters]*access.Key
}

func (o *Office) keyring(passphrase []byte) *keyring {
	return &keyring{passphrase: passphrase, derive: o.deriver(), keys: make(map[access.Parameters]*access.Key)}
}

func (o *Office) deriver() deriver {
	if o.derive == nil {
		return access.DeriveKey
	}
	return o.derive
}

func (k *keyring) key(p access.Parameters) (*access.Key, error) {
	if len(k.passphrase) > access.MaxPassphrase {
		return nil, access.ErrWrongPassphrase
	}
	if key, ok := k.keys[p]; ok {
		return key, nil
	}
	key, err := k.derive(k.passphrase, p)
	if err != nil {
		return nil, err
	}
	k.keys[p] = key
	return key, nil
}

// proof is a grant that its holder's passphrase has opened. Clear it after use.
type proof struct {
	user  *users.User
	grant *users.Grant
	token users.Token
	key   *access.Key
	pins  users.PINs
}

func (p *proof) clear() { p.pins.Clear() }

// prove opens a grant with its holder's passphrase.
func (o *Office) prove(s *users.Snapshot, user *users.User, grant *users.Grant, ring *keyring) (*proof, error) {
	if grant.Expired(o.now()) {
		return nil, fmt.Errorf("%w: the grant of user %q ran out on %s: a manager has to revoke it and grant anew", ErrExpired, user.Name, grant.Expires.UTC().Format("2006-01-02 15:04 MST"))
	}
	record, ok := s.TokenByID(grant.TokenID)
	if !ok {
		return nil, fmt.Errorf("admin: token of grant %d: %w", grant.ID, users.ErrNotFound)
	}
	key, err := ring.key(grant.Access.Parameters)
	if err != nil {
		return nil, fmt.Errorf("admin: user %q: %w", user.Name, err)
	}
	pins, err := s.Unwrap(grant, key)
	if err != nil {
		return nil, fmt.Errorf("admin: user %q: %w", user.Name, err)
	}
	return &proof{user: user, grant: grant, token: *record, key: key, pins: pins}, nil
}

// enabledUser finds a user who may act or be granted something.
func enabledUser(s *users.Snapshot, name string) (*users.User, error) {
	user, ok := s.User(name)
	if !ok {
		return nil, fmt.Errorf("admin: user %q: %w", name, users.ErrNotFound)
	}
	if user.Disabled {
		return nil, fmt.Errorf("%w %q: enable them first", ErrUserDisabled, name)
	}
	return user, nil
}

func namedToken(s *users.Snapshot, name string) (*users.Token, error) {
	t, ok := s.Token(name)
	if !ok {
		return nil, fmt.Errorf("admin: token %q: %w", name, users.ErrNotFound)
	}
	return t, nil
}

func namedKey(s *users.Snapshot, name string) (*users.Key, error) {
	k, ok := s.Key(name)
	if !ok {
		return nil, fmt.Errorf("admin: key %q: %w", name, users.ErrNotFound)
	}
	return k, nil
}

// tokenManager proves that the actor manages the token.
func (o *Office) tokenManager(s *users.Snapshot, actor Actor, name string, ring *keyring) (*proof, error) {
	record, err := namedToken(s, name)
	if err != nil {
		return nil, err
	}
	user, err := enabledUser(s, actor.User)
	if err != nil {
		return nil, err
	}
	grant, ok := s.TokenGrant(user.ID, record.ID)
	if !ok {
		return nil, fmt.Errorf("%w: user %q is not a manager of token %q; its managers are %s", ErrNotManager, actor.User, name, managers(s, Target{Token: name}))
	}
	return o.prove(s, user, grant, ring)
}

// keyManager proves that the actor manages the key.
func (o *Office) keyManager(s *users.Snapshot, actor Actor, name string, ring *keyring) (*proof, error) {
	key, err := namedKey(s, name)
	if err != nil {
		return nil, err
	}
	user, err := enabledUser(s, actor.User)
	if err != nil {
		return nil, err
	}
	grant, ok := s.KeyGrant(user.ID, key.ID)
	if !ok || grant.Role != users.RoleManager {
		return nil, fmt.Errorf("%w: user %q is not a manager of key %q; its managers are %s", ErrNotManager, actor.User, name, managers(s, Target{Key: name}))
	}
	return o.prove(s, user, grant, ring)
}

// recipient is a grantee whose public access key is known.
type recipient struct {
	name string
	key  access.PublicKey
	own  bool // the actor with the access key that they act with
}

// recipient checks a grantee and derives their access key. It is done once, before any attempt.
func (o *Office) recipient(g Grantee, actor string) (recipient, error) {
	if g.User == "" {
		g.User = actor
	}
	switch {
	case g.Passphrase != nil && g.Enrolment != nil:
		return recipient{}, fmt.Errorf("%w: user %q: give either a passphrase or an enrolment", ErrRequest, g.User)
	case g.Enrolment != nil && g.Enrolment.User != g.User:
		return recipient{}, fmt.Errorf("%w: the enrolment is by user %q, not %q", ErrRequest, g.Enrolment.User, g.User)
	case g.Enrolment != nil:
		return recipient{name: g.User, key: g.Enrolment.Key}, nil
	case g.Passphrase != nil:
		return o.derived(g)
	case g.User == actor && actor != "":
		return recipient{name: g.User, own: true}, nil
	}
	return recipient{}, fmt.Errorf("%w: user %q: a passphrase or an enrolment is needed", ErrRequest, g.User)
}

func (o *Office) derived(g Grantee) (recipient, error) {
	if err := access.CheckPassphrase(g.Passphrase, o.minPassphrase()); err != nil {
		return recipient{}, fmt.Errorf("%w: user %q: %w", ErrRequest, g.User, err)
	}
	key, err := o.deriver()(g.Passphrase, o.parameters())
	if err != nil {
		return recipient{}, fmt.Errorf("admin: user %q: %w", g.User, err)
	}
	return recipient{name: g.User, key: key.Public()}, nil
}

// accessKey is where the recipient's wraps go.
func (r recipient) accessKey(actor *access.Key) access.PublicKey {
	if r.own {
		return actor.Public()
	}
	return r.key
}

// seal fills in access key, wraps and PIN version of a grant whose other fields stand.
func seal(grant *users.Grant, to access.PublicKey, pins users.PINs, binding access.Binding) error {
	wrapped, err := access.Wrap(pins.Current, to, binding)
	if err != nil {
		return err
	}
	grant.Access, grant.Wrapped, grant.Staged = to, wrapped, nil
	if pins.Staged == nil {
		return nil
	}
	grant.Staged, err = access.Wrap(pins.Staged, to, binding)
	return err
}
