package users

import (
	"fmt"
	"unicode"
	"unicode/utf8"
)

// MaxNameSize is the longest name in bytes: X.520's upper bound for a common name.
const MaxNameSize = 64

const maxPrintedInErr = 80

// CheckName tells why a name of a user, token or key is not acceptable (ErrName), or nil: 1 to
// 64 bytes of UTF-8, printable, no space at either end, no leading '-', no '/'.
func CheckName(name string) error {
	switch {
	case name == "" || len(name) > MaxNameSize:
		return fmt.Errorf("%w: %.*q: 1 to %d bytes", ErrName, maxPrintedInErr, name, MaxNameSize)
	case !utf8.ValidString(name):
		return fmt.Errorf("%w: not UTF-8", ErrName)
	case name[0] == '-' || name[0] == ' ' || name[len(name)-1] == ' ':
		return fmt.Errorf("%w: %q: it may not begin with '-' nor begin or end with a space", ErrName, name)
	}
	for _, r := range name {
		if r == '/' || !unicode.IsPrint(r) {
			return fmt.Errorf("%w: %q: control characters and '/' are not accepted", ErrName, name)
		}
	}
	return nil
}
