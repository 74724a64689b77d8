package canary

import (
	"context"
	"crypto/x509"
	"net"

	"chancery/tunnel"
)

// Conn is the server's end of a connection that never leaves the process. It
// has what package signer wants of one.
type Conn struct {
	net.Conn
	user    string
	session tunnel.SessionID
}

func newConn(user string) (near net.Conn, far *Conn) {
	near, server := net.Pipe()
	return near, &Conn{Conn: server, user: user, session: tunnel.NewSessionID()}
}

// PeerName is the canary's user.
func (c *Conn) PeerName() string { return c.user }

// PeerCertificate is nil: nobody came from outside.
func (c *Conn) PeerCertificate() *x509.Certificate { return nil }

// Session is the connection's own.
func (c *Conn) Session() tunnel.SessionID { return c.session }

// Extended is true: the canary speaks chancery/1.
func (c *Conn) Extended() bool { return true }

// RemoteAddr tells the records of the canary from those of clients.
func (c *Conn) RemoteAddr() net.Addr { return address{} }

type address struct{}

func (address) Network() string { return "internal" }
func (address) String() string  { return "canary" }

// Gate hands connections of the canary to whoever accepts those of clients.
type Gate struct{ arriving chan *Conn }

// NewGate returns one through which nobody has come.
func NewGate() *Gate { return &Gate{arriving: make(chan *Conn)} }

// Accept is for Config.Accept: it waits until somebody takes the connection.
func (g *Gate) Accept(ctx context.Context, conn *Conn) error {
	select {
	case g.arriving <- conn:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Arriving receives the connections.
func (g *Gate) Arriving() <-chan *Conn { return g.arriving }
