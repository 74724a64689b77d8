package x509cert

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxSubjectLength is in bytes of the string, escapes included.
const maxSubjectLength = 2048

// specials are the characters that RFC 4514, section 2.4, wants escaped in values.
const specials = `"+,;<>\`

// stringKind says how a value is encoded.
type stringKind int

const (
	directoryString stringKind = iota // PrintableString where it fits, else UTF8String
	printableString
	ia5String
)

// attribute is a part of a name that subjects may have.
type attribute struct {
	oid  asn1.ObjectIdentifier
	max  int // characters (RFC 5280, appendix A.1, upper bounds)
	kind stringKind
	once bool // a second one would make readers disagree on which counts
}

// attributes are known by their short names (RFC 4514, section 3, and RFC 4519).
var attributes = map[string]attribute{
	"CN":           {asn1.ObjectIdentifier{2, 5, 4, 3}, 64, directoryString, true},
	"SERIALNUMBER": {asn1.ObjectIdentifier{2, 5, 4, 5}, 64, printableString, true},
	"C":            {asn1.ObjectIdentifier{2, 5, 4, 6}, 2, printableString, true},
	"L":            {asn1.ObjectIdentifier{2, 5, 4, 7}, 128, directoryString, true},
	"ST":           {asn1.ObjectIdentifier{2, 5, 4, 8}, 128, directoryString, true},
	"STREET":       {asn1.ObjectIdentifier{2, 5, 4, 9}, 128, directoryString, true},
	"O":            {asn1.ObjectIdentifier{2, 5, 4, 10}, 64, directoryString, false},
	"OU":           {asn1.ObjectIdentifier{2, 5, 4, 11}, 64, directoryString, false},
	"DC":           {asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 25}, 63, ia5String, false},
	"UID":          {asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 1}, 256, directoryString, true},
	"EMAILADDRESS": {asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 1}, 255, ia5String, true},
}

// ParseSubject reads a distinguished name as RFC 4514 writes it: parts
// separated by commas, most specific first, "CN=Release,O=Example, Inc." being
// written "CN=Release,O=Example\, Inc.". A backslash escapes one of " + , ; < >
// \ # = or a space, or stands before two hex digits of a UTF-8 byte. Spaces
// around parts are ignored.
//
// The parts may be CN, O, OU, C, L, ST, STREET, SERIALNUMBER, DC, UID and
// emailAddress; CN is required. Parts of several values (with +), values in hex
// (with #) and control characters are refused with ErrSubject, and so is a
// second CN, because programs disagree on which of two counts.
func ParseSubject(s string) (pkix.RDNSequence, error) {
	if len(s) > maxSubjectLength || !utf8.ValidString(s) {
		return nil, fmt.Errorf("%w: it has at most %d bytes of UTF-8", ErrSubject, maxSubjectLength)
	}
	var name pkix.RDNSequence
	seen := make(map[string]bool)
	for rest, more := s, true; more; {
		var kind, value string
		var err error
		if kind, value, rest, more, err = nextPart(rest); err != nil {
			return nil, err
		}
		known, ok := attributes[kind]
		if !ok {
			return nil, fmt.Errorf("%w: %.30q is not a known part; use CN, O, OU, C, L, ST, …", ErrSubject, kind)
		}
		if seen[kind] && known.once {
			return nil, fmt.Errorf("%w: more than one %s", ErrSubject, kind)
		}
		seen[kind] = true
		encoded, err := known.encode(kind, value)
		if err != nil {
			return nil, err
		}
		name = append(name, pkix.RelativeDistinguishedNameSET{{Type: known.oid, Value: encoded}})
	}
	if !seen["CN"] {
		return nil, fmt.Errorf("%w: it needs a CN, as in CN=Release,O=Example", ErrSubject)
	}
	slices.Reverse(name) // certificates begin with the least specific part
	return name, nil
}

// nextPart splits off one part and says whether another follows.
func nextPart(s string) (kind, value, rest string, more bool, err error) {
	kind, s, ok := strings.Cut(s, "=")
	kind = strings.ToUpper(strings.TrimSpace(kind))
	if !ok || kind == "" {
		return "", "", "", false, fmt.Errorf("%w: write it as CN=Release,O=Example", ErrSubject)
	}
	s = strings.TrimLeft(s, " ")
	if strings.HasPrefix(s, "#") {
		return "", "", "", false, fmt.Errorf(`%w: write a value that begins with # as \#`, ErrSubject)
	}
	var b strings.Builder
	kept := 0 // length of the value without unescaped spaces at its end
	for len(s) > 0 && s[0] != ',' {
		if s[0] != '\\' {
			if strings.IndexByte(specials, s[0]) >= 0 {
				return "", "", "", false, fmt.Errorf(`%w: write %q in a value as \%c`, ErrSubject, s[0], s[0])
			}
			b.WriteByte(s[0])
			if s[0] != ' ' {
				kept = b.Len()
			}
			s = s[1:]
			continue
		}
		c, n, err := unescape(s)
		if err != nil {
			return "", "", "", false, err
		}
		b.WriteByte(c)
		kept = b.Len()
		s = s[n:]
	}
	rest, more = strings.CutPrefix(s, ",")
	return kind, b.String()[:kept], rest, more, nil
}

// unescape reads one escape at the beginning of s and returns its byte and length.
func unescape(s string) (c byte, n int, err error) {
	if len(s) >= 2 && strings.IndexByte(specials+" #=", s[1]) >= 0 {
		return s[1], 2, nil
	}
	if len(s) >= 3 {
		if b, err := hex.DecodeString(s[1:3]); err == nil {
			return b[0], 3, nil
		}
	}
	return 0, 0, fmt.Errorf(`%w: \ stands before a special character or two hex digits`, ErrSubject)
}

// encode checks a value and returns what encoding/asn1 is to marshal.
func (a attribute) encode(kind, value string) (any, error) {
	switch length := utf8.RuneCountInString(value); {
	case !utf8.ValidString(value) || strings.ContainsFunc(value, unprintable):
		return nil, fmt.Errorf("%w: %s is UTF-8 without control characters", ErrSubject, kind)
	case length == 0 || length > a.max:
		return nil, fmt.Errorf("%w: %s has 1 to %d characters", ErrSubject, kind, a.max)
	case kind == "C" && !isCountry(value):
		return nil, fmt.Errorf("%w: C is two capital letters, as in C=DE", ErrSubject)
	}
	switch a.kind {
	case ia5String:
		if strings.ContainsFunc(value, func(r rune) bool { return r > unicode.MaxASCII }) {
			return nil, fmt.Errorf("%w: %s is ASCII", ErrSubject, kind)
		}
		return asn1.RawValue{Tag: asn1.TagIA5String, Bytes: []byte(value)}, nil
	case printableString:
		if strings.ContainsFunc(value, notPrintableString) {
			return nil, fmt.Errorf("%w: %s has letters, digits and simple punctuation", ErrSubject, kind)
		}
		return asn1.RawValue{Tag: asn1.TagPrintableString, Bytes: []byte(value)}, nil
	default:
		return value, nil // encoding/asn1 takes PrintableString where it fits, else UTF8String
	}
}

// isCountry says whether the value looks like a code of ISO 3166.
func isCountry(value string) bool {
	return len(value) == 2 && strings.Trim(value, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") == ""
}

// notPrintableString tells characters outside X.680's PrintableString.
func notPrintableString(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(" '()+,-./:=?", r))
}

// unprintable tells characters that could disguise a name on a screen:
// controls, and format characters such as those that turn the writing direction.
func unprintable(r rune) bool {
	return unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp)
}
