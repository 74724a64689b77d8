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
	fresh   state = iota
	queued        // in a queue
	joining       // taken off its queue, its ack being written
	paired        // both acks are written; a pair is on its way through leg.paired
	gone          // ended while waiting; leg.reason says why
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
	paired    chan *pair // receives once, after state became paired
	early     []byte     // read while waiting; the leg's goroutine alone uses it

	// Guarded by the hub's mutex.
	state  state
	reason error
	expiry *time.Timer
	pair   *pair // once state is paired
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
)

func (l *leg) address() string { return l.transport.RemoteAddr().String() }

// ack writes an ack in the order that the peer used.
func (l *leg) ack(status tunnel.Status, id tunnel.SessionID) error {
	b := tunnel.Ack{Status: status, Session: id, Order: l.order}.Encode()
	if err := l.conn.SetWriteDeadline(time.Now().Add(writeBound)); err != nil {
		return err
	}
	_, err := l.conn.Write(b[:])
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
		l.early = append(l.early, buf[:n]...)
		switch h.check(l, l.fault(n, err)) {
		case paired:
			p := <-l.paired // sent after the interruption, if any
			return p, l.conn.SetReadDeadline(time.Time{})
		case gone:
			return nil, l.reason
		}
	}
}

// fault judges what a waiting leg's read returned.
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
