package bridge

import (
	"bytes"
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

// serve is the life of one connection.
func (b *Bridge) serve(ctx context.Context, d *door, g *guest, port tunnel.Role) {
	defer d.leave(g)
	transport := tunnel.NewTransport(g.conn, b.cfg.KeepAlive)
	b.handshaking.Add(1)
	l, conn, err := b.welcome(ctx, d, g, transport, port)
	b.handshaking.Add(-1)
	if err != nil {
		b.turnAway(g, conn, transport, port, err)
		return
	}
	d.leave(g)
	// On a goroutine of its own the leg needs no more than a small stack.
	b.legs.Go(func() { b.run(l) })
}

// welcome makes a leg of a guest. conn is nil without TLS settings.
func (b *Bridge) welcome(ctx context.Context, d *door, g *guest, transport *tunnel.Transport, port tunnel.Role) (*leg, *tls.Conn, error) {
	config, err := b.tls.newest()
	if err != nil {
		return nil, nil, err
	}
	seen := &watched{transport, g}
	conn := tls.Server(seen, config)
	l, err := b.admit(ctx, conn, transport, port, func() { d.welcome(g) })
	if err != nil {
		return nil, conn, err
	}
	seen.guest = nil
	l.settings = config
	return l, conn, nil
}

// turnAway ends a connection that is no leg. While it waits for the peer's own
// end its place is the first to be given to another.
func (b *Bridge) turnAway(g *guest, conn *tls.Conn, transport *tunnel.Transport, port tunnel.Role, err error) {
	if g.shed.Load() {
		b.shed.Add(1)
		err = errShed
	}
	b.refuse(g.conn, port, err)
	g.lost.Store(true)
	if conn == nil {
		_ = transport.Close()
	} else {
		closeLeg(conn, transport)
	}
	<-transport.Done()
}

// run lets an admitted leg wait and then copy.
func (b *Bridge) run(l *leg) {
	if err := b.hub.enqueue(l); err != nil {
		b.refuse(l.transport.Conn, l.role, fmt.Errorf("%q: %w", l.name, err))
		closeLeg(l.conn, l.transport)
		<-l.transport.Done()
		return
	}
	if err := b.tls.recheck(l); err != nil {
		b.hub.cut(l, err)
	}
	b.match()
	p, err := l.wait(b.hub)
	if p == nil {
		b.log.Debug("waiting connection ended", "port", l.role.String(), "name", l.name,
			"peer", l.address(), "reason", err.Error())
		b.cfg.Observer.Left(l.role, time.Since(l.since), wordFor(err, ReasonFailed))
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
	b.cfg.Observer.Refused(port, wordFor(err, ReasonTLS))
	b.strange.Warn("connection refused", "port", port.String(), "peer", conn.RemoteAddr().String(), "reason", err.Error())
}

// admit runs the handshake and reads the hello within the deadline. A peer
// that is refused after a well-formed hello has been told so by an ack.
// authenticated is called once it has shown a valid certificate.
func (b *Bridge) admit(ctx context.Context, conn *tls.Conn, transport *tunnel.Transport, port tunnel.Role, authenticated func()) (*leg, error) {
	ctx, cancel := context.WithTimeout(ctx, b.cfg.Handshake)
	defer cancel()
	unbind := tunnel.Bound(ctx, transport)
	hello, early, err := greet(conn, port, authenticated)
	// Before anything else is written: the bound must not cut the goodbye.
	if !unbind() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	l := &leg{
		role: port, order: hello.Order, conn: conn, transport: transport,
		since: time.Now(), paired: make(chan *pair, 1), early: early,
	}
	status := hello.Check(port)
	if status == tunnel.StatusOK {
		l.name, status = b.identify(conn, port)
	}
	if status != tunnel.StatusOK {
		// Dropped either way; that the ack cannot be written changes nothing.
		_ = l.ack(status, tunnel.NewSessionID())
		return nil, fmt.Errorf("%s: %w", describe(conn), answer(status))
	}
	return l, nil
}

// greet runs the TLS handshake and reads a hello, and what else of a client's
// stands in the same record: mostly its inner ClientHello.
func greet(conn *tls.Conn, port tunnel.Role, authenticated func()) (hello tunnel.Hello, early []byte, err error) {
	if err := conn.Handshake(); err != nil {
		return hello, nil, err
	}
	authenticated()
	space := largeBuffers.Get().(*[largeBuffer]byte)
	defer largeBuffers.Put(space)
	into := space[:]
	if port == tunnel.RoleServer { // which is to send nothing else
		into = space[:tunnel.HelloSize]
	}
	n, err := io.ReadAtLeast(conn, into, tunnel.HelloSize)
	if err != nil {
		return hello, nil, fmt.Errorf("%s: %w: %w", describe(conn), errNoHello, err)
	}
	if hello, err = tunnel.DecodeHello([tunnel.HelloSize]byte(into)); err != nil {
		return hello, nil, fmt.Errorf("%s: %w", describe(conn), err)
	}
	return hello, bytes.Clone(into[tunnel.HelloSize:n]), nil
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
