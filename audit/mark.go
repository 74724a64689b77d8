package audit

import (
	"bytes"
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

// readMark reads the file head. It returns false for one that says nothing: new,
// or torn when the power failed.
func readMark(r io.ReaderAt) (mark, bool) {
	buffer := make([]byte, markSize)
	n, err := r.ReadAt(buffer, 0)
	if n != markSize || err != nil && err != io.EOF {
		return mark{}, false
	}
	var m mark
	if err := json.Unmarshal(buffer, &m); err != nil {
		return mark{}, false
	}
	first, ok := parseSegmentName(m.Segment)
	return m, ok && m.Offset > 0 && m.Seq >= first
}

// writeMark is called when what it says is durable. It need not be durable
// itself: after a power failure an older mark is as true, and only costs reading.
func writeMark(w io.WriterAt, m mark) error {
	encoded, err := json.Marshal(m)
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
