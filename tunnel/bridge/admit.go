package bridge

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"time"

	"chancery/tunnel"
)

// writeBound bounds the write of an ack, whose 17 bytes fit any socket buffer.
const writeBound = 5 * time.Second

// serve is the life of one connection. release gives back its handshake slot.
func (b *Bridge) serve(ctx context.Context, raw net.Conn, port tunnel.Role, release func()) {
	defer release()
	transport := tunnel.NewTransport(raw, b.cfg.KeepAlive)
	conn := tls.Server(transport, b.cfg.TLS)
	b.handshaking.Add(1)
	l, err := b.admit(ctx, conn, transport, port)
	b.handshaking.Add(-1)
	if err != nil {
		b.refuse(raw, port, err)
		closeLeg(conn, transport)
		<-transport.Done()
		return
	}
	release()
	b.run(l)
}

// run lets an admitted leg wait and then copy.
func (b *Bridge) run(l *leg) {
	if err := b.hub.enqueue(l); err != nil {
		b.refuse(l.transport.Conn, l.role, fmt.Errorf("%q: %w", l.name, err))
		closeLeg(l.conn, l.transport)
		<-l.transport.Done()
		return
	}
	b.match()
	p, err := l.wait(b.hub)
	if p == nil {
		b.log.Debug("waiting connection ended", "port", l.role.String(), "name", l.name,
			"peer", l.address(), "reason", err.Error())
		closeLeg(l.conn, l.transport)
		b.hub.forget(l)
		// A place may have come free for those that wait.
		b.match()
		<-l.transport.Done()
		return
	}
	b.copyFrom(p, l)
}

// refuse records a connection that never came to wait.
func (b *Bridge) refuse(conn net.Conn, port tunnel.Role, err error) {
	b.refused.Add(1)
	b.strange.Warn("connection refused", "port", port.String(), "peer", conn.RemoteAddr().String(), "reason", err.Error())
}

// admit runs the handshake and reads the hello within the deadline. A peer
// that is refused after a well-formed hello has been told so by an ack.
func (b *Bridge) admit(ctx context.Context, conn *tls.Conn, transport *tunnel.Transport, port tunnel.Role) (*leg, error) {
	ctx, cancel := context.WithTimeout(ctx, b.cfg.Handshake)
	defer cancel()
	unbind := tunnel.Bound(ctx, transport)
	hello, err := greet(conn)
	// Before anything else is written: the bound must not cut the goodbye.
	if !unbind() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	l := &leg{
		role: port, order: hello.Order, conn: conn, transport: transport,
		since: time.Now(), paired: make(chan *pair, 1),
	}
	status := hello.Check(port)
	if status == tunnel.StatusOK {
		l.name, status = b.identify(conn, port)
	}
	if status != tunnel.StatusOK {
		// Dropped either way; that the ack cannot be written changes nothing.
		_ = l.ack(status, tunnel.NewSessionID())
		return nil, fmt.Errorf("%s: answered %q", describe(conn), status)
	}
	return l, nil
}

// greet runs the TLS handshake and reads a hello.
func greet(conn *tls.Conn) (tunnel.Hello, error) {
	if err := conn.Handshake(); err != nil {
		return tunnel.Hello{}, err
	}
	var b [tunnel.HelloSize]byte
	if _, err := io.ReadFull(conn, b[:]); err != nil {
		return tunnel.Hello{}, fmt.Errorf("%s: no hello: %w", describe(conn), err)
	}
	hello, err := tunnel.DecodeHello(b)
	if err != nil {
		return tunnel.Hello{}, fmt.Errorf("%s: %w", describe(conn), err)
	}
	return hello, nil
}

// identify returns the name of an authenticated peer, or why it has none here.
func (b *Bridge) identify(conn *tls.Conn, port tunnel.Role) (string, tunnel.Status) {
	name, err := tunnel.CertificateName(conn.ConnectionState().PeerCertificates[0])
	switch {
	case err != nil:
		return "", tunnel.StatusNoName
	case port == tunnel.RoleServer && !b.allowed[name]:
		return name, tunnel.StatusNotAllowed
	}
	return name, tunnel.StatusOK
}

// describe names an authenticated peer for the log; %q keeps what stands in
// its certificate from writing lines of its own.
func describe(conn *tls.Conn) string {
	cert := conn.ConnectionState().PeerCertificates[0]
	name, err := tunnel.CertificateName(cert)
	if err != nil {
		return fmt.Sprintf("certificate serial %x", cert.SerialNumber)
	}
	return fmt.Sprintf("%q", name)
}

// closeLeg sends close_notify and FIN and does not wait for the peer.
func closeLeg(conn *tls.Conn, transport *tunnel.Transport) {
	cut := time.AfterFunc(writeBound, func() { _ = transport.Close() })
	defer cut.Stop()
	_ = conn.Close() // in any case closes the transport
}
