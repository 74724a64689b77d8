package worker

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// The kinds of frames.
const (
	kindOpen byte = iota + 1 // to the worker, from here on
	kindInfo
	kindKeys
	kindUnlock
	kindSign
	kindLock
	kindPing
	kindClose
	kindAnswer // to a kindAsk of the same call
	kindResult // from the worker, from here on
	kindFailure
	kindAsk // the ledger is wanted for the call
	kindHung
)

const (
	frameHeader = 4 + 1 + 8
	// maxFrame bounds a frame in bytes: what one request of the wire may hold, and some room around each input.
	maxFrame = 4 << 20
	// writeTimeout bounds how long the other end may leave the link full.
	writeTimeout = 10 * time.Second
	// keptBuffer bounds the buffer that is kept between writes.
	keptBuffer = 256 << 10
)

var errFrame = errors.New("worker: malformed frame")

// frame is one message. Its body is valid until the next one is read.
type frame struct {
	kind byte
	call uint64
	body []byte
}

// link carries frames both ways. One goroutine at a time may read; any may write.
type link struct {
	conn   net.Conn
	reader *bufio.Reader
	body   []byte

	mu      sync.Mutex
	next    []byte // what the next write takes
	spare   []byte
	writing bool
	broken  error
}

func newLink(conn net.Conn) *link {
	return &link{conn: conn, reader: bufio.NewReaderSize(conn, 64<<10)}
}

// read returns the next frame.
func (l *link) read() (frame, error) {
	var header [frameHeader]byte
	if _, err := io.ReadFull(l.reader, header[:]); err != nil {
		return frame{}, err
	}
	size := binary.BigEndian.Uint32(header[:4])
	if size < frameHeader-4 || size > maxFrame {
		return frame{}, fmt.Errorf("%w: a length of %d", errFrame, size)
	}
	n := int(size) - (frameHeader - 4)
	if cap(l.body) < n {
		l.body = make([]byte, n)
	}
	l.body = l.body[:n]
	if _, err := io.ReadFull(l.reader, l.body); err != nil {
		return frame{}, err
	}
	return frame{kind: header[4], call: binary.BigEndian.Uint64(header[5:]), body: l.body}, nil
}

// write sends a frame whose body fill appends. Whoever finds nobody writing writes, and goes on while others have added
// something meanwhile. What was sent is overwritten: it may have been a passphrase.
func (l *link) write(kind byte, call uint64, fill func([]byte) []byte) error {
	l.mu.Lock()
	if l.broken != nil {
		defer l.mu.Unlock()
		return l.broken
	}
	start := len(l.next)
	l.next = append(l.next, 0, 0, 0, 0, kind)
	l.next = binary.BigEndian.AppendUint64(l.next, call)
	if fill != nil {
		l.next = fill(l.next)
	}
	size := len(l.next) - start - 4
	if size > maxFrame {
		clear(l.next[start:])
		l.next = l.next[:start]
		l.mu.Unlock()
		return fmt.Errorf("%w: %d bytes are too many", errFrame, size)
	}
	binary.BigEndian.PutUint32(l.next[start:], uint32(size))
	if l.writing {
		l.mu.Unlock()
		return nil
	}
	l.writing = true
	defer l.mu.Unlock()
	for len(l.next) > 0 && l.broken == nil {
		l.flush()
	}
	l.writing = false
	return l.broken
}

// flush writes what is there. It is called, and returns, with mu held.
func (l *link) flush() {
	out := l.next
	l.next, l.spare = l.spare[:0], nil
	l.mu.Unlock()
	err := l.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	if err == nil {
		_, err = l.conn.Write(out)
	}
	clear(out)
	l.mu.Lock()
	if cap(out) <= keptBuffer {
		l.spare = out
	}
	if err != nil {
		l.broken = err
	}
}
