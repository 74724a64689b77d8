package audit

import (
	"bufio"
	"errors"
	"io"
)

var (
	errLong = errors.New("longer than a line may be")
	errTorn = errors.New("no newline at the end")
)

// lineReader reads lines of at most MaxLine bytes, whatever it is given.
type lineReader struct {
	buffered *bufio.Reader
	line     []byte
	offset   int64 // behind the line that next returned last
}

func newLineReader(r io.Reader, offset int64) *lineReader {
	return &lineReader{buffered: bufio.NewReaderSize(r, 64<<10), offset: offset}
}

// next returns the next line with its newline, valid until the next call. It
// returns errLong for a line that it passed over, errTorn for bytes without a
// newline before the end, and io.EOF behind the last line.
func (r *lineReader) next() ([]byte, error) {
	r.line = r.line[:0]
	length := 0
	for {
		part, err := r.buffered.ReadSlice('\n')
		length += len(part)
		r.offset += int64(len(part))
		if length <= MaxLine {
			r.line = append(r.line, part...)
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
		case err == io.EOF && length > 0:
			return nil, errTorn
		case err != nil:
			return nil, err
		case length > MaxLine:
			return nil, errLong
		default:
			return r.line, nil
		}
	}
}
