package wire

import (
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
)

// Request is one question of a client.
type Request struct {
	Session uuid.UUID // for logs only: no side compares it
	ID      uint64    // chosen by the client, repeated in the response
	Body    RequestBody
}

// RequestBody is one of *WhoAmI, *ListKeys, *GetKey, *Unlock, *Sign and *SignAll.
type RequestBody interface {
	// Name is the request's tag on the wire, fit for logs.
	Name() string
	appendFields(dst []byte) []byte
}

// WhoAmI asks for the user's name as the server knows it.
type WhoAmI struct{}

// ListKeys asks for all keys that the user may use.
type ListKeys struct{}

// GetKey asks for one key.
type GetKey struct{ Key string }

// Unlock opens a key for this connection.
type Unlock struct {
	Key      string
	Password Secret
}

// Digest is a hash value as it was sent. Its hexadecimal form is kept because
// version 2 repeats it in the response, letter case included.
type Digest struct {
	Algorithm DigestAlgorithm
	Hex       string
}

// NewDigest returns the digest in lower-case hexadecimal.
func NewDigest(algorithm DigestAlgorithm, sum []byte) Digest {
	return Digest{Algorithm: algorithm, Hex: hex.EncodeToString(sum)}
}

// Bytes decodes the digest. The error has CodeDigestInvalid when it is not
// hexadecimal or not as long as its hash function says.
func (d Digest) Bytes() ([]byte, error) {
	sum, err := hex.DecodeString(d.Hex)
	if err != nil {
		return nil, Errorf(CodeDigestInvalid, "the %s digest is not hexadecimal", d.Algorithm)
	}
	if len(sum) != d.Algorithm.Size() || len(sum) == 0 {
		return nil, Errorf(CodeDigestInvalid, "the %s digest has %d bytes instead of %d", d.Algorithm, len(sum), d.Algorithm.Size())
	}
	return sum, nil
}

// Sign asks for one signature: over Digest, or over Message for keys that sign
// whole messages (Ed25519, chancery/1 only).
type Sign struct {
	Key     string
	Scheme  Scheme // chancery/1 only
	Digest  Digest // its zero value when Message is set
	Message []byte // nil when Digest is set; may be empty but not nil otherwise
	Terms
}

// SignAll asks for several signatures with one key; exactly one of Digests and
// Messages is not nil, with at most MaxBatch entries. Either all succeed or none is answered.
type SignAll struct {
	Key      string
	Scheme   Scheme // chancery/1 only
	Digests  []Digest
	Messages [][]byte // chancery/1 only
	Terms
}

// Terms say how a request to sign may be repeated and how long it is worth
// waiting for. They exist under chancery/1 only.
type Terms struct {
	// IdempotencyKey names the request for as long as a repetition may follow:
	// with the same key and the same body, it is answered with the signatures
	// already made. uuid.Nil, which does not travel, stands for none.
	IdempotencyKey uuid.UUID
	// Deadline is how long after the request's arrival the server gives up, in
	// whole milliseconds, from one to MaxDeadline; zero is the server's own limit.
	Deadline time.Duration
}

// MaxDeadline is the longest Terms.Deadline. A reader takes a longer one for this.
const MaxDeadline = 24 * time.Hour

// TermsOf returns the terms of a request to sign, and none of any other.
func TermsOf(body RequestBody) Terms {
	switch body := body.(type) {
	case *Sign:
		return body.Terms
	case *SignAll:
		return body.Terms
	}
	return Terms{}
}

// WithTerms returns a copy of a request to sign that has other terms, and any other
// request as it is. What is signed is shared with the copy.
func WithTerms(body RequestBody, terms Terms) RequestBody {
	switch body := body.(type) {
	case *Sign:
		other := *body
		other.Terms = terms
		return &other
	case *SignAll:
		other := *body
		other.Terms = terms
		return &other
	}
	return body
}

// Name returns "who_am_i".
func (*WhoAmI) Name() string { return "who_am_i" }

// Name returns "list_keys".
func (*ListKeys) Name() string { return "list_keys" }

// Name returns "get_key".
func (*GetKey) Name() string { return "get_key" }

// Name returns "unlock".
func (*Unlock) Name() string { return "unlock" }

// Name returns "sign".
func (*Sign) Name() string { return "sign" }

// Name returns "sign_all".
func (*SignAll) Name() string { return "sign_all" }

// ErrBatchTooLarge says that a sign_all has more than MaxBatch entries.
var ErrBatchTooLarge = errors.New("too many entries in one request")

// UnsupportedError is well-formed JSON that is not a request the server knows, or
// one that it does not take because of ErrBatchTooLarge. The server answers
// UnsupportedReply, or CodeBatchTooLarge, with this id and its own session's, and
// the connection goes on.
type UnsupportedError struct {
	RequestID uint64 // the request's, or zero where it had none that is readable
	cause     error
}

// Error describes the request's fault for the log.
func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("wire: unsupported request %d: %v", e.RequestID, e.cause)
}

// Unwrap returns the fault.
func (e *UnsupportedError) Unwrap() error { return e.cause }
