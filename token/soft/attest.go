package soft

import (
	"context"
	"fmt"
	"time"

	"chancery/token"
)

var _ token.Attester = (*Token)(nil)

// Attest says what a software key is: whoever has its file and the PIN can take it out. It needs no login. Whether
// a key was generated here is not kept, so that nothing is said of that.
func (t *Token) Attest(ctx context.Context, id []byte) (token.Attestation, error) {
	if err := t.attestable(ctx, id); err != nil {
		return token.Attestation{}, t.failed(fmt.Sprintf("attest key %x", id), err)
	}
	return token.Attestation{
		Made:   time.Now().UTC(),
		Driver: driverName,
		Serial: t.serial,
		Claims: map[string]bool{
			"hardware":          false,
			"sensitive":         false,
			"always_sensitive":  false,
			"extractable":       true,
			"never_extractable": false,
		},
	}, nil
}

func (t *Token) attestable(ctx context.Context, id []byte) error {
	if err := t.ready(ctx); err != nil {
		return err
	}
	if len(id) < 1 || len(id) > token.MaxIDLength {
		return token.ErrNoKey
	}
	_, _, _, err := t.readKeyFile(id)
	return err
}
