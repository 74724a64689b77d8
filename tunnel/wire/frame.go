package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Errors of Reader. After any but ErrDone the stream cannot be used further,
// except that a read deadline may be extended and the call repeated.
var (
	// ErrDone is the empty frame: the peer sends nothing more and waits for what is in flight.
	ErrDone = errors.New("wire: peer is done")
	// ErrTooLarge says that a frame announces more than the limit. Close the connection.
	ErrTooLarge = errors.New("wire: frame too large")
)

const (
	frameHeader   = 8        // one big-endian u64
	readerInitial = 16 << 10 // one TLS record
	readerKeep    = 64 << 10 // larger buffers are given back after the frame that needed them
	maxEmptyReads = 100
)

// Reader cuts a stream into frames. It is used by one goroutine at a time.
//
// It never allocates more than twice what has arrived (and one TLS record to
// begin with), whatever length a frame announces.
type Reader struct {
	source     io.Reader
	limit      int
	buffer     []byte
	start, end int // unread bytes are buffer[start:end]
	lent       int // bytes from start on that the last Next gave out
}

// NewReader returns a Reader of frames whose payload has at most limit bytes.
func NewReader(source io.Reader, limit int) *Reader {
	return &Reader{source: source, limit: limit}
}

// Wait blocks until the first byte of the next frame has arrived. A server waits
// under its idle deadline, then calls Next under the shorter one for a frame on
// its way. It returns io.EOF when the stream ends between two frames.
func (r *Reader) Wait() error {
	r.release()
	return r.need(1)
}

// Next returns the payload of the next frame. The slice is valid until the next
// call of Wait or Next, which overwrites it with zeros: a frame may hold a
// passphrase.
//
// Errors: io.EOF at the end of the stream between two frames,
// io.ErrUnexpectedEOF inside a frame, ErrDone for the empty frame, ErrTooLarge,
// or what the source returned.
func (r *Reader) Next() ([]byte, error) {
	r.release()
	if err := r.need(frameHeader); err != nil {
		return nil, err
	}
	length := binary.BigEndian.Uint64(r.buffer[r.start:])
	if length == 0 {
		r.start += frameHeader
		return nil, ErrDone
	}
	if length > uint64(r.limit) {
		return nil, fmt.Errorf("%w: %d bytes announced, %d allowed", ErrTooLarge, length, r.limit)
	}
	total := frameHeader + int(length)
	if err := r.need(total); err != nil {
		return nil, err
	}
	r.lent = total
	return r.buffer[r.start+frameHeader : r.start+total : r.start+total], nil
}

// Ready tells whether the next frame has arrived as a whole, so that Next
// returns at once and needs no deadline.
func (r *Reader) Ready() bool {
	unread := r.buffer[r.start+r.lent : r.end]
	if len(unread) < frameHeader {
		return false
	}
	return binary.BigEndian.Uint64(unread) <= uint64(len(unread)-frameHeader)
}

// Buffered returns how many bytes have arrived behind the frame given out last.
func (r *Reader) Buffered() int { return r.end - r.start - r.lent }

// release takes back the frame given out last.
func (r *Reader) release() {
	clear(r.buffer[r.start : r.start+r.lent])
	r.start += r.lent
	r.lent = 0
	if r.start < r.end {
		return
	}
	r.start, r.end = 0, 0
	if len(r.buffer) > readerKeep {
		r.buffer = nil
	}
}

// need reads until n unread bytes are in the buffer.
func (r *Reader) need(n int) error {
	for empty := 0; r.end-r.start < n; {
		r.makeRoom()
		got, err := r.source.Read(r.buffer[r.end:])
		r.end += got
		if r.end-r.start >= n {
			return nil
		}
		if errors.Is(err, io.EOF) && r.end > r.start {
			return io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		if got > 0 {
			empty = 0
		} else if empty++; empty == maxEmptyReads {
			return io.ErrNoProgress
		}
	}
	return nil
}

// makeRoom leaves at least one free byte at the buffer's end: by moving the
// unread bytes to its front, else by doubling it.
func (r *Reader) makeRoom() {
	if r.end < len(r.buffer) {
		return
	}
	unread := r.buffer[r.start:r.end]
	if r.start > 0 {
		copy(r.buffer, unread)
		clear(r.buffer[len(unread):])
	} else {
		grown := make([]byte, max(readerInitial, 2*len(r.buffer)))
		copy(grown, unread)
		clear(unread)
		r.buffer = grown
	}
	r.start, r.end = 0, len(unread)
}

// AppendFrame appends one frame with this payload to dst.
func AppendFrame(dst, payload []byte) []byte {
	dst = binary.BigEndian.AppendUint64(dst, uint64(len(payload)))
	return append(dst, payload...)
}

// AppendDone appends the empty frame, after which the sender sends nothing more.
func AppendDone(dst []byte) []byte {
	return binary.BigEndian.AppendUint64(dst, 0)
}
