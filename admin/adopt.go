package admin

import (
	"context"
	"fmt"

	"chancery/token"
	"chancery/users"
)

// AdoptSpec names a key that is on the token already: by its identifier (CKA_ID) or,
// where that is empty, by its label.
type AdoptSpec struct {
	KeySpec
	ID    []byte
	Label string
}

// AdoptKey registers a key that is on a token already, after it has signed a test message. The actor is one of the
// token's managers. Errors: token.ErrNoKey; token.ErrUnsupported; users.ErrExists when it is registered already.
func (o *Office) AdoptKey(ctx context.Context, actor Actor, spec AdoptSpec) (users.Key, error) {
	var adopted users.Key
	err := o.withToken(ctx, actor, spec.KeySpec, func(open token.Token, register registrar) error {
		id, err := findKey(ctx, open, spec)
		if err != nil {
			return err
		}
		if err := o.unregistered(ctx, spec.Token, id); err != nil {
			return err
		}
		key, err := open.Key(ctx, id)
		if err != nil {
			return fmt.Errorf("admin: key %x on token %q: %w", id, spec.Token, err)
		}
		if err := proveKey(ctx, key); err != nil {
			return fmt.Errorf("admin: key %x on token %q: %w", id, spec.Token, err)
		}
		adopted, err = register(ctx, key, users.OriginAdopted)
		return err
	})
	return adopted, err
}

func (o *Office) unregistered(ctx context.Context, tokenName string, id []byte) error {
	s, err := o.Store.Snapshot(ctx)
	if err != nil {
		return err
	}
	if key, found := keyOnToken(s, tokenName, id); found {
		return fmt.Errorf("admin: key %x on token %q: %w: it is registered as %q", id, tokenName, users.ErrExists, key.Name)
	}
	return nil
}

// findKey returns the identifier of the one key that spec means.
func findKey(ctx context.Context, open token.Token, spec AdoptSpec) ([]byte, error) {
	if len(spec.ID) > 0 {
		return spec.ID, nil
	}
	if spec.Label == "" {
		return nil, fmt.Errorf("%w: name the key on the token by identifier or label", ErrRequest)
	}
	keys, err := open.Keys(ctx)
	if err != nil {
		return nil, fmt.Errorf("admin: token %q: %w", spec.Token, err)
	}
	var ids [][]byte
	for _, key := range keys {
		if key.Label == spec.Label {
			ids = append(ids, key.ID)
		}
	}
	switch len(ids) {
	case 0:
		return nil, fmt.Errorf("admin: token %q: label %q: %w", spec.Token, spec.Label, token.ErrNoKey)
	case 1:
		return ids[0], nil
	}
	return nil, fmt.Errorf("%w: token %q has %d keys with the label %q: choose one by its identifier: %x", ErrRequest, spec.Token, len(ids), spec.Label, ids)
}
