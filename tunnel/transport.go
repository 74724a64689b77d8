package tunnel

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// ErrTruncated is returned by reads of a stream that ended without the TLS
// close_notify that would make its end authentic.
var ErrTruncated = errors.New("tunnel: the connection was cut without a TLS close")

// linger bounds how long a closed connection waits for the peer's own end.
const linger = time.Second

// lingerBytes bounds what is read and thrown away meanwhile.
const lingerBytes = 1 << 20

// past is a deadline that makes every blocked call return.
var past = time.Unix(1, 0)

// DefaultKeepAlive finds a peer that vanished without a word within half a
// minute: a probe after 15 s of silence, then every 5 s, three in all.
func DefaultKeepAlive() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3}
}

// Transport is the raw connection under an outer TLS session. It differs from
// a TCP connection in two ways.
//
// Its Read returns ErrTruncated where TCP returns io.EOF, because crypto/tls
// would report a bare FIN like an authentic close_notify.
//
// Its Close sends FIN and then reads on in the background for up to a second
// before the socket is closed: closing a socket that holds unread bytes makes
// the kernel send RST, which would destroy an alert or an ack still on its way
// to the peer.
type Transport struct {
	net.Conn
	reading sync.Mutex // held by Read, so that Close knows when none is left
	closed  atomic.Bool
	done    chan struct{}
}

// NewTransport takes over a connection and sets no-delay, TCP keepalive and, on
// Linux, the same limit for unacknowledged data on it where it is TCP. Linux counts
// a peer whose window stays closed as well, and with a longer limit would find one
// that vanished later, whatever keepalive says.
func NewTransport(conn net.Conn, keepAlive net.KeepAliveConfig) *Transport {
	if tcp, ok := conn.(*net.TCPConn); ok {
		// A socket that refuses an option still works, only less promptly.
		_ = tcp.SetNoDelay(true)
		_ = tcp.SetKeepAliveConfig(keepAlive)
		_ = setUserTimeout(tcp, silence(keepAlive))
	}
	return &Transport{Conn: conn, done: make(chan struct{})}
}

// silence is how long keepalive lets a peer be silent before it gives up.
func silence(keepAlive net.KeepAliveConfig) time.Duration {
	return keepAlive.Idle + time.Duration(keepAlive.Count)*keepAlive.Interval
}

// Read reads from the connection; the end of the stream is ErrTruncated.
func (t *Transport) Read(b []byte) (int, error) {
	t.reading.Lock()
	defer t.reading.Unlock()
	if t.closed.Load() {
		return 0, net.ErrClosed
	}
	n, err := t.Conn.Read(b)
	if err != nil && t.closed.Load() {
		return n, net.ErrClosed
	}
	return n, wholeStream(err)
}

// Close sends FIN, unblocks reads and writes, and closes the socket when the
// peer has ended too, at the latest after a second. It does not wait for that;
// see Done.
func (t *Transport) Close() error {
	if !t.closed.CompareAndSwap(false, true) {
		return net.ErrClosed
	}
	_ = t.Conn.SetDeadline(past)
	half, ok := t.Conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		defer close(t.done)
		return t.Conn.Close()
	}
	go t.drain()
	return nil
}

// Done is closed when the socket is.
func (t *Transport) Done() <-chan struct{} { return t.done }

func (t *Transport) drain() {
	defer close(t.done)
	t.reading.Lock()
	defer t.reading.Unlock()
	_ = t.Conn.SetReadDeadline(time.Now().Add(linger))
	_, _ = io.CopyN(io.Discard, t.Conn, lingerBytes)
	_ = t.Conn.Close()
}

// wholeStream turns the end of a lower layer into an error of the upper one:
// crypto/tls takes io.EOF and io.ErrUnexpectedEOF from below for an orderly end.
func wholeStream(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return ErrTruncated
	}
	return err
}

// Bound makes all calls on conn fail with a time-out once ctx is done. The
// returned function ends this and lifts the deadline; it returns false when
// ctx was done first. It must be called, once, whatever became of conn: what is
// written afterwards is then not cut by this context any more.
func Bound(ctx context.Context, conn net.Conn) (release func() bool) {
	expired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(expired)
		_ = conn.SetDeadline(past)
	})
	return func() bool {
		inTime := stop()
		if !inTime {
			<-expired
		}
		_ = conn.SetDeadline(time.Time{}) // a closed conn says so at its next use
		return inTime
	}
}
