package access

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"strings"
)

const (
	enrolmentPrefix   = "chancery-enrolment-1."
	enrolmentChecksum = 4 // bytes of SHA-256, against a string cut short in a mail
	maxEnrolmentSize  = 4096
	maxUserNameSize   = 64
)

// Enrolment is what a user sends to a manager in order to be granted a key:
// their name and the public half of their access key. It holds no secret, but
// whoever can replace it on the way gets the grant: compare fingerprints.
type Enrolment struct {
	User string
	Key  PublicKey
}

// String encodes the enrolment as one line of printable ASCII without spaces.
func (e Enrolment) String() string {
	body := append([]byte{byte(len(e.User))}, e.User...)
	body = append(body, e.Key.Bytes()...)
	sum := sha256.Sum256(body)
	body = append(body, sum[:enrolmentChecksum]...)
	return enrolmentPrefix + base64.RawURLEncoding.EncodeToString(body)
}

// ParseEnrolment reads what String wrote; white space around and inside (as mail
// programs add it) is ignored. Errors: ErrEnrolment, ErrParameters.
func ParseEnrolment(s string) (Enrolment, error) {
	if len(s) > maxEnrolmentSize {
		return Enrolment{}, fmt.Errorf("%w: longer than %d characters", ErrEnrolment, maxEnrolmentSize)
	}
	encoded, found := strings.CutPrefix(strings.Join(strings.Fields(s), ""), enrolmentPrefix)
	if !found {
		return Enrolment{}, fmt.Errorf("%w: it does not begin with %q", ErrEnrolment, enrolmentPrefix)
	}
	body, err := base64.RawURLEncoding.Strict().DecodeString(encoded)
	if err != nil {
		return Enrolment{}, fmt.Errorf("%w: not base64url", ErrEnrolment)
	}
	return parseEnrolmentBody(body)
}

func parseEnrolmentBody(body []byte) (Enrolment, error) {
	if len(body) < 1+enrolmentChecksum {
		return Enrolment{}, fmt.Errorf("%w: too short", ErrEnrolment)
	}
	body, checksum := body[:len(body)-enrolmentChecksum], body[len(body)-enrolmentChecksum:]
	sum := sha256.Sum256(body)
	if subtle.ConstantTimeCompare(sum[:enrolmentChecksum], checksum) != 1 {
		return Enrolment{}, fmt.Errorf("%w: damaged, copy it again", ErrEnrolment)
	}
	nameSize := int(body[0])
	if nameSize == 0 || nameSize > maxUserNameSize || len(body) < 1+nameSize {
		return Enrolment{}, fmt.Errorf("%w: bad user name", ErrEnrolment)
	}
	key, err := ParsePublicKey(body[1+nameSize:])
	if err != nil {
		return Enrolment{}, fmt.Errorf("%w: %w", ErrEnrolment, err)
	}
	return Enrolment{User: string(body[1 : 1+nameSize]), Key: key}, nil
}
