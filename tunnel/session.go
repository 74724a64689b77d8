package tunnel

import (
	"crypto/rand"
	"encoding/hex"
	"time"
)

// SessionID names one pairing of a client with a server. It is a UUIDv7
// (RFC 9562, section 5.7) that the bridge mints at the moment of pairing. It
// is for logs and for the session_id of messages, and grants nothing.
type SessionID [16]byte

// NewSessionID mints a session id from the clock and 74 random bits.
func NewSessionID() SessionID {
	var id SessionID
	rand.Read(id[6:]) // never fails, see crypto/rand.Read
	ms := uint64(time.Now().UnixMilli())
	for i := range 6 {
		id[i] = byte(ms >> (40 - 8*i))
	}
	id[6] = 0x70 | id[6]&0x0f // version 7
	id[8] = 0x80 | id[8]&0x3f // variant of RFC 9562
	return id
}

// String returns the id in lower case with hyphens.
func (id SessionID) String() string {
	text, _ := id.MarshalText()
	return string(text)
}

// MarshalText returns what String returns; the error is always nil.
func (id SessionID) MarshalText() ([]byte, error) {
	out := make([]byte, 0, 36)
	for i, group := range [][]byte{id[0:4], id[4:6], id[6:8], id[8:10], id[10:16]} {
		if i > 0 {
			out = append(out, '-')
		}
		out = hex.AppendEncode(out, group)
	}
	return out, nil
}
