package worker

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"time"

	"chancery/token"
)

// The kinds of frames.
const (
	kindOpen byte = iota + 1 // to the worker, from here on
	kindInfo
	kindKeys
	kindUnlock
	kindSign
	kindCancel // nobody waits for the call's result any more
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
	// maxFrame bounds a frame in bytes: what one request of the wire may hold and some room around each input, and the
	// signatures over them.
	maxFrame = 16 << 20
	// writeTimeout bounds how long the other end may leave the link full.
	writeTimeout = 10 * time.Second
	// usualBuffer is the size that a buffer begins with, and that it is not kept above.
	usualBuffer = 64 << 10
)

var (
	errFrame    = errors.New("worker: malformed frame")
	errTooLarge = fmt.Errorf("worker: more at once than the link to the token's process takes: %w", token.ErrUnsupported)
)

// frame is one message. Its body is valid until the next one is read.
type frame struct {
	kind byte
	call uint64
	body []byte
}

// link carries frames both ways. One goroutine at a time may read; any may write. What was sent or read is overwritten,
// since it may have been a passphrase.
type link struct {
	conn net.Conn

	received []byte // of which from:to has not been read
	from, to int
	given    int // where the frame that was read last begins; it ends at from

	mu      sync.Mutex
	next    []byte // what the next write takes
	spare   []byte
	writing bool
	broken  error
	room    *sync.Cond // next became empty, or the link broke
}

func newLink(conn net.Conn) *link {
	l := &link{conn: conn, received: make([]byte, usualBuffer)}
	l.room = sync.NewCond(&l.mu)
	return l
}

// read returns the next frame. The error is io.EOF where the other end closed the link between two frames.
func (l *link) read() (frame, error) {
	l.forget()
	if err := l.receive(frameHeader); err != nil {
		return frame{}, err
	}
	size := binary.BigEndian.Uint32(l.received[l.from:])
	if size < frameHeader-4 || size > maxFrame {
		return frame{}, fmt.Errorf("%w: a length of %d", errFrame, size)
	}
	if err := l.receive(4 + int(size)); err != nil {
		return frame{}, err
	}
	whole := l.received[l.from : l.from+4+int(size)]
	l.from += len(whole)
	return frame{kind: whole[4], call: binary.BigEndian.Uint64(whole[5:]), body: whole[frameHeader:]}, nil
}

// await returns when there is something to read, which read will give, or the link has ended.
func (l *link) await() error {
	l.forget()
	return l.receive(1)
}

// forget overwrites the frame that was read last.
func (l *link) forget() {
	clear(l.received[l.given:l.from])
	l.given = l.from
	if l.from < l.to {
		return
	}
	l.given, l.from, l.to = 0, 0, 0
	if len(l.received) > usualBuffer {
		l.received = make([]byte, usualBuffer)
	}
}

// receive waits until n bytes have not been read.
func (l *link) receive(n int) error {
	for l.to-l.from < n {
		l.makeRoom(n)
		got, err := l.conn.Read(l.received[l.to:])
		l.to += got
		if err == nil || l.to-l.from >= n {
			continue
		}
		if errors.Is(err, io.EOF) && l.to > l.from {
			return io.ErrUnexpectedEOF
		}
		return err
	}
	return nil
}

// makeRoom lets n bytes stand in the buffer from the first unread one on.
func (l *link) makeRoom(n int) {
	if len(l.received)-l.from >= n {
		return
	}
	old := l.received
	if n > len(old) {
		l.received = make([]byte, n)
	}
	unread := copy(l.received, old[l.from:l.to])
	if n > len(old) {
		clear(old)
	} else {
		clear(old[unread:l.to])
	}
	l.given, l.from, l.to = 0, 0, unread
}

// write sends a frame whose body of size bytes fill appends. Whoever finds nobody writing writes, and goes on while others
// have added something meanwhile. Errors: errTooLarge, when nothing was sent; why the link broke.
func (l *link) write(kind byte, call uint64, size int, fill func([]byte) []byte) error {
	if frameHeader-4+size > maxFrame {
		return errTooLarge
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.broken == nil && len(l.next) > 0 && len(l.next)+size > maxFrame {
		l.room.Wait() // whoever writes has it, or breaks the link by writeTimeout
	}
	if l.broken != nil {
		return l.broken
	}
	l.reserve(frameHeader + size)
	start := len(l.next)
	l.next = append(l.next, 0, 0, 0, 0, kind)
	l.next = binary.BigEndian.AppendUint64(l.next, call)
	if fill != nil {
		l.next = fill(l.next)
	}
	binary.BigEndian.PutUint32(l.next[start:], uint32(len(l.next)-start-4))
	if l.writing {
		return nil
	}
	l.writing = true
	l.mu.Unlock()
	runtime.Gosched() // whoever has been woken together with this one adds a frame to the same write
	l.mu.Lock()
	for len(l.next) > 0 && l.broken == nil {
		l.flush()
	}
	l.writing = false
	return l.broken
}

// writeBytes sends a frame with a body that is there already.
func (l *link) writeBytes(kind byte, call uint64, body []byte) error {
	return l.write(kind, call, len(body), func(b []byte) []byte { return append(b, body...) })
}

// reserve lets n bytes be appended to next without leaving a copy of it behind.
func (l *link) reserve(n int) {
	if cap(l.next)-len(l.next) >= n {
		return
	}
	grown := make([]byte, len(l.next), max(len(l.next)+n, 2*cap(l.next), usualBuffer))
	copy(grown, l.next)
	clear(l.next)
	l.next = grown
}

// flush writes what is there. It is called, and returns, with mu held. A link that broke is closed, for half a
// frame may have been written.
func (l *link) flush() {
	out := l.next
	l.next, l.spare = l.spare[:0], nil
	l.room.Broadcast()
	l.mu.Unlock()
	err := l.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	if err == nil {
		_, err = l.conn.Write(out)
	}
	clear(out)
	if err != nil {
		l.conn.Close()
	}
	l.mu.Lock()
	if cap(out) <= usualBuffer {
		l.spare = out
	}
	if err != nil {
		l.broken = err
		clear(l.next)
		l.next = nil
		l.room.Broadcast()
	}
}
