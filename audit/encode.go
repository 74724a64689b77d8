package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	maxText        = 512 // bytes of one string; a longer one is cut
	maxDetails     = 32
	maxDetailName  = 64
	maxKind        = 64
	prefixCapacity = 160 // bytes of seq, batch, prev and the newline, with room to spare
)

// encodeBody returns the record's fields, without those that need its place in
// the chain: what follows the brace that opens the line. It runs in the caller's
// goroutine, so that the one that writes has little to do. What a peer may have made
// long is clipped, so that a request cannot escape the log by its size.
//
// The fields are those of Record's JSON, in its order; they are written one by one
// because this is done for every signature, and encoding/json takes four times as long.
func encodeBody(r Record) ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	e := make(encoder, 0, r.sizeHint())
	if err := e.time(r.Time); err != nil {
		return nil, err
	}
	e.field(`,"process":`, r.Process)
	e.field(`,"kind":`, string(r.Kind))
	e.optional(`,"user":`, r.User)
	e.optional(`,"key":`, r.Key)
	e.optional(`,"handle":`, r.Handle)
	e.optional(`,"scheme":`, r.Scheme)
	e.optional(`,"hash":`, r.DigestAlgorithm)
	e.digests(r.Digests)
	e.optional(`,"session":`, r.Session)
	if r.Request != nil {
		e = strconv.AppendUint(append(e, `,"request":`...), *r.Request, 10)
	}
	e.peer(r.Peer)
	e.field(`,"outcome":`, r.Outcome)
	e.optional(`,"idempotency_key":`, r.IdempotencyKey)
	e.details(r.Details)
	e = append(e, '}')
	if len(e) > MaxLine-prefixCapacity {
		return nil, fmt.Errorf("%w: %d bytes, and at most %d fit a line", ErrInvalid, len(e), MaxLine-prefixCapacity)
	}
	return e, nil
}

// sizeHint is about how long a record without details is.
func (r *Record) sizeHint() int {
	size := 512
	for _, digest := range r.Digests {
		size += len(digest) + len(`"",`)
	}
	return size
}

// encoder appends the fields of one record.
type encoder []byte

func (e *encoder) time(at time.Time) error {
	encoded, err := at.UTC().AppendText(append(*e, `"time":"`...))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	*e = append(encoded, '"')
	return nil
}

// field appends a text, clipped, behind a name that brings its own punctuation.
func (e *encoder) field(name, text string) {
	*e = append(*e, name...)
	e.text(clip(text))
}

// optional leaves out what is empty.
func (e *encoder) optional(name, text string) {
	if text != "" {
		e.field(name, text)
	}
}

func (e *encoder) digests(digests []string) {
	for i, digest := range digests {
		*e = append(*e, separator(i, `,"digests":[`)...)
		e.text(digest)
	}
	if len(digests) > 0 {
		*e = append(*e, ']')
	}
}

func (e *encoder) peer(p *Peer) {
	if p == nil {
		return
	}
	*e = append(*e, `,"peer":{`...)
	n := 0
	for _, f := range []struct{ name, text string }{{"address", p.Address}, {"serial", p.Serial}, {"fingerprint", p.Fingerprint}} {
		if f.text == "" {
			continue
		}
		*e = append(append(append(*e, separator(n, "")...), '"'), f.name...)
		e.field(`":`, f.text)
		n++
	}
	*e = append(*e, '}')
}

func (e *encoder) details(details map[string]string) {
	if len(details) == 0 {
		return
	}
	for i, name := range slices.Sorted(maps.Keys(details)) {
		*e = append(*e, separator(i, `,"details":{`)...)
		e.text(name)
		e.field(":", details[name])
	}
	*e = append(*e, '}')
}

// separator is what stands before the entry with this number.
func separator(i int, opening string) string {
	if i == 0 {
		return opening
	}
	return ","
}

// text appends a JSON string. encoding/json writes those that need escapes, which hardly any does.
func (e *encoder) text(s string) {
	if isPlain(s) {
		*e = append(append(append(*e, '"'), s...), '"')
		return
	}
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(s) // a string and a buffer do not fail
	*e = append(*e, escapeUnprintable(b.Bytes()[:b.Len()-1])...)
}

// check refuses what the program got wrong; what a peer may have sent is clipped instead.
func (r *Record) check() error {
	if !isName(string(r.Kind)) {
		return fmt.Errorf("%w: kind %q: want 1 to %d characters, only a-z, 0-9, dots and underscores", ErrInvalid, r.Kind, maxKind)
	}
	if !isName(r.Outcome) {
		return fmt.Errorf("%w: outcome %q: want 1 to %d characters, only a-z, 0-9, dots and underscores", ErrInvalid, r.Outcome, maxKind)
	}
	if len(r.Details) > maxDetails {
		return fmt.Errorf("%w: %d details, and at most %d are kept", ErrInvalid, len(r.Details), maxDetails)
	}
	for name := range r.Details {
		if len(name) > maxDetailName {
			return fmt.Errorf("%w: the name of a detail has %d bytes, at most %d are kept", ErrInvalid, len(name), maxDetailName)
		}
	}
	return nil
}

// clip cuts a string between two runes and says how much is gone.
func clip(s string) string {
	if len(s) <= maxText {
		return s
	}
	end := maxText
	for end > maxText-utf8.UTFMax && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + "…(" + strconv.Itoa(len(s)-end) + " bytes more)"
}

func isName(s string) bool {
	if s == "" || len(s) > maxKind {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' && c != '.' {
			return false
		}
	}
	return true
}

// escapeUnprintable escapes what JSON leaves alone and a terminal obeys: DEL,
// the C1 controls, and the marks that turn the direction of writing. Outside of
// strings JSON has only printable ASCII.
func escapeUnprintable(encoded []byte) []byte {
	escaped := make([]byte, 0, len(encoded)+64)
	for len(encoded) > 0 {
		c, size := utf8.DecodeRune(encoded)
		switch {
		case unicode.IsPrint(c):
			escaped = append(escaped, encoded[:size]...)
		case c > 0xffff:
			c -= 0x10000
			escaped = fmt.Appendf(escaped, `\u%04x\u%04x`, 0xd800+c>>10, 0xdc00+c&0x3ff)
		default:
			escaped = fmt.Appendf(escaped, `\u%04x`, c)
		}
		encoded = encoded[size:]
	}
	return escaped
}

// isPlain says whether a text is the same in JSON, and cannot steer a terminal.
func isPlain(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= 0x7f || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}

// appendLine appends the line that follows head and returns the new head.
func appendLine(lines []byte, head Head, batch uint64, body []byte) ([]byte, Head) {
	start := len(lines)
	seq := head.Seq + 1
	lines = append(lines, `{"seq":`...)
	lines = strconv.AppendUint(lines, seq, 10)
	if batch != seq {
		lines = append(lines, `,"batch":`...)
		lines = strconv.AppendUint(lines, batch, 10)
	}
	lines = append(lines, `,"prev":"`...)
	lines = hex.AppendEncode(lines, head.Hash[:])
	lines = append(lines, `",`...)
	lines = append(lines, body...)
	lines = append(lines, '\n')
	return lines, Head{Seq: seq, Hash: sha256.Sum256(lines[start:])}
}

// link is what the chain needs to know of a line.
type link struct {
	Seq     uint64            `json:"seq"`
	Batch   uint64            `json:"batch"`
	Prev    *Hash             `json:"prev"`
	Kind    Kind              `json:"kind"`
	Details map[string]string `json:"details"`
}

// decodeLink reads the chain's part of a line without its newline.
func decodeLink(line []byte) (link, error) {
	var l link
	if err := json.Unmarshal(line, &l); err != nil {
		return link{}, err
	}
	if l.Seq == 0 || l.Prev == nil || l.Batch > l.Seq {
		return link{}, fmt.Errorf("audit: not a record: seq or prev is missing")
	}
	if l.Batch == 0 {
		l.Batch = l.Seq
	}
	return l, nil
}

// decodeEntry reads a whole line without its newline.
func decodeEntry(line []byte) (Entry, error) {
	var e Entry
	if err := json.Unmarshal(line, &struct {
		Prev *Hash `json:"prev"`
		*Record
	}{&e.Prev, &e.Record}); err != nil {
		return Entry{}, err
	}
	e.Raw = bytes.Clone(line)
	return e, nil
}

// stamp fills in what the caller left to the log.
func (r *Record) stamp(now time.Time, process string) {
	if r.Time.IsZero() {
		r.Time = now
	}
	if r.Process == "" {
		r.Process = process
	}
}
