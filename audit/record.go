package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// MaxLine is the length of the longest line in bytes, its newline included.
const MaxLine = 1 << 20

// Errors of this package, wrapped with what it was doing. Compare with errors.Is.
var (
	// ErrUnavailable says that the record is not known to be durable: the disk is full, a write or sync failed, or
	// another process holds the log. What it would have recorded must not be done. A retry helps once the cause is gone.
	ErrUnavailable = errors.New("audit: log unavailable")
	// ErrDamaged says that records that were durable are changed or missing. An operator has to look; a retry does not help.
	ErrDamaged = errors.New("audit: log damaged")
	// ErrInvalid says that the record cannot be kept as it is: no kind or outcome, or too large. A retry does not help.
	ErrInvalid = errors.New("audit: record not acceptable")
	// ErrClosed says that the log was closed.
	ErrClosed = errors.New("audit: log closed")
)

// Kind says what a record is about: words of a-z, 0-9 and _ joined by dots.
// Administrative acts are named below admin, like admin.grant.
type Kind string

// The kinds that this package knows. Others may be made up, the last two only by the log itself.
const (
	KindSign         Kind = "sign"          // one or more signatures were made, and may leave
	KindUnlock       Kind = "unlock"        // a passphrase opened a grant
	KindUnlockFailed Kind = "unlock_failed" // a passphrase did not
	KindRefused      Kind = "refused"       // a request was not carried out; the outcome says why
	KindAdmin        Kind = "admin"         // an administrative act, or the family of them
	KindSegment      Kind = "segment"       // the first line of a segment
	KindRecovered    Kind = "recovered"     // the log went on after a crash or an outage
)

// Admin returns the kind of the named administrative act: Admin("grant") is admin.grant.
func Admin(act string) Kind { return KindAdmin + "." + Kind(act) }

// in says whether k is the kind family or below it.
func (k Kind) in(family Kind) bool {
	return k == family || strings.HasPrefix(string(k), string(family)+".")
}

// OutcomeOK is the outcome of what was done; any other outcome is an error code.
const OutcomeOK = "ok"

// Record is what one line says. Kind and Outcome must be set. Strings longer
// than 512 bytes are cut and say so; everything else that is too large makes
// Append fail with ErrInvalid.
type Record struct {
	Time            time.Time         `json:"time"`              // Append fills it in if it is zero
	Process         string            `json:"process"`           // Append fills it in if it is empty: "chancery-server[4711]"
	Kind            Kind              `json:"kind"`              //
	User            string            `json:"user,omitempty"`    // whoever asked
	Key             string            `json:"key,omitempty"`     // the key's name
	Handle          string            `json:"handle,omitempty"`  // the key's identifier on its token, in hex
	Scheme          string            `json:"scheme,omitempty"`  // signature scheme
	DigestAlgorithm string            `json:"hash,omitempty"`    // hash function of the digests
	Digests         []string          `json:"digests,omitempty"` // in hex, in the order of the request
	Session         string            `json:"session,omitempty"`
	Request         *uint64           `json:"request,omitempty"` // number of the request in its session
	Peer            *Peer             `json:"peer,omitempty"`
	Outcome         string            `json:"outcome"` // OutcomeOK or an error code
	IdempotencyKey  string            `json:"idempotency_key,omitempty"`
	Details         map[string]string `json:"details,omitempty"` // at most 32
}

// Peer is the other end of the connection that a request came over.
type Peer struct {
	Address     string `json:"address,omitempty"`     // host:port
	Serial      string `json:"serial,omitempty"`      // of its certificate, in hex
	Fingerprint string `json:"fingerprint,omitempty"` // SHA-256 of its certificate, in hex
}

// Hash is the SHA-256 of one line with its newline; the text form is hex.
type Hash [sha256.Size]byte

// String returns the hash in hex.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// MarshalText implements encoding.TextMarshaler.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *Hash) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(h)) {
		return fmt.Errorf("audit: a hash has %d hexadecimal digits, not %d", hex.EncodedLen(len(h)), len(text))
	}
	if _, err := hex.Decode(h[:], text); err != nil {
		return fmt.Errorf("audit: hash: %w", err)
	}
	return nil
}

// Head is a record's place in the chain. Kept outside of the log's host, the
// newest one shows later whether the log's end was cut off or written anew.
type Head struct {
	Seq  uint64 `json:"seq"`
	Hash Hash   `json:"hash"`
}

// String returns the head as ParseHead reads it: "42:<hex>".
func (h Head) String() string { return strconv.FormatUint(h.Seq, 10) + ":" + h.Hash.String() }

// ParseHead reads what Head.String wrote.
func ParseHead(s string) (Head, error) {
	number, hash, ok := strings.Cut(s, ":")
	if !ok {
		return Head{}, fmt.Errorf("audit: head %q: want SEQUENCE:HASH", s)
	}
	seq, err := strconv.ParseUint(number, 10, 64)
	if err != nil || seq == 0 {
		return Head{}, fmt.Errorf("audit: head %q: the sequence number is not a number above 0", s)
	}
	h := Head{Seq: seq}
	if err := h.Hash.UnmarshalText([]byte(hash)); err != nil {
		return Head{}, fmt.Errorf("audit: head %q: %w", s, err)
	}
	return h, nil
}

// Position says where a record is kept.
type Position struct {
	Segment string `json:"segment"` // file name within the directory
	Head
}

// Entry is a record as it was read.
type Entry struct {
	Position
	Line int    // within the segment, from 1
	Prev Hash   // of the line before
	Raw  []byte // the line as it is kept, without its newline
	Record
}
