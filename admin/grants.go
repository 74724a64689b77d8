package admin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"chancery/access"
	"chancery/users"
)

// GrantSpec says what to grant: RoleManager or RoleSigner on a key, or
// RoleTokenManager on a token.
type GrantSpec struct {
	Target
	Role    users.Role
	Expires time.Time // zero: never; whole seconds count

	Lease     time.Duration // how long an unlock lasts, in whole seconds; 0: as long as the server lets it. For keys only
	LeaseUses int           // signatures that an unlock is good for; 0: any number. For keys only
	Priority  int           // 0 to users.MaxPriority: how soon requests get their turn at the token. For keys only
}

func (g GrantSpec) check(now time.Time) error {
	if err := g.Target.check(); err != nil {
		return err
	}
	if g.Lease < 0 || g.LeaseUses < 0 || g.Token != "" && (g.Lease > 0 || g.LeaseUses > 0) {
		return fmt.Errorf("%w: a lease limits the unlocks of a key, by a positive time or number", ErrRequest)
	}
	if err := checkPriority(g.Target, g.Priority); err != nil {
		return err
	}
	switch g.Role {
	case users.RoleTokenManager:
		if g.Token == "" {
			return fmt.Errorf("%w: the role %s is granted on a token, not on a key", ErrRequest, g.Role)
		}
	case users.RoleManager, users.RoleSigner:
		if g.Key == "" {
			return fmt.Errorf("%w: the role %s is granted on a key, not on a token", ErrRequest, g.Role)
		}
	default:
		return fmt.Errorf("%w: role %q is none of %s, %s and %s", ErrRequest, g.Role, users.RoleSigner, users.RoleManager, users.RoleTokenManager)
	}
	if !g.Expires.IsZero() && !g.Expires.After(now) {
		return fmt.Errorf("%w: the grant would have run out on %s already", ErrRequest, g.Expires.UTC().Format(timeLayout))
	}
	return nil
}

const timeLayout = "2006-01-02 15:04:05 MST"

// AddGrant grants a key or a token to a user. A key is granted by one of its managers, a token by one of its token
// managers. It needs no token, only the actor's passphrase. Errors: users.ErrExists when
// the user holds a grant on it already; ErrNotManager, ErrExpired, ErrUserDisabled, ErrRequest, access.ErrWrongPassphrase.
func (o *Office) AddGrant(ctx context.Context, actor Actor, spec GrantSpec, grantee Grantee) (users.Grant, error) {
	spec.Expires = spec.Expires.Truncate(time.Second)
	if err := spec.check(o.now()); err != nil {
		return users.Grant{}, err
	}
	ring := o.keyring(actor.Passphrase)
	to, err := o.recipient(grantee, actor.User)
	if err != nil {
		return users.Grant{}, err
	}
	var added users.Grant
	err = o.retrying(ctx, func(s *users.Snapshot) error {
		p, err := o.manager(s, actor, spec.Target, ring)
		if err != nil {
			return err
		}
		defer p.clear()
		grant, err := newGrant(s, p, spec, to)
		if err != nil {
			return err
		}
		added, err = o.Store.AddGrant(ctx, grant)
		return err
	})
	return added, err
}

// manager proves that the actor may grant the target.
func (o *Office) manager(s *users.Snapshot, actor Actor, target Target, ring *keyring) (*proof, error) {
	if target.Token != "" {
		return o.tokenManager(s, actor, target.Token, ring)
	}
	return o.keyManager(s, actor, target.Key, ring)
}

func newGrant(s *users.Snapshot, p *proof, spec GrantSpec, to recipient) (users.Grant, error) {
	user, err := enabledUser(s, to.name)
	if err != nil {
		return users.Grant{}, err
	}
	if held, found := grantOn(s, user.ID, spec.Target); found {
		return users.Grant{}, fmt.Errorf("admin: user %q holds the role %s on %s: %w: revoke that grant first", user.Name, held.Role, spec.Target, users.ErrExists)
	}
	grant := users.Grant{
		UserID: user.ID, TokenID: p.token.ID, Role: spec.Role, Expires: spec.Expires,
		PINVersion: p.token.PINVersion, CreatedBy: p.user.Name, Lease: spec.Lease, LeaseUses: spec.LeaseUses, Priority: spec.Priority,
	}
	if spec.Key != "" {
		key, err := namedKey(s, spec.Key)
		if err != nil {
			return users.Grant{}, err
		}
		grant.KeyID = key.ID
	}
	binding, ok := s.Binding(&grant)
	if !ok {
		return users.Grant{}, fmt.Errorf("admin: %s: %w", spec.Target, users.ErrNotFound)
	}
	err = seal(&grant, to.accessKey(p.key), p.pins, binding)
	return grant, err
}

// grantOn finds the user's grant on a key, or their token manager's grant on a token.
func grantOn(s *users.Snapshot, userID int64, target Target) (*users.Grant, bool) {
	if target.Token != "" {
		t, ok := s.Token(target.Token)
		if !ok {
			return nil, false
		}
		return s.TokenGrant(userID, t.ID)
	}
	k, ok := s.Key(target.Key)
	if !ok {
		return nil, false
	}
	return s.KeyGrant(userID, k.ID)
}

// heldGrant is grantOn with errors that tell what is missing.
func heldGrant(s *users.Snapshot, user string, target Target) (*users.User, *users.Grant, error) {
	holder, ok := s.User(user)
	if !ok {
		return nil, nil, fmt.Errorf("admin: user %q: %w", user, users.ErrNotFound)
	}
	if target.Token != "" {
		if _, err := namedToken(s, target.Token); err != nil {
			return nil, nil, err
		}
	} else if _, err := namedKey(s, target.Key); err != nil {
		return nil, nil, err
	}
	grant, ok := grantOn(s, holder.ID, target)
	if !ok {
		return nil, nil, fmt.Errorf("admin: grant of user %q on %s: %w", user, target, users.ErrNotFound)
	}
	return holder, grant, nil
}

// RevokeGrant takes a user's grant on a key, or their token manager's grant on a
// token, away at once. The last manager's is refused with ErrLastManager unless forced: nobody
// could grant the key, or manage the token, any more.
func (o *Office) RevokeGrant(ctx context.Context, user string, target Target, force bool) error {
	if err := target.check(); err != nil {
		return err
	}
	return o.retrying(ctx, func(s *users.Snapshot) error {
		_, grant, err := heldGrant(s, user, target)
		if err != nil {
			return err
		}
		if !force && o.isLastManager(s, grant) {
			return fmt.Errorf("%w: user %q is the only one who manages %s: grant that to somebody else first", ErrLastManager, user, target)
		}
		return o.Store.RevokeGrant(ctx, grant.ID, decidedAt(s, force))
	})
}

// SetPriority changes how soon a user's requests to sign with a key get their turn, from 0 to users.MaxPriority. Sessions
// that have the key unlocked have to unlock it again.
func (o *Office) SetPriority(ctx context.Context, user string, target Target, priority int) (users.Grant, error) {
	if err := target.check(); err != nil {
		return users.Grant{}, err
	}
	if err := checkPriority(target, priority); err != nil {
		return users.Grant{}, err
	}
	var changed users.Grant
	err := o.retrying(ctx, func(s *users.Snapshot) error {
		_, held, err := heldGrant(s, user, target)
		if err != nil {
			return err
		}
		grant := *held
		grant.Priority = priority
		changed, err = o.Store.ReplaceGrant(ctx, grant)
		return err
	})
	return changed, err
}

func checkPriority(target Target, priority int) error {
	if priority < 0 || priority > users.MaxPriority || priority > 0 && target.Token != "" {
		return fmt.Errorf("%w: the priority of a grant on a key is from 0 to %d", ErrRequest, users.MaxPriority)
	}
	return nil
}

// DeleteUser removes a user with all their grants. Who is the last manager of a key or token
// is kept with ErrLastManager unless forced.
func (o *Office) DeleteUser(ctx context.Context, name string, force bool) error {
	return o.retrying(ctx, func(s *users.Snapshot) error {
		user, ok := s.User(name)
		if !ok {
			return fmt.Errorf("admin: user %q: %w", name, users.ErrNotFound)
		}
		for _, grant := range s.GrantsOf(user.ID) {
			if !force && o.isLastManager(s, grant) {
				return fmt.Errorf("%w: user %q is the only one who manages %s: grant that to somebody else first", ErrLastManager, name, targetOf(s, grant))
			}
		}
		return o.Store.DeleteUser(ctx, name, decidedAt(s, force))
	})
}

// decidedAt is the revision that must not have moved since it was seen who else manages something: two who each take one of the
// last two managers away would leave none. By force it may.
func decidedAt(s *users.Snapshot, force bool) int64 {
	if force {
		return 0
	}
	return s.Revision
}

// isLastManager tells whether the grant manages something that nobody else manages.
func (o *Office) isLastManager(s *users.Snapshot, grant *users.Grant) bool {
	if grant.Role == users.RoleSigner || grant.Expired(o.now()) {
		return false
	}
	for _, other := range s.Grants() {
		holder, ok := s.UserByID(other.UserID)
		if !ok || holder.Disabled || other.ID == grant.ID || other.Expired(o.now()) {
			continue
		}
		if other.Role == grant.Role && other.KeyID == grant.KeyID && other.TokenID == grant.TokenID {
			return false
		}
	}
	return true
}

func targetOf(s *users.Snapshot, grant *users.Grant) Target {
	if key, ok := s.KeyByID(grant.KeyID); ok {
		return Target{Key: key.Name}
	}
	if t, ok := s.TokenByID(grant.TokenID); ok {
		return Target{Token: t.Name}
	}
	return Target{}
}

// managers names who manages the target, for error texts.
func managers(s *users.Snapshot, target Target) string {
	var names []string
	for _, user := range s.Users() {
		grant, ok := grantOn(s, user.ID, target)
		if ok && grant.Role != users.RoleSigner {
			names = append(names, fmt.Sprintf("%q", user.Name))
		}
	}
	if len(names) == 0 {
		return "nobody"
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// ChangePassphrase makes one grant open with another passphrase, typed here or
// enrolled. The grantee is the user themself; the old passphrase proves it. Other grants of the user stay as they are.
func (o *Office) ChangePassphrase(ctx context.Context, actor Actor, target Target, replacement Grantee) (users.Grant, error) {
	if err := target.check(); err != nil {
		return users.Grant{}, err
	}
	to, err := o.recipient(replacement, actor.User)
	if err != nil {
		return users.Grant{}, err
	}
	if to.own || to.name != actor.User {
		return users.Grant{}, fmt.Errorf("%w: a new passphrase or enrolment of user %q is needed", ErrRequest, actor.User)
	}
	ring := o.keyring(actor.Passphrase)
	var changed users.Grant
	err = o.retrying(ctx, func(s *users.Snapshot) error {
		changed, err = o.reseal(ctx, s, actor, target, to.key, ring)
		return err
	})
	return changed, err
}

func (o *Office) reseal(ctx context.Context, s *users.Snapshot, actor Actor, target Target, to access.PublicKey, ring *keyring) (users.Grant, error) {
	user, err := enabledUser(s, actor.User)
	if err != nil {
		return users.Grant{}, err
	}
	_, held, err := heldGrant(s, actor.User, target)
	if err != nil {
		return users.Grant{}, err
	}
	p, err := o.prove(s, user, held, ring)
	if err != nil {
		return users.Grant{}, err
	}
	defer p.clear()
	binding, ok := s.Binding(held)
	if !ok {
		return users.Grant{}, errors.New("admin: grant without user, token or key")
	}
	grant := *held
	if err := seal(&grant, to, p.pins, binding); err != nil {
		return users.Grant{}, err
	}
	return o.Store.ReplaceGrant(ctx, grant)
}
