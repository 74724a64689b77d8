package wire

import (
	"encoding/base64"
	"strconv"
	"unicode/utf8"

	"github.com/google/uuid"
)

// appendString appends a JSON string with the fewest escapes, as Siguldry writes
// it. Bytes that are not UTF-8 become U+FFFD.
func appendString[T string | []byte](dst []byte, s T) []byte {
	const digits = "0123456789abcdef"
	dst = append(dst, '"')
	for i := 0; i < len(s); {
		b := s[i]
		switch {
		case b == '"' || b == '\\':
			dst = append(dst, '\\', b)
		case b < 0x20:
			dst = appendControl(dst, b, digits)
		case b < utf8.RuneSelf:
			dst = append(dst, b)
		default:
			r, width := utf8.DecodeRuneInString(string(s[i:min(i+utf8.UTFMax, len(s))]))
			dst = utf8.AppendRune(dst, r)
			i += width
			continue
		}
		i++
	}
	return append(dst, '"')
}

func appendControl(dst []byte, b byte, digits string) []byte {
	switch b {
	case '\b':
		return append(dst, `\b`...)
	case '\f':
		return append(dst, `\f`...)
	case '\n':
		return append(dst, `\n`...)
	case '\r':
		return append(dst, `\r`...)
	case '\t':
		return append(dst, `\t`...)
	}
	return append(dst, '\\', 'u', '0', '0', digits[b>>4], digits[b&15])
}

func appendBase64(dst, b []byte) []byte {
	dst = append(dst, '"')
	dst = base64.StdEncoding.AppendEncode(dst, b)
	return append(dst, '"')
}

func appendUUID(dst []byte, id uuid.UUID) []byte {
	var text [36]byte
	encoded, _ := id.MarshalText() // never fails
	copy(text[:], encoded)
	dst = append(dst, '"')
	dst = append(dst, text[:]...)
	return append(dst, '"')
}

// appendEnvelope opens a message: the caller appends the value of field and one brace.
func appendEnvelope(dst []byte, session uuid.UUID, id uint64, field string) []byte {
	dst = append(dst, `{"session_id":`...)
	dst = appendUUID(dst, session)
	dst = append(dst, `,"request_id":`...)
	dst = strconv.AppendUint(dst, id, 10)
	dst = append(dst, `,"`...)
	dst = append(dst, field...)
	return append(dst, `":`...)
}

// appendList appends a JSON array.
func appendList[T any](dst []byte, entries []T, one func([]byte, T) []byte) []byte {
	dst = append(dst, '[')
	for i, entry := range entries {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = one(dst, entry)
	}
	return append(dst, ']')
}
