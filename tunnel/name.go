package tunnel

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxName is the longest name in bytes (RFC 5280's upper bound of a common
// name, counted in bytes).
const MaxName = 64

// ErrNoName is returned for a certificate whose subject has no usable Common
// Name. A retry does not help: the certificate has to be issued again.
var ErrNoName = errors.New("tunnel: certificate has no usable common name")

var commonName = asn1.ObjectIdentifier{2, 5, 4, 3}

// ValidName tells whether a name may stand in a certificate as a peer's
// identity. It must be 1 to 64 bytes of UTF-8 made of printable characters and
// plain spaces, neither beginning nor ending with a space: what is printed in
// a log must be what was compared. The error says what is wrong.
func ValidName(name string) error {
	switch {
	case name == "":
		return errors.New("the name is empty")
	case len(name) > MaxName:
		return fmt.Errorf("the name is %d bytes long and may have %d", len(name), MaxName)
	case !utf8.ValidString(name):
		return errors.New("the name is not valid UTF-8")
	case strings.TrimSpace(name) != name:
		return fmt.Errorf("the name %q begins or ends with a space", name)
	}
	for _, r := range name {
		if !unicode.IsPrint(r) {
			return fmt.Errorf("the name %q holds the unprintable character %U", name, r)
		}
	}
	return nil
}

// CertificateName returns the identity that a certificate stands for: the
// first Common Name of its subject, in the order of its encoding. (The
// CommonName field of Go's pkix.Name is the last.) A first Common Name that
// ValidName refuses is ErrNoName, whatever other names follow it.
func CertificateName(cert *x509.Certificate) (string, error) {
	for _, attribute := range cert.Subject.Names {
		if !attribute.Type.Equal(commonName) {
			continue
		}
		name, ok := attribute.Value.(string)
		if !ok {
			return "", fmt.Errorf("%w: it is not text", ErrNoName)
		}
		if err := ValidName(name); err != nil {
			return "", fmt.Errorf("%w: %w", ErrNoName, err)
		}
		return name, nil
	}
	return "", ErrNoName
}
