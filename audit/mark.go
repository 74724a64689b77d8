package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
)

// mark says up to where the log is durable: the end of a line in a segment.
type mark struct {
	Segment string `json:"segment"`
	Offset  int64  `json:"offset"`
	Head
}

// markSize is less than a disk's sector, so that a mark is written whole or not at all.
const markSize = 256

// checkedMark is a mark as the file head has it. The check shows whether all of
// it is from one write.
type checkedMark struct {
	mark
	Check string `json:"check"`
}

func (m mark) check() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d %s", m.Segment, m.Offset, m.Head))
	return hex.EncodeToString(sum[:8])
}

// readMark reads the file head. It returns false for one that says nothing: new,
// or torn when the power failed.
func readMark(r io.ReaderAt) (mark, bool) {
	buffer := make([]byte, markSize)
	n, err := r.ReadAt(buffer, 0)
	if n != markSize || err != nil && err != io.EOF {
		return mark{}, false
	}
	var m checkedMark
	if err := json.Unmarshal(buffer, &m); err != nil || m.Check != m.check() {
		return mark{}, false
	}
	first, ok := parseSegmentName(m.Segment)
	return m.mark, ok && m.Offset > 0 && m.Seq >= first
}

// writeMark is called when what it says is durable. It need not be durable
// itself: after a power failure an older mark is as true, and only costs reading.
func writeMark(w io.WriterAt, m mark) error {
	encoded, err := json.Marshal(checkedMark{mark: m, Check: m.check()})
	if err != nil {
		return err
	}
	if len(encoded) >= markSize {
		return fmt.Errorf("audit: a mark of %d bytes", len(encoded))
	}
	padded := append(encoded, bytes.Repeat([]byte{' '}, markSize-1-len(encoded))...)
	return writeWhole(w, append(padded, '\n'), 0)
}

func writeWhole(w io.WriterAt, data []byte, offset int64) error {
	n, err := w.WriteAt(data, offset)
	if err == nil && n < len(data) {
		return io.ErrShortWrite
	}
	return err
}
