package guard

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"slices"
)

const (
	recordVersion = 1
	saltSize      = 16
	maxRecord     = 16 << 10 // bytes, far above a full record's
)

// tag is what is kept of a PIN.
type tag [2]byte

// MarshalText writes hexadecimal digits.
func (t tag) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, t[:]), nil }

// UnmarshalText reads them.
func (t *tag) UnmarshalText(text []byte) error { return fill(t[:], text) }

type salt [saltSize]byte

// MarshalText writes hexadecimal digits.
func (s salt) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, s[:]), nil }

// UnmarshalText reads them.
func (s *salt) UnmarshalText(text []byte) error { return fill(s[:], text) }

func fill(to, text []byte) error {
	if hex.DecodedLen(len(text)) != len(to) {
		return errDamaged
	}
	_, err := hex.Decode(to, text)
	return err
}

func equal(a, b tag) bool { return subtle.ConstantTimeCompare(a[:], b[:]) == 1 }

// unfinished counts how often a PIN was sent without an answer.
type unfinished struct {
	Tag   tag `json:"tag"`
	Tries int `json:"tries"`
}

// record is what is remembered of one token.
type record struct {
	Version    int          `json:"version"`
	Token      string       `json:"token"` // SHA-256 of the serial number, the file's name
	Salt       salt         `json:"salt"`
	Rejected   []tag        `json:"rejected"`
	Unfinished []unfinished `json:"unfinished"`
	Sending    *tag         `json:"sending"` // the one of Unfinished that was sent last, unless its end is known
}

// newRecord remembers nothing yet.
func newRecord(name string) *record {
	r := &record{Version: recordVersion, Token: name, Rejected: []tag{}, Unfinished: []unfinished{}}
	rand.Read(r.Salt[:])
	return r
}

func (r *record) empty() bool { return len(r.Rejected) == 0 && len(r.Unfinished) == 0 }

// rejected compares with all, so that the time does not tell which.
func (r *record) rejected(mark tag) bool {
	found := false
	for _, known := range r.Rejected {
		found = equal(known, mark) || found
	}
	return found
}

// tries tells how often this PIN was sent without an answer.
func (r *record) tries(mark tag) int {
	if i := r.index(mark); i >= 0 {
		return r.Unfinished[i].Tries
	}
	return 0
}

// index is -1 when there is none.
func (r *record) index(mark tag) int {
	found := -1
	for i := range r.Unfinished {
		if equal(r.Unfinished[i].Tag, mark) {
			found = i
		}
	}
	return found
}

// full tells whether there is no room for one more PIN.
func (r *record) full(mark tag) bool {
	return len(r.Rejected)+len(r.Unfinished) >= maxPINs && r.index(mark) < 0
}

// settle decides about a PIN whose end nobody saw, by what the token says now. It tells whether there was one.
func (r *record) settle(wrongSeen bool) bool {
	if r.Sending == nil {
		return false
	}
	if wrongSeen {
		r.wrong(*r.Sending)
	}
	r.Sending = nil
	return true
}

// begin notes that the PIN is on its way.
func (r *record) begin(mark tag) {
	if i := r.index(mark); i >= 0 {
		r.Unfinished[i].Tries++
	} else {
		r.Unfinished = append(r.Unfinished, unfinished{Tag: mark, Tries: 1})
	}
	r.Sending = &mark
}

// withdraw undoes begin: that try does not count.
func (r *record) withdraw(mark tag) {
	r.Sending = nil
	i := r.index(mark)
	if r.Unfinished[i].Tries--; r.Unfinished[i].Tries == 0 {
		r.Unfinished = slices.Delete(r.Unfinished, i, i+1)
	}
}

// right forgets all that was held against the PIN.
func (r *record) right(mark tag) {
	r.Sending = nil
	is := func(other tag) bool { return equal(other, mark) }
	r.Rejected = slices.DeleteFunc(r.Rejected, is)
	r.Unfinished = slices.DeleteFunc(r.Unfinished, func(u unfinished) bool { return is(u.Tag) })
}

// wrong remembers the PIN.
func (r *record) wrong(mark tag) {
	r.right(mark)
	r.Rejected = append(r.Rejected, mark)
}

// errDamaged says that a file is not as this program wrote it.
var errDamaged = errors.New("it is damaged")

// encode makes two lines: the record as JSON, and its SHA-256.
func (r *record) encode() []byte {
	text, _ := json.Marshal(r) // nothing in it can fail
	sum := sha256.Sum256(text)
	return append(hex.AppendEncode(append(text, '\n'), sum[:]), '\n')
}

// decode takes exactly what encode makes, of this version.
func decode(data []byte) (*record, error) {
	text, _, ok := bytes.Cut(data, []byte("\n"))
	if !ok || len(data) > maxRecord {
		return nil, errDamaged
	}
	r := new(record)
	if err := json.Unmarshal(text, r); err != nil || !r.valid() || !bytes.Equal(r.encode(), data) {
		return nil, errDamaged
	}
	return r, nil
}

func (r *record) valid() bool {
	known := make(map[tag]bool)
	for _, mark := range r.Rejected {
		known[mark] = true
	}
	for _, u := range r.Unfinished {
		known[u.Tag] = true
		if u.Tries < 1 || u.Tries > maxUnfinished {
			return false
		}
	}
	distinct := len(known) == len(r.Rejected)+len(r.Unfinished)
	sending := r.Sending == nil || r.index(*r.Sending) >= 0
	return r.Version == recordVersion && r.Rejected != nil && r.Unfinished != nil && distinct && len(known) <= maxPINs && sending
}
