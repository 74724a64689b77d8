package main

import (
	"crypto/tls"
	"net"
	"os"
	"time"

	"github.com/spf13/cobra"

	"chancery/internal/certfile"
	"chancery/internal/cli"
	"chancery/tunnel"
	"chancery/tunnel/bridge"
)

const (
	defaultConfigFile = "/etc/chancery/bridge.toml"
	environmentPrefix = "CHANCERY_BRIDGE"
)

// app is what the commands of one call share.
type app struct {
	configFile string // --config
}

// config is the bridge's configuration file. The example in
// packaging/examples/bridge.toml says what each key means.
type config struct {
	Servers  []string       `mapstructure:"servers"`
	Listen   listenConfig   `mapstructure:"listen"`
	TLS      tlsConfig      `mapstructure:"tls"`
	Limits   limitsConfig   `mapstructure:"limits"`
	Timeouts timeoutsConfig `mapstructure:"timeouts"`
	Observe  observeConfig  `mapstructure:"observe"`
	Log      cli.Logging    `mapstructure:"log"`
}

type listenConfig struct {
	Clients string `mapstructure:"clients"` // host:port; an empty host is every address
	Servers string `mapstructure:"servers"`
}

type limitsConfig struct {
	Handshakes           int `mapstructure:"handshakes"`             // at once, on each port
	HandshakesPerAddress int `mapstructure:"handshakes_per_address"` // of these, of one address
	ConnectionRate       int `mapstructure:"connection_rate"`        // new ones of one address without a valid certificate, a second
	ConnectionBurst      int `mapstructure:"connection_burst"`       // such at once
	Waiting              int `mapstructure:"waiting"`                // connections in each queue
	Sessions             int `mapstructure:"sessions"`               // pairs at once
	SessionsPerClient    int `mapstructure:"sessions_per_client"`    // waiting and paired, of one client name
}

type timeoutsConfig struct {
	Handshake time.Duration `mapstructure:"handshake"`
	QueueWait time.Duration `mapstructure:"queue_wait"`
	LegAnswer time.Duration `mapstructure:"leg_answer"`
	Stall     time.Duration `mapstructure:"stall"`
	Linger    time.Duration `mapstructure:"linger"`
	Idle      time.Duration `mapstructure:"idle"`
	Drain     time.Duration `mapstructure:"drain"`
}

func defaultConfig() *config {
	return &config{
		Servers: []string{},
		Listen:  listenConfig{Clients: ":44334", Servers: ":44333"},
		TLS: tlsConfig{
			CACertificate: "/etc/chancery/ca.crt",
			Certificate:   "/etc/chancery/bridge.crt",
			PrivateKey:    "/etc/chancery/bridge.key",
			CRLFiles:      []string{},
			CRLExpired:    string(certfile.WarnExpired),
		},
		Limits: limitsConfig{
			Handshakes: 1024, HandshakesPerAddress: 512, ConnectionRate: 64, ConnectionBurst: 1024,
			Waiting: 256, Sessions: 1024, SessionsPerClient: 64,
		},
		Timeouts: timeoutsConfig{
			Handshake: 10 * time.Second, QueueWait: 12 * time.Second, LegAnswer: 3 * time.Second, Stall: time.Minute,
			Linger: 10 * time.Second, Idle: 4 * time.Hour, Drain: 30 * time.Second,
		},
		Log: cli.Logging{Level: "info", Format: "text"},
	}
}

// read returns the configuration as it is written.
func (a *app) read() (*config, string, error) {
	c := defaultConfig()
	file, err := cli.Load(cli.Source{File: a.configFile, Search: []string{defaultConfigFile}, EnvPrefix: environmentPrefix}, c)
	if err != nil {
		return nil, "", err
	}
	return c, file, nil
}

// load reads the configuration and refuses what cannot work.
func (a *app) load() (*config, error) {
	c, _, err := a.read()
	if err != nil {
		return nil, err
	}
	return c, c.validate()
}

func (c *config) validate() error {
	if len(c.Servers) == 0 {
		return cli.Misconfigured("servers is empty: name the signing servers that may register, as their certificates' Common Names have it")
	}
	for _, name := range c.Servers {
		if err := tunnel.ValidName(name); err != nil {
			return cli.Misconfigured("servers: %s", err)
		}
	}
	for _, listen := range []struct{ key, address string }{{"listen.clients", c.Listen.Clients}, {"listen.servers", c.Listen.Servers}} {
		if _, port, err := net.SplitHostPort(listen.address); err != nil || port == "" {
			return cli.Misconfigured("%s %q is not host:port or :port", listen.key, listen.address)
		}
	}
	if err := c.Limits.validate(); err != nil {
		return err
	}
	if err := c.Observe.validate(); err != nil {
		return err
	}
	return c.Timeouts.validate()
}

func (l limitsConfig) validate() error {
	for _, limit := range []struct {
		key   string
		value int
	}{
		{"handshakes", l.Handshakes}, {"handshakes_per_address", l.HandshakesPerAddress},
		{"connection_rate", l.ConnectionRate}, {"connection_burst", l.ConnectionBurst}, {"waiting", l.Waiting}, {"sessions", l.Sessions}, {"sessions_per_client", l.SessionsPerClient},
	} {
		if limit.value < 1 {
			return cli.Misconfigured("limits.%s is %d: at least 1", limit.key, limit.value)
		}
	}
	return nil
}

func (t timeoutsConfig) validate() error {
	for _, timeout := range []struct {
		key   string
		value time.Duration
	}{
		{"handshake", t.Handshake}, {"queue_wait", t.QueueWait}, {"leg_answer", t.LegAnswer}, {"stall", t.Stall},
		{"linger", t.Linger}, {"idle", t.Idle}, {"drain", t.Drain},
	} {
		if timeout.value <= 0 {
			return cli.Misconfigured("timeouts.%s is %s: more than 0, for example 10s", timeout.key, timeout.value)
		}
	}
	return nil
}

// bridge makes what the configuration describes, reading the files that it
// names. The certificates may be watched from then on.
func (c *config) bridge(log tunnel.Logger, observer bridge.Observer) (*bridge.Bridge, *certfile.Live, error) {
	certificates, err := certfile.Open(c.TLS.files(), log)
	if err != nil {
		return nil, nil, err
	}
	b, err := bridge.New(bridge.Config{
		Settings: func() *tls.Config { return certificates.Identity().BridgeServer() }, Servers: c.Servers,
		MaxHandshakes: c.Limits.Handshakes, MaxHandshakesPerAddress: c.Limits.HandshakesPerAddress,
		ConnectionRate: c.Limits.ConnectionRate, ConnectionBurst: c.Limits.ConnectionBurst,
		MaxWaiting: c.Limits.Waiting, MaxSessions: c.Limits.Sessions, MaxPerClient: c.Limits.SessionsPerClient,
		Handshake: c.Timeouts.Handshake, QueueWait: c.Timeouts.QueueWait, LegAnswer: c.Timeouts.LegAnswer, Stall: c.Timeouts.Stall,
		Linger: c.Timeouts.Linger, IdleTimeout: c.Timeouts.Idle, Drain: c.Timeouts.Drain,
		Log: log, Observer: observer,
	})
	return b, certificates, err
}

func (a *app) configCommand() *cobra.Command {
	return cli.ConfigCommand(
		func() (any, string, error) { return a.read() },
		func() error {
			c, err := a.load()
			if err != nil {
				return err
			}
			log, err := c.Log.Logger(os.Stderr)
			if err != nil {
				return err
			}
			_, certificates, err := c.bridge(log, nil)
			if err != nil {
				return err
			}
			return certificates.Identity().Check() // serve starts all the same: they may be renewed while it runs
		},
	)
}
