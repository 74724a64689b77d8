package bridge

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"chancery/tunnel"
)

// ErrConfig is returned by New for settings that cannot work or would trust
// too much.
var ErrConfig = errors.New("bridge: configuration")

// Config tells whom to let in and how much of everything to allow. The zero
// value of each number and duration stands for its default.
type Config struct {
	// TLS is the outer acceptor's. ClientCAs and a certificate must be set;
	// everything weaker than TLS 1.3 with client certificates is overridden.
	TLS *tls.Config
	// Settings, where set, is asked for the newest TLS settings for each
	// connection, and TLS is ignored. It should return the same pointer until
	// something has changed; what is wrong with later settings turns
	// connections away. It is called by several goroutines.
	Settings func() *tls.Config
	// Servers are the Common Names that may register on the server port. At
	// least one is needed.
	Servers []string

	// MaxHandshakes bounds the connections of each port that have not yet said
	// a valid hello. Beyond it the one that keeps the bridge waiting for longest
	// is cut; where none does, new ones wait in the kernel. Default 1024.
	MaxHandshakes int
	// MaxHandshakesPerAddress is how many of these one address (a /64 of IPv6)
	// may have before its own silent ones make room first. It turns nobody away
	// who talks, and does not count where ConnectionRate does not. Default 512.
	MaxHandshakesPerAddress int
	// ConnectionRate and ConnectionBurst bound the new connections of one
	// address that do not show a valid certificate: so many a second, after so
	// many at once. Those beyond are dropped, unless somebody with a valid
	// certificate came from there within ten minutes. Defaults 64 and 1024.
	ConnectionRate, ConnectionBurst int
	// MaxWaiting bounds each of the two queues; who comes when it is full is
	// dropped. Default 256.
	MaxWaiting int
	// MaxSessions bounds the pairs in progress; beyond it clients wait in
	// their queue. Default 1024.
	MaxSessions int
	// MaxPerClient bounds the waiting and paired connections of one client
	// name, so that one user takes neither the whole queue nor all that a
	// server shakes hands with at once. Default 64.
	MaxPerClient int

	// Handshake bounds TLS handshake and hello. Default 10 s.
	Handshake time.Duration
	// QueueWait bounds a client's wait for a server. It should be less than
	// the clients' own limit (15 s), so that they learn the reason. Default 12 s.
	QueueWait time.Duration
	// LegAnswer bounds the wait for a server's first byte where the client has sent
	// its inner ClientHello with its hello: a leg that says nothing is dropped, and
	// the client, which was told nothing yet, gets another, for which it waits
	// twice as long. Several times this should fit into QueueWait. Default 3 s.
	LegAnswer time.Duration
	// Stall bounds each write to a peer: one that takes in nothing for so long
	// loses its pair. Like IdleTimeout it may take a quarter of the shorter of
	// the two longer. Linux cuts a peer whose window stays closed as one that
	// vanished, after KeepAlive's time, where that is shorter. Default 60 s.
	Stall time.Duration
	// Linger bounds how long a pair's second direction may outlive the orderly
	// end of its first. Default 10 s.
	Linger time.Duration
	// IdleTimeout ends a pair through which no byte passed for so long. Default 4 h, more than the servers' own limit.
	IdleTimeout time.Duration
	// Drain is how long pairs in progress may take to end once Serve's context
	// is done. Default 30 s. Negative: no time at all.
	Drain time.Duration
	// KeepAlive is TCP's. Default tunnel.DefaultKeepAlive.
	KeepAlive net.KeepAliveConfig
	// Log receives what happens. Default: nothing.
	Log tunnel.Logger
	// Observer is told what happens. Default: nobody.
	Observer Observer
}

// earlyBytes bounds what is kept of what a client sends before it is paired.
const earlyBytes = 64 << 10

// prepare returns a copy with defaults filled in, or ErrConfig.
func (c Config) prepare() (Config, error) {
	if c.Settings == nil {
		fixed := c.TLS
		c.Settings = func() *tls.Config { return fixed }
	}
	if len(c.Servers) == 0 {
		return c, fmt.Errorf("%w: no server may register; name at least one", ErrConfig)
	}
	for _, name := range c.Servers {
		if err := tunnel.ValidName(name); err != nil {
			return c, fmt.Errorf("%w: allowed server: %w", ErrConfig, err)
		}
	}
	c.MaxHandshakes = positive(c.MaxHandshakes, 1024)
	c.MaxHandshakesPerAddress = positive(c.MaxHandshakesPerAddress, 512)
	c.ConnectionRate = positive(c.ConnectionRate, 64)
	c.ConnectionBurst = positive(c.ConnectionBurst, 1024)
	c.MaxWaiting = positive(c.MaxWaiting, 256)
	c.MaxSessions = positive(c.MaxSessions, 1024)
	c.MaxPerClient = positive(c.MaxPerClient, 64)
	c.Handshake = positive(c.Handshake, 10*time.Second)
	c.QueueWait = positive(c.QueueWait, 12*time.Second)
	c.LegAnswer = positive(c.LegAnswer, 3*time.Second)
	c.Stall = positive(c.Stall, time.Minute)
	c.Linger = positive(c.Linger, 10*time.Second)
	c.IdleTimeout = positive(c.IdleTimeout, 4*time.Hour)
	c.Drain = cmp.Or(c.Drain, 30*time.Second)
	if !c.KeepAlive.Enable {
		c.KeepAlive = tunnel.DefaultKeepAlive()
	}
	if c.Log == nil {
		c.Log = tunnel.Discard()
	}
	if c.Observer == nil {
		c.Observer = nobody{}
	}
	return c, nil
}

func positive[T int | time.Duration](value, otherwise T) T {
	if value > 0 {
		return value
	}
	return otherwise
}
