package wire

import (
	"strconv"

	"github.com/google/uuid"
)

// AppendRequest appends the request's JSON to dst, without a frame. A dst that
// holds an Unlock holds its passphrase: clear it after it has been written, and
// give it the capacity beforehand, or growing leaves copies behind.
func AppendRequest(dst []byte, r *Request) []byte {
	dst = appendEnvelope(dst, r.Session, r.ID, "request")
	dst = append(dst, `{"`...)
	dst = append(dst, r.Body.Name()...)
	dst = append(dst, `":{`...)
	dst = r.Body.appendFields(dst)
	return append(dst, `}}}`...)
}

func (*WhoAmI) appendFields(dst []byte) []byte { return dst }

func (*ListKeys) appendFields(dst []byte) []byte { return dst }

func (g *GetKey) appendFields(dst []byte) []byte { return appendKeyName(dst, g.Key) }

func (u *Unlock) appendFields(dst []byte) []byte {
	dst = appendKeyName(dst, u.Key)
	dst = append(dst, `,"password":`...)
	return appendString(dst, u.Password.Bytes())
}

func (s *Sign) appendFields(dst []byte) []byte {
	dst = appendKeyName(dst, s.Key)
	if s.Message == nil {
		dst = append(dst, `,"digest_algorithm":`...)
		dst = appendString(dst, string(s.Digest.Algorithm))
		dst = append(dst, `,"digest":`...)
		dst = appendString(dst, s.Digest.Hex)
	}
	dst = appendScheme(dst, s.Scheme)
	if s.Message != nil {
		dst = append(dst, `,"message":`...)
		dst = appendBase64(dst, s.Message)
	}
	return s.Terms.appendFields(dst)
}

func (s *SignAll) appendFields(dst []byte) []byte {
	dst = appendKeyName(dst, s.Key)
	if s.Messages == nil {
		dst = append(dst, `,"digests":`...)
		dst = appendList(dst, s.Digests, appendDigest)
	}
	dst = appendScheme(dst, s.Scheme)
	if s.Messages != nil {
		dst = append(dst, `,"messages":`...)
		dst = appendList(dst, s.Messages, appendBase64)
	}
	return s.Terms.appendFields(dst)
}

// appendFields rounds a deadline to at least a millisecond, for zero means none.
func (t *Terms) appendFields(dst []byte) []byte {
	if t.IdempotencyKey != uuid.Nil {
		dst = append(dst, `,"idempotency_key":`...)
		dst = appendUUID(dst, t.IdempotencyKey)
	}
	if t.Deadline > 0 {
		dst = append(dst, `,"deadline_ms":`...)
		dst = strconv.AppendInt(dst, max(1, min(t.Deadline, MaxDeadline).Milliseconds()), 10)
	}
	return dst
}

func appendKeyName(dst []byte, name string) []byte {
	dst = append(dst, `"key":`...)
	return appendString(dst, name)
}

func appendScheme(dst []byte, scheme Scheme) []byte {
	if scheme == SchemeDefault {
		return dst
	}
	dst = append(dst, `,"scheme":`...)
	return appendString(dst, string(scheme))
}

func appendDigest(dst []byte, d Digest) []byte {
	dst = append(dst, '[')
	dst = appendString(dst, string(d.Algorithm))
	dst = append(dst, ',')
	dst = appendString(dst, d.Hex)
	return append(dst, ']')
}
