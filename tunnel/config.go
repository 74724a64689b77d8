package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"
)

// Protocol is the ALPN name of the inner session between two of our own
// programs.
const Protocol = "chancery/1"

// Config tells how to reach a bridge and whom to trust. It may be shared; no
// function of this package changes it.
type Config struct {
	// Bridge is the bridge's address, host:port.
	Bridge string
	// Outer is for the session with the bridge. RootCAs and a certificate must
	// be set. An empty ServerName is taken from Bridge.
	Outer *tls.Config
	// Inner is for the session with the other end. Dial needs RootCAs,
	// ServerName and a certificate; Listen needs ClientCAs and a certificate.
	Inner *tls.Config
	// Settings, where set, is asked for the newest Outer and Inner, and the two
	// fields are ignored: by Dial once, by Listen before it dials a leg and again
	// before each inner handshake. So certificates can be replaced without a
	// restart. It is called by several goroutines.
	Settings func() (outer, inner *tls.Config)
	// Handshake bounds Dial as a whole, and in Listen separately connecting to
	// the bridge and the inner handshake. Default 15 s.
	Handshake time.Duration
	// KeepAlive is TCP's. Default DefaultKeepAlive.
	KeepAlive net.KeepAliveConfig
	// MaxHandshakes bounds the inner handshakes that Listen has in progress
	// and the sessions that wait for Accept. Default 128: twice what the bridge
	// lets one client have, so that one who falls silent does not hold up the others.
	MaxHandshakes int
	// RetryMin and RetryMax bound the pause before Listen dials again after a
	// failure. It doubles from failure to failure, and half of it is random.
	// Defaults 200 ms and 15 s.
	RetryMin, RetryMax time.Duration
	// Log receives what Listen does in the background. Default: nothing.
	Log Logger
}

// prepare returns a copy with defaults filled in and with TLS settings that
// cannot be weaker than the protocol's. It fails rather than trust too much.
func (c *Config) prepare(role Role) (*Config, error) {
	p := *c
	if p.Settings != nil {
		p.Outer, p.Inner = p.Settings()
	}
	host, _, err := net.SplitHostPort(p.Bridge)
	if err != nil {
		return nil, fmt.Errorf("the bridge's address %q is not host:port: %w", p.Bridge, err)
	}
	if p.Outer, err = dialer(p.Outer, "outer", host); err != nil {
		return nil, err
	}
	if role == RoleClient {
		p.Inner, err = dialer(p.Inner, "inner", "")
	} else {
		p.Inner, err = acceptor(p.Inner)
	}
	if err != nil {
		return nil, err
	}
	p.setDefaults()
	return &p, nil
}

// newest returns the prepared settings as they stand now.
func (c *Config) newest(role Role) (*Config, error) {
	if c.Settings == nil {
		return c, nil
	}
	return c.prepare(role)
}

func (c *Config) setDefaults() {
	if c.Handshake <= 0 {
		c.Handshake = 15 * time.Second
	}
	if !c.KeepAlive.Enable {
		c.KeepAlive = DefaultKeepAlive()
	}
	if c.MaxHandshakes <= 0 {
		c.MaxHandshakes = 128
	}
	if c.RetryMin <= 0 {
		c.RetryMin = 200 * time.Millisecond
	}
	if c.RetryMax <= 0 {
		c.RetryMax = 15 * time.Second
	}
	c.RetryMax = max(c.RetryMin, c.RetryMax)
	if c.Log == nil {
		c.Log = Discard()
	}
}

// dialer hardens the settings of a TLS client.
func dialer(c *tls.Config, layer, host string) (*tls.Config, error) {
	switch {
	case c == nil:
		return nil, fmt.Errorf("the %s TLS settings are missing", layer)
	case c.RootCAs == nil:
		return nil, fmt.Errorf("the %s TLS settings name no CA, and the system's are never trusted", layer)
	case c.InsecureSkipVerify:
		return nil, fmt.Errorf("the %s TLS settings skip verification", layer)
	case len(c.Certificates) == 0 && c.GetClientCertificate == nil:
		return nil, fmt.Errorf("the %s TLS settings have no certificate", layer)
	}
	hard := harden(c)
	hard.ClientSessionCache = nil
	if hard.ServerName == "" {
		hard.ServerName = host
	}
	if hard.ServerName == "" {
		return nil, fmt.Errorf("the %s TLS settings name no server to expect", layer)
	}
	return hard, nil
}

// acceptor hardens the settings of the inner TLS server. A client whose
// certificate names nobody is refused with an alert, inside the handshake.
func acceptor(c *tls.Config) (*tls.Config, error) {
	hard, err := Acceptor(c)
	if err != nil {
		return nil, fmt.Errorf("the inner TLS settings %w", err)
	}
	verify := hard.VerifyConnection
	hard.VerifyConnection = func(state tls.ConnectionState) error {
		if _, err := CertificateName(state.PeerCertificates[0]); err != nil {
			return err
		}
		if verify != nil {
			return verify(state)
		}
		return nil
	}
	return hard, nil
}

// Acceptor returns a copy of a TLS server's settings that speaks TLS 1.3 only,
// resumes no session and demands a certificate from the given ClientCAs. It
// fails where the settings would trust anything else; the error is the end of
// a sentence about them.
func Acceptor(c *tls.Config) (*tls.Config, error) {
	switch {
	case c == nil:
		return nil, errors.New("are missing")
	case c.ClientCAs == nil:
		return nil, errors.New("name no CA for the certificates of others, and the system's are never trusted")
	case len(c.Certificates) == 0 && c.GetCertificate == nil:
		return nil, errors.New("have no certificate")
	case c.GetConfigForClient != nil:
		return nil, errors.New("choose other settings for some peers, which is not supported")
	}
	hard := harden(c)
	hard.ClientAuth = tls.RequireAndVerifyClientCert
	hard.SessionTicketsDisabled = true
	return hard, nil
}

// harden copies settings with what both sides of both layers share. Records of
// full size from the start keep the hello and the inner ClientHello in one
// packet's write.
func harden(c *tls.Config) *tls.Config {
	hard := c.Clone()
	hard.MinVersion, hard.MaxVersion = tls.VersionTLS13, tls.VersionTLS13
	hard.DynamicRecordSizingDisabled = true
	hard.KeyLogWriter = nil
	hard.NextProtos = slices.Clone(c.NextProtos)
	return hard
}

// dial opens the raw connection to the bridge.
func (c *Config) dial(ctx context.Context) (*Transport, error) {
	dialer := net.Dialer{KeepAliveConfig: c.KeepAlive}
	conn, err := dialer.DialContext(ctx, "tcp", c.Bridge)
	if err != nil {
		return nil, err
	}
	return NewTransport(conn, c.KeepAlive), nil
}
