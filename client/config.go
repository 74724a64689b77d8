package client

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"time"

	"chancery/tunnel"
)

// The defaults of Config.
const (
	DefaultRequestTimeout = time.Minute
	DefaultIdleTimeout    = 10 * time.Minute
	DefaultBusyTimeout    = time.Minute
	DefaultAttempts       = 3
	DefaultRetryMin       = 200 * time.Millisecond
	DefaultRetryMax       = 5 * time.Second
	DefaultInFlight       = 32
	DefaultBatchSize      = 16
)

// Config says how to reach a server. The zero value of every field but Tunnel
// stands for its default. A Config may be shared; no function changes it.
type Config struct {
	// Tunnel names the bridge, the server and the certificates. Its Handshake
	// bounds each attempt to connect. The inner ALPN is set by this package.
	Tunnel *tunnel.Config
	// Pin returns the handle that the key of this name must have, or "" for a
	// key that is not pinned. nil pins none.
	Pin func(key string) string

	// RequestTimeout is how long the server may be silent while a request
	// waits for its reply; then the connection is given up. Under chancery/1
	// the server is told to give up a request to sign after nine tenths of it, or
	// when the context's deadline passes.
	RequestTimeout time.Duration
	// IdleTimeout is how long a connection without requests is kept.
	IdleTimeout time.Duration
	// BusyTimeout bounds how long one call asks a busy server again; a
	// context's earlier deadline comes first.
	BusyTimeout time.Duration
	// Attempts is how often one call tries to connect, or sends a request that
	// is safe to repeat: one that reads, or one to sign under chancery/1.
	Attempts int
	// RetryMin and RetryMax bound the pause between attempts. It doubles
	// from one to the next, and up to half of it is added at random.
	RetryMin, RetryMax time.Duration
	// InFlight bounds the requests that wait for replies on the connection.
	InFlight int
	// BatchSize bounds the signatures asked for in one request. When a token
	// is too slow to make them all in time, smaller batches are tried.
	BatchSize int
	// Log receives, at debug level, what happens to the connection. nil logs nothing.
	Log *slog.Logger

	// dial replaces tunnel.Dial in tests.
	dial func(context.Context) (transport, error)
}

// transport is what the client needs of a *tunnel.Conn.
type transport interface {
	net.Conn
	Session() tunnel.SessionID
	Extended() bool
}

var _ transport = (*tunnel.Conn)(nil)

// prepare returns a copy with the defaults filled in.
func (c *Config) prepare() (*Config, error) {
	p := *c
	if p.dial == nil {
		dial, err := tunnelDialer(p.Tunnel)
		if err != nil {
			return nil, err
		}
		p.dial = dial
	}
	if p.Pin == nil {
		p.Pin = func(string) string { return "" }
	}
	if p.Log == nil {
		p.Log = slog.New(slog.DiscardHandler)
	}
	orDefault(&p.RequestTimeout, DefaultRequestTimeout)
	orDefault(&p.IdleTimeout, DefaultIdleTimeout)
	orDefault(&p.BusyTimeout, DefaultBusyTimeout)
	orDefault(&p.RetryMin, DefaultRetryMin)
	orDefault(&p.RetryMax, DefaultRetryMax)
	orDefault(&p.Attempts, DefaultAttempts)
	orDefault(&p.InFlight, DefaultInFlight)
	orDefault(&p.BatchSize, DefaultBatchSize)
	p.RetryMax = max(p.RetryMax, p.RetryMin)
	return &p, nil
}

func orDefault[T int | time.Duration](value *T, standard T) {
	if *value <= 0 {
		*value = standard
	}
}

// tunnelDialer returns a function that dials as t says, offering chancery/1.
func tunnelDialer(t *tunnel.Config) (func(context.Context) (transport, error), error) {
	if t == nil || t.Inner == nil {
		return nil, errors.New("the tunnel's settings are missing")
	}
	settings := *t
	settings.Inner = offering(t.Inner)
	return func(ctx context.Context) (transport, error) {
		conn, err := tunnel.Dial(ctx, &settings)
		if err != nil {
			return nil, err
		}
		return conn, nil
	}, nil
}

func offering(inner *tls.Config) *tls.Config {
	offering := inner.Clone()
	offering.NextProtos = []string{tunnel.Protocol}
	return offering
}
