package bridge

import (
	"crypto/tls"
	"errors"
	"fmt"
	"sync/atomic"

	"chancery/tunnel"
)

// settings are the acceptor's TLS settings, hardened once for each that the
// source returns.
type settings struct {
	source func() *tls.Config
	last   atomic.Pointer[hardened]
}

type hardened struct{ given, hard *tls.Config }

// newest returns what the next connection is served with, or ErrConfig where
// it would trust too much.
func (s *settings) newest() (*tls.Config, error) {
	given := s.source()
	if last := s.last.Load(); last != nil && last.given == given {
		return last.hard, nil
	}
	hard, err := tunnel.Acceptor(given)
	if err != nil {
		return nil, fmt.Errorf("%w: the TLS settings %w", ErrConfig, err)
	}
	s.last.Store(&hardened{given, hard})
	return hard, nil
}

// recheck returns why a leg may not stay whose handshake began before the
// settings changed.
func (s *settings) recheck(l *leg) error {
	now, err := s.newest()
	if err != nil || now == l.settings {
		return err
	}
	return revoked(l, now)
}

// revoked returns tunnel.ErrRevoked for a leg whose certificate is revoked by
// now. What else the settings would say does not concern a session that began
// in order.
func revoked(l *leg, now *tls.Config) error {
	if now.VerifyConnection == nil {
		return nil
	}
	if err := now.VerifyConnection(l.conn.ConnectionState()); errors.Is(err, tunnel.ErrRevoked) {
		return err
	}
	return nil
}

// CutRevoked ends the waiting connections and cuts the pairs whose client's or
// server's certificate is revoked by now, and returns how many connections
// that concerned. It is to be called after Config.Settings began to know other
// revocation lists. Certificates that have merely expired, or whose CA is
// trusted no more, keep their sessions.
func (b *Bridge) CutRevoked() (cut int) {
	now, err := b.tls.newest()
	if err != nil { // the next connection reports it
		return 0
	}
	for _, l := range b.hub.all() {
		if err := revoked(l, now); err != nil {
			cut++
			b.log.Warn("cut a connection", "port", l.role.String(), "name", l.name, "peer", l.address(), "reason", err.Error())
			b.hub.cut(l, err)
		}
	}
	return cut
}
