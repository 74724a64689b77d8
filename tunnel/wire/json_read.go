package wire

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/google/uuid"
)

// ErrMalformed says that a frame is not one JSON text in valid UTF-8 (RFC 8259),
// or, for a response, not one that the protocol knows. The peer cannot be
// followed any further: close the connection.
var ErrMalformed = errors.New("wire: malformed message")

// errShape marks well-formed JSON that is not what the protocol wants there.
var errShape = errors.New("not what the protocol wants")

const maxDepth = 64

// maxPrinted bounds, in characters, what an error repeats of a peer's text.
const maxPrinted = 64

func shape(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errShape, fmt.Sprintf(format, args...))
}

// cursor walks over a JSON text that validate has accepted, so it need not check
// the syntax again. encoding/json itself will not do: it matches names in any
// case, lets the last of several equal names win, and repairs broken Unicode.
type cursor struct {
	text []byte
	pos  int
}

// validate accepts exactly one JSON text in valid UTF-8, nested at most maxDepth
// deep and without lone surrogates.
func validate(text []byte) error {
	if !utf8.Valid(text) {
		return fmt.Errorf("%w: invalid UTF-8", ErrMalformed)
	}
	if !json.Valid(text) {
		return fmt.Errorf("%w: not one JSON text", ErrMalformed)
	}
	depth := 0
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '{', '[':
			if depth++; depth > maxDepth {
				return fmt.Errorf("%w: nested more than %d deep", ErrMalformed, maxDepth)
			}
		case '}', ']':
			depth--
		case '"':
			end, ok := scanString(text, i)
			if !ok {
				return fmt.Errorf("%w: lone surrogate", ErrMalformed)
			}
			i = end - 1
		}
	}
	return nil
}

// scanString returns the position after the string that opens at start, and
// false when it has a surrogate without its other half.
func scanString(text []byte, start int) (int, bool) {
	for i := start + 1; ; i++ {
		switch text[i] {
		case '"':
			return i + 1, true
		case '\\':
			if text[i+1] != 'u' {
				i++
				continue
			}
			_, width := escapedRune(text[i:])
			if width == 0 {
				return 0, false
			}
			i += width - 1
		}
	}
}

// escapedRune decodes \uXXXX, or a pair of them that makes one rune, and returns
// its width in the text: zero for half a pair.
func escapedRune(text []byte) (rune, int) {
	first := hex4(text[2:])
	if !utf16.IsSurrogate(first) {
		return first, 6
	}
	if len(text) < 12 || text[6] != '\\' || text[7] != 'u' {
		return 0, 0
	}
	both := utf16.DecodeRune(first, hex4(text[8:]))
	if both == utf8.RuneError {
		return 0, 0
	}
	return both, 12
}

func hex4(text []byte) rune {
	var value rune
	for _, c := range text[:4] {
		switch {
		case c <= '9':
			c -= '0'
		default:
			c = c&^0x20 - 'A' + 10
		}
		value = value<<4 | rune(c)
	}
	return value
}

// peek returns the first byte of the next value.
func (c *cursor) peek() byte {
	for {
		switch b := c.text[c.pos]; b {
		case ' ', '\t', '\r', '\n', ',', ':':
			c.pos++
		default:
			return b
		}
	}
}

// raw returns the next value's text and moves behind it.
func (c *cursor) raw() []byte {
	first := c.peek()
	start := c.pos
	switch first {
	case '"':
		c.pos, _ = scanString(c.text, c.pos)
	case '{', '[':
		c.skipNested()
	default:
		for c.pos < len(c.text) && !delimiter(c.text[c.pos]) {
			c.pos++
		}
	}
	return c.text[start:c.pos]
}

func (c *cursor) skipNested() {
	depth := 0
	for {
		switch c.text[c.pos] {
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		case '"':
			c.pos, _ = scanString(c.text, c.pos)
			continue
		}
		c.pos++
		if depth == 0 {
			return
		}
	}
}

func delimiter(b byte) bool {
	switch b {
	case ' ', '\t', '\r', '\n', ',', ':', '}', ']':
		return true
	}
	return false
}

// object calls field for every name in turn; field must consume the value.
func (c *cursor) object(field func(name []byte) error) error {
	if b := c.peek(); b != '{' {
		return shape("an object is wanted")
	}
	c.pos++
	for c.peek() != '}' {
		name, err := c.bytes()
		if err != nil {
			return err
		}
		if err := field(name); err != nil {
			return err
		}
	}
	c.pos++
	return nil
}

// array calls item for every entry in turn; item must consume it.
func (c *cursor) array(item func() error) error {
	if c.peek() != '[' {
		return shape("an array is wanted")
	}
	c.pos++
	for c.peek() != ']' {
		if err := item(); err != nil {
			return err
		}
	}
	c.pos++
	return nil
}

// bytes returns the next string's content. It points into the text unless the
// string has escapes.
func (c *cursor) bytes() ([]byte, error) {
	if c.peek() != '"' {
		return nil, shape("a string is wanted")
	}
	raw := c.raw()
	raw = raw[1 : len(raw)-1]
	for i, b := range raw {
		if b == '\\' {
			return unescape(raw, i), nil
		}
	}
	return raw, nil
}

// unescape resolves the escapes of a valid string, the first of which is at from.
func unescape(raw []byte, from int) []byte {
	out := append(make([]byte, 0, len(raw)), raw[:from]...)
	for i := from; i < len(raw); i++ {
		if raw[i] != '\\' {
			out = append(out, raw[i])
			continue
		}
		i++
		switch raw[i] {
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			r, width := escapedRune(raw[i-1:])
			out = utf8.AppendRune(out, r)
			i += width - 2
		default:
			out = append(out, raw[i])
		}
	}
	return out
}

func (c *cursor) string() (string, error) {
	b, err := c.bytes()
	return string(b), err
}

// secret returns the next string in memory of its own, never as a Go string, and
// overwrites it in the text.
func (c *cursor) secret() (Secret, error) {
	c.peek()
	start := c.pos
	b, err := c.bytes()
	if err != nil {
		return Secret{}, err
	}
	own := append(make([]byte, 0, len(b)), b...)
	clear(b)
	clear(c.text[start+1 : c.pos-1])
	return NewSecret(own), nil
}

// uint64 accepts what strconv does: digits only, no sign, fraction or exponent.
func (c *cursor) uint64() (uint64, error) {
	n, err := strconv.ParseUint(string(c.raw()), 10, 64)
	if err != nil {
		return 0, shape("an unsigned 64-bit integer is wanted")
	}
	return n, nil
}

func (c *cursor) bool() (bool, error) {
	switch string(c.raw()) {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, shape("true or false is wanted")
}

// base64 decodes the next string: standard alphabet, padded, no newlines (RFC 4648 section 4).
func (c *cursor) base64() ([]byte, error) {
	b, err := c.bytes()
	if err != nil {
		return nil, err
	}
	out := make([]byte, base64.StdEncoding.DecodedLen(len(b)))
	n, err := base64.StdEncoding.Strict().Decode(out, b)
	if err != nil || base64.StdEncoding.EncodedLen(n) != len(b) {
		return nil, shape("padded base64 without newlines is wanted")
	}
	return out[:n], nil
}

// uuid accepts the hyphenated form and, as Siguldry does, the braced, urn: and simple ones.
func (c *cursor) uuid() (uuid.UUID, error) {
	b, err := c.bytes()
	if err != nil {
		return uuid.Nil, err
	}
	braced := len(b) == 38 && b[0] == '{' && b[37] == '}'
	id, err := uuid.ParseBytes(b)
	if err != nil || len(b) == 38 && !braced {
		return uuid.Nil, shape("a UUID is wanted")
	}
	return id, nil
}

// fieldSet remembers which of an object's known fields have been seen.
type fieldSet uint

// add notes the field with this number and fails when it was there already.
func (s *fieldSet) add(number uint, name []byte) error {
	if s.has(number) {
		return shape("field %q stands twice", name)
	}
	*s |= 1 << number
	return nil
}

func (s fieldSet) has(number uint) bool { return s&(1<<number) != 0 }

// record describes an object of which some fields are known.
type record []recordField

type recordField struct {
	name     string
	required bool
	read     func(c *cursor) error
}

// fields reads an object: known fields at most once, required ones at least
// once, others ignored. It returns which of the known ones were there.
func (c *cursor) fields(known record) (fieldSet, error) {
	var seen fieldSet
	err := c.object(func(name []byte) error {
		i := known.index(name)
		if i < 0 {
			c.raw()
			return nil
		}
		if err := seen.add(uint(i), name); err != nil {
			return err
		}
		if err := known[i].read(c); err != nil {
			return fmt.Errorf("%s: %w", known[i].name, err)
		}
		return nil
	})
	if err != nil {
		return seen, err
	}
	for i := range known {
		if known[i].required && !seen.has(uint(i)) {
			return seen, shape("field %q is missing", known[i].name)
		}
	}
	return seen, nil
}

func (known record) index(name []byte) int {
	for i := range known {
		if known[i].name == string(name) {
			return i
		}
	}
	return -1
}

// set returns a reader that stores what get reads.
func set[T any](target *T, get func(*cursor) (T, error)) func(*cursor) error {
	return func(c *cursor) (err error) {
		*target, err = get(c)
		return err
	}
}

// list returns a reader that appends what get reads from each entry of an array.
// An empty array leaves an empty slice, not nil.
func list[T any](target *[]T, get func(*cursor) (T, error)) func(*cursor) error {
	return func(c *cursor) error {
		*target = []T{}
		return c.array(func() error {
			entry, err := get(c)
			if err != nil {
				return fmt.Errorf("entry %d: %w", len(*target), err)
			}
			*target = append(*target, entry)
			return nil
		})
	}
}

// tagged reads an externally tagged variant: an object with exactly one field,
// whose name says how to read its value.
func (c *cursor) tagged(variant func(tag string) error) error {
	tags := 0
	err := c.object(func(name []byte) error {
		if tags++; tags > 1 {
			return shape("one tag is wanted, not several")
		}
		tag := string(name)
		if err := variant(tag); err != nil {
			return fmt.Errorf("%.*q: %w", maxPrinted, tag, err)
		}
		return nil
	})
	if err == nil && tags == 0 {
		return shape("a tag is missing")
	}
	return err
}

// empty reads an object none of whose fields is known.
func (c *cursor) empty() error {
	_, err := c.fields(nil)
	return err
}
