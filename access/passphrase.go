package access

import (
	"crypto/rand"
	"encoding/base32"
	"fmt"
	"strings"
	"unicode/utf8"
)

// DefaultMinPassphrase is the shortest passphrase, in characters, that is accepted unless the operator configures another length.
const DefaultMinPassphrase = 12

// MaxPassphrase bounds a passphrase in bytes, so that no peer can make the server hash megabytes.
const MaxPassphrase = 1024

// CheckPassphrase tells why a new passphrase is not acceptable, or nil.
func CheckPassphrase(passphrase []byte, minimum int) error {
	switch {
	case len(passphrase) > MaxPassphrase:
		return fmt.Errorf("access: the passphrase is longer than %d bytes", MaxPassphrase)
	case !utf8.Valid(passphrase):
		return fmt.Errorf("access: the passphrase is not valid UTF-8")
	case utf8.RuneCount(passphrase) < minimum:
		return fmt.Errorf("access: the passphrase is too short: at least %d characters", minimum)
	}
	return nil
}

// GeneratePassphrase returns 120 random bits as six groups of four lower-case
// letters and digits: easy to read aloud, hard to guess even offline.
func GeneratePassphrase() []byte {
	random := make([]byte, 15)
	rand.Read(random)
	defer clear(random)
	text := strings.ToLower(base32.StdEncoding.EncodeToString(random))
	grouped := make([]byte, 0, 29)
	for i := 0; i < len(text); i += 4 {
		if i > 0 {
			grouped = append(grouped, '-')
		}
		grouped = append(grouped, text[i:i+4]...)
	}
	return grouped
}
