package wire

import (
	"fmt"
	"time"

	"github.com/google/uuid"
)

// DecodeRequest decodes one frame. The request shares no memory with it, and a
// passphrase in it has been overwritten.
//
// Errors: *UnsupportedError, to be answered, which wraps ErrBatchTooLarge for a sign_all of more than MaxBatch entries;
// or ErrMalformed, which ends the connection.
func DecodeRequest(frame []byte, extended bool) (*Request, error) {
	if err := validate(frame); err != nil {
		return nil, err
	}
	var request Request
	idSeen := false
	envelope := newEnvelopeReader(&request.Session, func(c *cursor) (err error) {
		request.ID, err = c.uint64()
		idSeen = err == nil
		return err
	})
	err := envelope.read(frame, "request", func(c *cursor) error { return request.readBody(c, extended) })
	if err == nil {
		return &request, nil
	}
	if unlock, ok := request.Body.(*Unlock); ok {
		unlock.Password.Wipe()
	}
	unsupported := &UnsupportedError{cause: err}
	if idSeen {
		unsupported.RequestID = request.ID
	}
	return nil, unsupported
}

func (r *Request) readBody(c *cursor, extended bool) error {
	return c.tagged(func(tag string) error {
		switch tag {
		case "who_am_i":
			r.Body = &WhoAmI{}
			return c.empty()
		case "list_keys":
			r.Body = &ListKeys{}
			return c.empty()
		case "get_key":
			body := &GetKey{}
			r.Body = body
			_, err := c.fields(record{{"key", true, set(&body.Key, (*cursor).string)}})
			return err
		case "unlock":
			body := &Unlock{}
			r.Body = body
			return body.read(c)
		case "sign":
			body := &Sign{}
			r.Body = body
			return body.read(c, extended)
		case "sign_all":
			body := &SignAll{}
			r.Body = body
			return body.read(c, extended)
		}
		return shape("unknown request")
	})
}

func (u *Unlock) read(c *cursor) error {
	_, err := c.fields(record{
		{"key", true, set(&u.Key, (*cursor).string)},
		{"password", true, set(&u.Password, (*cursor).secret)},
	})
	return err
}

func (s *Sign) read(c *cursor, extended bool) error {
	known := record{
		{"key", true, set(&s.Key, (*cursor).string)},
		{"digest_algorithm", !extended, set(&s.Digest.Algorithm, digestAlgorithmReader(extended))},
		{"digest", !extended, set(&s.Digest.Hex, (*cursor).string)},
	}
	if extended {
		known = append(known,
			recordField{"scheme", false, set(&s.Scheme, readScheme)},
			recordField{"message", false, set(&s.Message, (*cursor).base64)})
		known = append(known, s.Terms.fields()...)
	}
	seen, err := c.fields(known)
	if err != nil {
		return err
	}
	algorithm, digest, message := seen.has(1), seen.has(2), seen.has(4)
	if algorithm != digest || digest == message {
		return shape("either digest_algorithm with digest, or message, is wanted")
	}
	return nil
}

func (s *SignAll) read(c *cursor, extended bool) error {
	known := record{
		{"key", true, set(&s.Key, (*cursor).string)},
		{"digests", !extended, batch(&s.Digests, digestReader(extended))},
	}
	if extended {
		known = append(known,
			recordField{"scheme", false, set(&s.Scheme, readScheme)},
			recordField{"messages", false, batch(&s.Messages, (*cursor).base64)})
		known = append(known, s.Terms.fields()...)
	}
	seen, err := c.fields(known)
	if err != nil {
		return err
	}
	if seen.has(1) == seen.has(3) {
		return shape("either digests or messages are wanted")
	}
	return nil
}

// batch is list for a sign_all: it stops at MaxBatch entries, before more of them take memory.
func batch[T any](target *[]T, get func(*cursor) (T, error)) func(*cursor) error {
	return list(target, func(c *cursor) (entry T, err error) {
		if len(*target) == MaxBatch {
			return entry, fmt.Errorf("%w: %d at most are taken", ErrBatchTooLarge, MaxBatch)
		}
		return get(c)
	})
}

// fields are those of a request that has terms.
func (t *Terms) fields() record {
	return record{
		{"idempotency_key", false, set(&t.IdempotencyKey, readIdempotencyKey)},
		{"deadline_ms", false, set(&t.Deadline, readDeadline)},
	}
}

// readIdempotencyKey refuses the nil UUID: it is what a program sends that forgot
// to make one, and all of its requests would be the same one.
func readIdempotencyKey(c *cursor) (uuid.UUID, error) {
	key, err := c.uuid()
	if err == nil && key == uuid.Nil {
		err = shape("a UUID other than nil is wanted")
	}
	return key, err
}

// readDeadline takes what is longer than MaxDeadline for that.
func readDeadline(c *cursor) (time.Duration, error) {
	milliseconds, err := c.uint64()
	if err == nil && milliseconds == 0 {
		err = shape("a positive number of milliseconds is wanted")
	}
	return time.Duration(min(milliseconds, uint64(MaxDeadline.Milliseconds()))) * time.Millisecond, err
}

// digestReader reads ["Sha256","<hex>"].
func digestReader(extended bool) func(*cursor) (Digest, error) {
	algorithm := digestAlgorithmReader(extended)
	return func(c *cursor) (d Digest, err error) {
		part := 0
		err = c.array(func() (err error) {
			switch part++; part {
			case 1:
				d.Algorithm, err = algorithm(c)
			case 2:
				d.Hex, err = c.string()
			default:
				err = shape("a pair is wanted")
			}
			return err
		})
		if err == nil && part != 2 {
			err = shape("a pair is wanted")
		}
		return d, err
	}
}

func digestAlgorithmReader(extended bool) func(*cursor) (DigestAlgorithm, error) {
	return func(c *cursor) (DigestAlgorithm, error) {
		name, err := c.bytes()
		if err != nil {
			return "", err
		}
		for _, known := range []DigestAlgorithm{SHA256, SHA512, SHA3_256, SHA3_512, SHA384} {
			if string(name) == string(known) && (extended || known.Version2()) {
				return known, nil
			}
		}
		return "", shape("unknown digest algorithm")
	}
}

func readScheme(c *cursor) (Scheme, error) {
	name, err := c.bytes()
	if err != nil {
		return "", err
	}
	switch Scheme(name) {
	case SchemeDefault:
		return SchemeDefault, nil
	case SchemePSS:
		return SchemePSS, nil
	}
	return "", shape("unknown scheme")
}
