package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
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
// goroutine, so that the one that writes has little to do.
func encodeBody(r Record) ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	r.clip()
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(r); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	body := escapeUnprintable(b.Bytes()[1 : b.Len()-1])
	if len(body) > MaxLine-prefixCapacity {
		return nil, fmt.Errorf("%w: %d bytes, and at most %d fit a line", ErrInvalid, len(body), MaxLine-prefixCapacity)
	}
	return body, nil
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

// clip shortens what a peer may have made long, so that a request cannot escape
// the log by its size. It replaces what it changes and writes to nothing of the caller's.
func (r *Record) clip() {
	for _, s := range []*string{&r.Process, &r.User, &r.Key, &r.Handle, &r.Scheme, &r.DigestAlgorithm, &r.Session, &r.IdempotencyKey} {
		*s = clip(*s)
	}
	if r.Peer != nil {
		r.Peer = &Peer{Address: clip(r.Peer.Address), Serial: clip(r.Peer.Serial), Fingerprint: clip(r.Peer.Fingerprint)}
	}
	if r.Details != nil {
		details := make(map[string]string, len(r.Details))
		for name, value := range r.Details {
			details[name] = clip(value)
		}
		r.Details = details
	}
	r.Time = r.Time.UTC().Round(0)
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
	if isPlain(encoded) {
		return encoded
	}
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

func isPlain(encoded []byte) bool {
	for _, c := range encoded {
		if c >= 0x7f {
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
