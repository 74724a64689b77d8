package wire

import (
	"fmt"
	"strings"
	"time"
	"unicode"
)

// DecodeResponse decodes one frame of a Chancery or Siguldry server. The response
// shares no memory with it. Names of algorithms and codes that this version does
// not know are kept as they are, so that one new key does not hide all others.
//
// The only error is ErrMalformed: close the connection, and do not repeat the
// request blindly, for the server has served it.
func DecodeResponse(frame []byte) (*Response, error) {
	if err := validate(frame); err != nil {
		return nil, err
	}
	var response Response
	envelope := newEnvelopeReader(&response.Session, set(&response.ID, (*cursor).uint64))
	if err := envelope.read(frame, "response", response.readBody); err != nil {
		return nil, fmt.Errorf("%w: response %d: %w", ErrMalformed, response.ID, err)
	}
	return &response, nil
}

func (r *Response) readBody(c *cursor) error {
	if c.peek() == '"' {
		if name, _ := c.bytes(); string(name) != "unsupported" {
			return shape("unknown response")
		}
		r.Body = &UnsupportedReply{}
		return nil
	}
	return c.tagged(func(tag string) error {
		switch tag {
		case "who_am_i":
			body := &WhoAmIReply{}
			r.Body = body
			return c.single("user", set(&body.User, (*cursor).string))
		case "list_keys":
			body := &ListKeysReply{}
			r.Body = body
			return c.single("keys", list(&body.Keys, readKey))
		case "get_key":
			body := &GetKeyReply{}
			r.Body = body
			return c.single("key", set(&body.Key, readKey))
		case "unlock":
			r.Body = &UnlockReply{}
			return c.empty()
		case "sign":
			body := &SignReply{}
			r.Body = body
			return c.single("signature", set(&body.Signature, readSignature))
		case "sign_prehashed":
			body := &SignAllReply{}
			r.Body = body
			return c.single("signatures", list(&body.Signatures, readSignature))
		case "error":
			body := &Error{}
			r.Body = body
			return body.read(c)
		}
		return shape("unknown response")
	})
}

// single reads an object with one known field.
func (c *cursor) single(name string, read func(*cursor) error) error {
	_, err := c.fields(record{{name, true, read}})
	return err
}

func readKey(c *cursor) (k Key, err error) {
	_, err = c.fields(record{
		{"name", true, set(&k.Name, (*cursor).string)},
		{"key_algorithm", true, set(&k.Algorithm, named[KeyAlgorithm])},
		{"handle", true, set(&k.Handle, (*cursor).string)},
		{"public_key", true, set(&k.PublicKey, (*cursor).string)},
		{"certificates", true, list(&k.Certificates, readCertificate)},
		{"hardware", false, func(c *cursor) error {
			hardware, err := c.bool()
			k.Hardware = &hardware
			return err
		}},
	})
	return k, err
}

func readCertificate(c *cursor) (cert Certificate, err error) {
	_, err = c.fields(record{
		{"certificate", true, set(&cert.Text, (*cursor).string)},
		{"certificate_type", true, set(&cert.Type, named[CertificateType])},
		{"fingerprint", true, set(&cert.Fingerprint, (*cursor).string)},
		{"name", true, set(&cert.Name, (*cursor).string)},
	})
	return cert, err
}

func readSignature(c *cursor) (s Signature, err error) {
	payload := func(c *cursor) error {
		return c.tagged(func(tag string) (err error) {
			s.Tag = SignatureTag(tag)
			s.Bytes, err = c.base64()
			return err
		})
	}
	seen, err := c.fields(record{
		{"signature", true, payload},
		{"digest", false, set(&s.Digest, named[DigestAlgorithm])},
		{"hash", false, set(&s.Hash, (*cursor).string)},
	})
	if err == nil && seen.has(1) != seen.has(2) {
		err = shape("digest and hash are wanted together")
	}
	return s, err
}

// read fills in what a plain version 2 server does not say.
func (e *Error) read(c *cursor) error {
	var (
		reason     Code
		retryAfter uint64
	)
	seen, err := c.fields(record{
		{"reason", true, set(&reason, readReason)},
		{"code", false, set(&e.Code, readCode)},
		{"message", false, set(&e.Message, readSentence)},
		{"retry", false, set(&e.Retry, named[Retry])},
		{"retry_after_ms", false, set(&retryAfter, (*cursor).uint64)},
	})
	if err != nil {
		return err
	}
	if !seen.has(1) {
		e.Code = reason
	}
	standard := NewError(e.Code)
	if !seen.has(1) && reason == CodeInternal {
		standard.Message = silentRefusal
	}
	if !seen.has(2) {
		e.Message = standard.Message
	}
	if !seen.has(3) {
		e.Retry = standard.Retry
	}
	e.RetryAfter = time.Duration(min(retryAfter, maxRetryAfterMS)) * time.Millisecond
	if !seen.has(4) {
		e.RetryAfter = standard.RetryAfter
	}
	return nil
}

// silentRefusal stands for whatever a version 2 server has to say.
const silentRefusal = "the server refused or failed without saying why; check the key's name, your grant and the passphrase, or ask its operator for the log"

const maxRetryAfterMS = 24 * 60 * 60 * 1000

// readReason reads version 2's reasons: two strings and one tagged value.
func readReason(c *cursor) (code Code, err error) {
	if c.peek() != '"' {
		err := c.tagged(func(tag string) error {
			if tag != "no_such_user" {
				return shape("unknown reason")
			}
			_, err := c.string()
			return err
		})
		return CodeNoSuchUser, err
	}
	switch name, _ := c.string(); name {
	case "internal":
		return CodeInternal, nil
	case "requires_admin":
		return CodeRequiresAdmin, nil
	}
	return "", shape("unknown reason")
}

// maxSentence bounds, in characters, what a peer may say to a user.
const maxSentence = 1000

// Sentence returns a peer's text as it may be shown to a user, cut where it is long: what a terminal would act
// upon instead of showing it becomes U+FFFD, line ends included, since those would forge another message.
func Sentence(text string) string {
	count := 0
	return strings.Map(func(r rune) rune {
		switch count++; {
		case count > maxSentence:
			return -1
		case !unicode.IsPrint(r):
			return unicode.ReplacementChar
		}
		return r
	}, text)
}

func readSentence(c *cursor) (string, error) {
	s, err := c.string()
	return Sentence(s), err
}

func readCode(c *cursor) (Code, error) {
	s, err := readSentence(c)
	return Code(s), err
}

// named reads a string into a type of names.
func named[T ~string](c *cursor) (T, error) {
	s, err := c.string()
	return T(s), err
}
