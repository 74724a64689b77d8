package pkcs11

import (
	"context"
	"fmt"
	"time"

	p11 "github.com/miekg/pkcs11"

	"chancery/token"
)

const driverName = "pkcs11"

var _ token.Attester = (*Token)(nil)

// claims are the attributes of a private key that say where it lives (PKCS#11 v2.40 base specification, section 4.9).
var claims = map[string]uint{
	"sensitive":         p11.CKA_SENSITIVE,
	"always_sensitive":  p11.CKA_ALWAYS_SENSITIVE,
	"extractable":       p11.CKA_EXTRACTABLE,
	"never_extractable": p11.CKA_NEVER_EXTRACTABLE,
	"local":             p11.CKA_LOCAL,
}

// Attest reads what the token claims of a private key, which is not evidence. It needs a login.
func (t *Token) Attest(ctx context.Context, id []byte) (token.Attestation, error) {
	found := token.Attestation{Made: time.Now().UTC(), Driver: driverName, Serial: t.serial}
	err := t.reading(ctx, t.onlyLoggedIn(func(s session) error {
		private, err := s.privateHandle(id)
		if err != nil {
			return err
		}
		found.Claims, err = s.claims(private)
		return err
	}))
	if err != nil {
		return token.Attestation{}, t.failed(fmt.Sprintf("attest key %x", id), err)
	}
	return found, nil
}

// claims reads each attribute by itself: one that the token does not know would hide the others.
func (s session) claims(private p11.ObjectHandle) (map[string]bool, error) {
	made := map[string]bool{}
	for name, attribute := range claims {
		values, err := s.attributes(private, attribute)
		switch {
		case hasCode(err, p11.CKR_ATTRIBUTE_TYPE_INVALID, p11.CKR_ATTRIBUTE_SENSITIVE):
		case err != nil:
			return nil, err
		case len(values[0]) == 1:
			made[name] = values[0][0] != 0
		}
	}
	return made, nil
}
