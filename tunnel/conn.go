package tunnel

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"
)

// closeTimeout bounds how long Close tries to tell the peer.
const closeTimeout = 5 * time.Second

// Conn is a paired connection: reads and writes are those of the inner
// session. One goroutine may read while another writes; Close and deadlines
// may be used at any time.
type Conn struct {
	*tls.Conn // the inner session
	outer     *tls.Conn
	transport *Transport
	name      string
	session   SessionID
	closed    func() // of a server's Listener; nil on a client's side

	// bridge is set on the client's side until its first byte has arrived.
	bridge string
	heard  atomic.Bool
}

// newConn takes over an inner session whose handshake is done.
func newConn(inner, outer *tls.Conn, transport *Transport, session SessionID) *Conn {
	c := &Conn{Conn: inner, outer: outer, transport: transport, session: session}
	// Listen refuses nameless clients in the handshake. A server is known by
	// its host name, so that its common name is only for display.
	c.name, _ = CertificateName(c.PeerCertificate())
	return c
}

// PeerName returns the first Common Name of the peer's certificate. It is never
// empty on a server's side. On a client's side it is for display (the server
// is identified by its host name) and empty when there is none.
func (c *Conn) PeerName() string { return c.name }

// Session returns the id that the bridge gave this pairing.
func (c *Conn) Session() SessionID { return c.session }

// Extended tells whether both ends are ours: ALPN agreed on Protocol. If not,
// the peer gets plain version 2.
func (c *Conn) Extended() bool { return c.ConnectionState().NegotiatedProtocol == Protocol }

// PeerCertificate returns the peer's verified certificate.
func (c *Conn) PeerCertificate() *x509.Certificate {
	return c.ConnectionState().PeerCertificates[0]
}

// Read reads from the inner session. io.EOF means that the peer ended it in
// order; any other end is an error, ErrTruncated for one that was cut.
//
// In TLS 1.3 a client learns only from its first Read that the server refused
// its certificate or does not know the user: that Read returns an *Error of
// KindServerRefused or KindServerClosed, or of KindServerUnreachable when the
// connection was cut before the server said anything.
func (c *Conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 || c.bridge == "" || c.heard.Load() {
		if n > 0 && c.bridge != "" {
			c.heard.Store(true)
		}
		return n, err
	}
	return n, c.firstReadError(err)
}

// firstReadError explains why a client's connection ended before its first byte.
func (c *Conn) firstReadError(err error) error {
	if alert, ok := remoteAlert(err); ok && certificateAlerts[alert] {
		return &Error{Kind: KindServerRefused, Bridge: c.bridge, Err: err}
	}
	if errors.Is(err, io.EOF) {
		return &Error{Kind: KindServerClosed, Bridge: c.bridge, Err: err}
	}
	if errors.Is(err, ErrTruncated) {
		return &Error{Kind: KindServerUnreachable, Bridge: c.bridge, Err: err}
	}
	return err
}

// CloseWrite ends this side's stream in both layers, so that the peer reads
// io.EOF. Reading goes on. Writes fail afterwards.
func (c *Conn) CloseWrite() error {
	return errors.Join(c.Conn.CloseWrite(), c.outer.CloseWrite())
}

// Close ends the connection in the protocol's order: inner close_notify, outer
// close_notify, FIN. It waits neither for the peer's answers nor, when the
// peer does not take in data, longer than 5 s. Where a Write is in progress in
// another goroutine, it cuts the connection instead.
func (c *Conn) Close() error {
	cut := time.AfterFunc(closeTimeout, func() { _ = c.transport.Close() })
	defer cut.Stop()
	if c.closed != nil {
		c.closed()
	}
	return c.Conn.Close() // closes outer and transport through innerTransport
}

// innerTransport is the outer session as the inner one's transport.
type innerTransport struct{ *tls.Conn }

func (t innerTransport) Read(b []byte) (int, error) {
	n, err := t.Conn.Read(b)
	return n, wholeStream(err)
}

var _ net.Conn = (*Conn)(nil)
