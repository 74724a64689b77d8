package signer

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"fmt"

	"chancery/access"
	"chancery/token"
	"chancery/users"
)

// errPINUnproven says that a grant holds a PIN that only a new login can prove. It wraps
// token.ErrTokenAbsent, which has the token opened anew.
var errPINUnproven = fmt.Errorf("its PIN was changed since its login: %w", token.ErrTokenAbsent)

// proof remembers the PIN that a token took last, as a digest under a key of its
// own, so that a grant can be held against it.
type proof struct {
	key     []byte
	digest  []byte // nil until the token has taken a PIN
	version int64  // the PIN's, as of the snapshot that it was seen in last
}

func (p *proof) of(pin []byte) []byte {
	if p.key == nil {
		p.key = make([]byte, sha256.Size)
		rand.Read(p.key)
	}
	sum := hmac.New(sha256.New, p.key)
	sum.Write(pin)
	return sum.Sum(nil)
}

// fits tells whether the token took this PIN.
func (p *proof) fits(pin []byte) bool {
	return p.digest != nil && pin != nil && hmac.Equal(p.digest, p.of(pin))
}

// Login remembers the PIN if the token takes it.
func (o *openToken) Login(ctx context.Context, pin []byte) error {
	if err := o.Token.Login(ctx, pin); err != nil {
		return err
	}
	o.slot.mu.Lock()
	defer o.slot.mu.Unlock()
	o.slot.proven.digest = o.slot.proven.of(pin)
	return nil
}

// prove refuses a grant whose PIN the token has not taken. A token that is logged in is not
// sent a PIN, and that a wrap opens proves nothing: it is made with a public key, so that
// whoever can write to the store can make one for themselves, only not with the right PIN.
//
// When the PIN was changed since the login, only another login can tell: the error has the token opened anew.
func (s *slot) prove(record users.Token, pins users.PINs) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proven.fits(pins.Current) || s.proven.fits(pins.Staged) {
		s.proven.version = record.PINVersion
		return nil
	}
	if s.proven.digest != nil && s.proven.version == record.PINVersion {
		return fmt.Errorf("the grant does not hold the PIN that token %q has taken; its row was altered: %w", record.Name, access.ErrWrongPassphrase)
	}
	return fmt.Errorf("token %q: %w", record.Name, errPINUnproven)
}
