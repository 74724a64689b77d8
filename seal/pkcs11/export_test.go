package pkcs11

import (
	"context"
	"encoding/json"
)

// NewBy is New in one way only.
func (k Keeper) NewBy(ctx context.Context, way string) (share, stored []byte, err error) {
	err = k.with(ctx, func(s *session) error {
		var made *kept
		if share, made, err = s.protectBy(way); err != nil {
			return err
		}
		stored, err = json.Marshal(made)
		return err
	})
	return share, stored, err
}
