package bridge

import (
	"crypto/tls"
	"errors"
	"io"
	"os"
	"time"

	"chancery/tunnel"
)

// state is where a leg stands. The hub's mutex guards it.
type state uint8

const (
	fresh    state = iota
	queued         // in a queue
	joining        // taken off its queue, its ack being written
	asked          // a server's: the client's early bytes were passed on
	answered       // a server's: something came back; its goroutine waits for leg.paired
	paired         // both acks are written; a pair is on its way through leg.paired
	gone           // ended while waiting; leg.reason says why
)

// leg is one authenticated connection.
type leg struct {
	role      tunnel.Role
	name      string
	order     tunnel.Order
	conn      *tls.Conn
	transport *tunnel.Transport
	settings  *tls.Config // of its handshake
	since     time.Time
	paired    chan *pair // receives once: the pair, or nil where an answered leg ends without one

	// Guarded by the hub's mutex.
	state      state
	reason     error
	expiry     *time.Timer
	early      []byte        // read while waiting; once state is paired, the leg's goroutine alone uses it
	news       chan struct{} // of the pair that is being tried, told of what the leg does
	unanswered int           // a client's: servers that were tried in vain
	pair       *pair         // once state is paired
}

// Why a leg stopped waiting.
var (
	errClosed  = errors.New("closed")
	errNoHello = errors.New("no hello")
	errSpoke   = errors.New("sent data before it was paired")
	errTooMuch = errors.New("sent too much before it was paired")
	errNobody  = errors.New("no server became free in time")
	errDrained = errors.New("the bridge is shutting down")
	errAck     = errors.New("the ack could not be delivered")
	errPartner = errors.New("its partner was lost while being paired")
	errSilent  = errors.New("it did not answer the client in time")
)

func (l *leg) address() string { return l.transport.RemoteAddr().String() }

// ack writes an ack in the order that the peer used.
func (l *leg) ack(status tunnel.Status, id tunnel.SessionID) error {
	b := tunnel.Ack{Status: status, Session: id, Order: l.order}.Encode()
	return l.write(b[:], time.Now().Add(writeBound))
}

// write writes all of b before the deadline, or fails.
func (l *leg) write(b []byte, deadline time.Time) error {
	if err := l.conn.SetWriteDeadline(deadline); err != nil {
		return err
	}
	_, err := l.conn.Write(b)
	return errors.Join(err, l.conn.SetWriteDeadline(time.Time{}))
}

// interrupt makes the leg's goroutine look at its state. A TLS read that times
// out loses nothing and can go on.
func (l *leg) interrupt() { _ = l.conn.SetReadDeadline(time.Unix(1, 0)) }

// wait reads until the leg is paired or ends, and returns the pair or why there
// is none. Bytes that came early are in l.early.
func (l *leg) wait(h *hub) (*pair, error) {
	size := 1 // a server has nothing to say yet
	if l.role == tunnel.RoleClient {
		size = 2048 // an inner ClientHello
	}
	buf := make([]byte, size)
	for {
		n, err := l.conn.Read(buf)
		switch h.heard(l, buf[:n], err) {
		case answered, paired:
			if p := <-l.paired; p != nil { // sent after the interruption, if any
				return p, l.conn.SetReadDeadline(time.Time{})
			}
			return nil, l.reason
		case gone:
			return nil, l.reason
		}
	}
}

// tell has whoever tries the leg look at it again.
func (l *leg) tell() {
	select {
	case l.news <- struct{}{}:
	default: // told already, or nobody tries
	}
}

// fault judges what a waiting leg's read returned, with the hub's mutex held.
func (l *leg) fault(n int, err error) error {
	switch {
	case err == nil && n > 0 && l.role == tunnel.RoleServer:
		return errSpoke
	case len(l.early) > earlyBytes:
		return errTooMuch
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil
	case errors.Is(err, io.EOF):
		return errClosed
	}
	return err
}
