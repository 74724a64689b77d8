package admin

import (
	"context"
	"errors"
	"fmt"

	"chancery/token"
	"chancery/users"
)

// DestroyKey removes a key from its token for good and forgets it. The actor manages the key or its token. A
// key that is no longer on the token is forgotten all the same. To forget a key and leave the
// token alone, use users.Store.DeleteKey.
func (o *Office) DestroyKey(ctx context.Context, actor Actor, name string) error {
	s, err := o.Store.Snapshot(ctx)
	if err != nil {
		return err
	}
	key, err := namedKey(s, name)
	if err != nil {
		return err
	}
	p, err := o.keyOrTokenManager(s, actor, key)
	if err != nil {
		return err
	}
	defer p.clear()
	open, err := o.openFor(ctx, p)
	if err != nil {
		return err
	}
	defer open.Close()
	ctx, cancel := o.finishing(ctx)
	defer cancel()
	if err := open.Destroy(ctx, key.TokenKeyID); err != nil && !errors.Is(err, token.ErrNoKey) {
		return fmt.Errorf("admin: key %q: %w", name, err)
	}
	if err := o.Store.DeleteKey(ctx, name); err != nil {
		return fmt.Errorf("admin: key %q is destroyed but still listed; delete it once more without destroying: %w", name, err)
	}
	return nil
}

func (o *Office) keyOrTokenManager(s *users.Snapshot, actor Actor, key *users.Key) (*proof, error) {
	ring := o.keyring(actor.Passphrase)
	p, err := o.keyManager(s, actor, key.Name, ring)
	if err == nil {
		return p, nil
	}
	record, ok := s.TokenByID(key.TokenID)
	if !ok || !holdsTokenGrant(s, actor.User, record.ID) {
		return nil, err
	}
	return o.tokenManager(s, actor, record.Name, ring)
}

func holdsTokenGrant(s *users.Snapshot, name string, tokenID int64) bool {
	user, ok := s.User(name)
	if !ok {
		return false
	}
	_, ok = s.TokenGrant(user.ID, tokenID)
	return ok
}
