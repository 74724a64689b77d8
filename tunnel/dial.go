package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"os"
	"time"
)

// Dial connects to a server through the bridge. Everything, including the wait
// for a free server, happens within cfg.Handshake and ctx. Every failure is an
// *Error, whose Kind and Retry a program can act upon.
//
// The hello and the inner ClientHello leave in one flight, which saves a round
// trip; the ack is read before the first inner byte.
func Dial(ctx context.Context, cfg *Config) (*Conn, error) {
	c, err := cfg.prepare(RoleClient)
	if err != nil {
		return nil, &Error{Kind: KindConfig, Bridge: cfg.Bridge, Err: err}
	}
	ctx, cancel := context.WithTimeout(ctx, c.Handshake)
	defer cancel()
	transport, err := c.dial(ctx)
	if err != nil {
		return nil, c.sorted(ctx, err, kinds{unreachable: KindBridgeUnreachable, protocol: KindBridgeUnreachable})
	}
	conn, err := c.connect(ctx, transport)
	if err != nil {
		_ = transport.Close()
		return nil, err
	}
	return conn, nil
}

// connect runs both handshakes of a client.
func (c *Config) connect(ctx context.Context, transport *Transport) (*Conn, error) {
	release := Bound(ctx, transport)
	outer := tls.Client(transport, c.Outer)
	if err := outer.Handshake(); err != nil {
		release()
		return nil, c.bridgeError(ctx, err)
	}
	first := &flight{innerTransport: innerTransport{outer}, config: c, ctx: ctx}
	inner := tls.Client(first, c.Inner)
	if err := inner.Handshake(); err != nil {
		release()
		hangUp(outer, transport)
		return nil, c.serverError(ctx, err)
	}
	if !release() {
		_ = inner.Close()
		return nil, c.serverError(ctx, os.ErrDeadlineExceeded)
	}
	conn := newConn(inner, outer, transport, first.session)
	conn.bridge = c.Bridge
	return conn, nil
}

// hangUp ends an outer session in order, so that an alert sent before reaches
// the peer, but spends no more than a second on it.
func hangUp(outer *tls.Conn, transport *Transport) {
	cut := time.AfterFunc(time.Second, func() { _ = transport.Close() })
	defer cut.Stop()
	_ = outer.Close()
}

// flight is the inner session's transport on a client. Its first Write puts
// the hello before what is written; its first Read takes the ack off. It is
// used by one goroutine until the inner handshake is done, and both have
// happened by then.
type flight struct {
	innerTransport
	config  *Config
	ctx     context.Context
	sent    bool
	acked   bool
	session SessionID
}

func (f *flight) Write(b []byte) (int, error) {
	if f.sent {
		return f.innerTransport.Write(b)
	}
	f.sent = true
	hello := NewHello(RoleClient).Encode()
	n, err := f.innerTransport.Write(append(hello[:], b...))
	if err != nil {
		return 0, f.config.ackError(f.ctx, alertAfter(f.Conn, err))
	}
	return n - len(hello), nil
}

func (f *flight) Read(b []byte) (int, error) {
	if f.acked {
		return f.innerTransport.Read(b)
	}
	ack, err := f.config.readAck(f.ctx, f.Conn)
	if err != nil {
		return 0, err
	}
	f.acked, f.session = true, ack.Session
	return f.innerTransport.Read(b)
}

// alertAfter looks for the alert that explains why a write failed: the bridge
// may have refused our certificate and hung up before we wrote.
func alertAfter(outer *tls.Conn, writeErr error) error {
	_ = outer.SetReadDeadline(time.Now().Add(time.Second))
	_, err := outer.Read(make([]byte, 1))
	if _, ok := remoteAlert(err); ok {
		return err
	}
	return writeErr
}

// readAck reads the bridge's answer and turns a refusal into an *Error.
func (c *Config) readAck(ctx context.Context, outer *tls.Conn) (Ack, error) {
	var b [AckSize]byte
	if _, err := io.ReadFull(outer, b[:]); err != nil {
		return Ack{}, c.ackError(ctx, err)
	}
	ack := DecodeAck(b)
	if ack.Status != StatusOK {
		return Ack{}, &Error{Kind: KindRejected, Status: ack.Status, Bridge: c.Bridge}
	}
	return ack, nil
}

// ackError sorts a failure between the outer handshake and the ack. A TLS 1.3
// bridge's refusal of our certificate arrives here; an orderly end or silence
// means that it had no partner for us.
func (c *Config) ackError(ctx context.Context, err error) *Error {
	if errors.Is(err, io.EOF) {
		return &Error{Kind: KindNoServer, Bridge: c.Bridge, Err: errNoAck}
	}
	sorted := c.bridgeError(ctx, err)
	if sorted.Kind == KindBridgeUnreachable && errors.Is(sorted.Err, context.DeadlineExceeded) {
		sorted.Kind = KindNoServer
	}
	return sorted
}
