package main

import (
	"errors"
	"io/fs"
	"net"
	"path/filepath"
	"time"

	"chancery/access"
	"chancery/audit"
	"chancery/internal/cli"
)

const (
	defaultConfigFile = "/etc/chancery/server.toml"
	environmentPrefix = "CHANCERY_SERVER"
	databaseName      = "chancery.db"
	socketName        = "control.sock"
	auditName         = "audit"
	pinsName          = "pins"
)

// config is the daemon's and the operators' configuration file. The example in
// packaging/examples/server.toml says what each key means.
type config struct {
	Bridge      bridgeConfig      `mapstructure:"bridge"`
	TLS         tlsConfig         `mapstructure:"tls"`
	State       stateConfig       `mapstructure:"state"`
	Audit       auditConfig       `mapstructure:"audit"`
	Tokens      tokensConfig      `mapstructure:"tokens"`
	Sessions    sessionsConfig    `mapstructure:"sessions"`
	Repetitions repetitionsConfig `mapstructure:"repetitions"`
	Passphrases passphraseConfig  `mapstructure:"passphrases"`
	Control     controlConfig     `mapstructure:"control"`
	Observe     observeConfig     `mapstructure:"observe"`
	Seal        sealConfig        `mapstructure:"seal"`
	Log         cli.Logging       `mapstructure:"log"`
}

type bridgeConfig struct {
	Address          string        `mapstructure:"address"`           // host:port of the bridge's port for servers
	Hostname         string        `mapstructure:"hostname"`          // the name in the bridge's certificate; empty: the host of address
	IdleConnections  int           `mapstructure:"idle_connections"`  // legs kept waiting at the bridge
	HandshakeTimeout time.Duration `mapstructure:"handshake_timeout"` // outer and inner, each
}

type stateConfig struct {
	Directory string `mapstructure:"directory"`
}

type auditConfig struct {
	Directory    string `mapstructure:"directory"`      // empty: audit in the state directory
	SegmentBytes int64  `mapstructure:"segment_bytes"`  // a larger file is followed by a new one
	UnsafeNoSync bool   `mapstructure:"unsafe_no_sync"` // for measurements only
}

type passphraseConfig struct {
	MinimumLength int `mapstructure:"minimum_length"` // characters
}

type controlConfig struct {
	Socket string `mapstructure:"socket"` // empty: control.sock in the state directory
}

func (c *config) database() string { return filepath.Join(c.State.Directory, databaseName) }

// pins is the directory where it is remembered which PINs tokens have rejected.
func (c *config) pins() string { return filepath.Join(c.State.Directory, pinsName) }

func (c *config) auditLog() audit.Config {
	directory := c.Audit.Directory
	if directory == "" {
		directory = filepath.Join(c.State.Directory, auditName)
	}
	return audit.Config{Directory: directory, SegmentBytes: c.Audit.SegmentBytes, UnsafeNoSync: c.Audit.UnsafeNoSync}
}

func (c *config) socket() string {
	if c.Control.Socket != "" {
		return c.Control.Socket
	}
	return filepath.Join(c.State.Directory, socketName)
}

// loadConfig reads the configuration once and keeps it.
func (a *app) loadConfig() (*config, error) {
	if a.config != nil {
		return a.config, nil
	}
	c := defaultConfig()
	file, err := cli.Load(cli.Source{File: a.configFile, Search: []string{defaultConfigFile}, EnvPrefix: environmentPrefix}, c)
	if err != nil {
		return nil, adviseUser(err)
	}
	if err := c.validate(); err != nil {
		return nil, err
	}
	a.config, a.configFrom = c, file
	return c, nil
}

// adviseUser tells who may read the configuration, which names the daemon's secrets and is not for everybody.
func adviseUser(err error) error {
	var told *cli.Error
	if errors.As(err, &told) && errors.Is(err, fs.ErrPermission) {
		told.Hint = asDaemon
	}
	return err
}

// validate refuses what no command could work with. What only the daemon needs is checked when it starts.
func (c *config) validate() error {
	switch {
	case c.State.Directory == "":
		return cli.Misconfigured("state.directory is empty: name the directory of the database")
	case !filepath.IsAbs(c.State.Directory):
		return cli.Misconfigured("state.directory %q is not an absolute path", c.State.Directory)
	case c.Audit.Directory != "" && !filepath.IsAbs(c.Audit.Directory):
		return cli.Misconfigured("audit.directory %q is not an absolute path", c.Audit.Directory)
	case c.Audit.SegmentBytes < audit.MaxLine:
		return cli.Misconfigured("audit.segment_bytes is %d: at least %d, the length of one record", c.Audit.SegmentBytes, audit.MaxLine)
	case c.Passphrases.MinimumLength < 1 || c.Passphrases.MinimumLength > access.MaxPassphrase:
		return cli.Misconfigured("passphrases.minimum_length is %d, not 1 to %d", c.Passphrases.MinimumLength, access.MaxPassphrase)
	}
	if err := c.Tokens.validate(); err != nil {
		return err
	}
	if err := c.Repetitions.validate(); err != nil {
		return err
	}
	if err := c.Observe.validate(); err != nil {
		return err
	}
	if err := c.Seal.validate(); err != nil {
		return err
	}
	return c.Sessions.validate()
}

// validateDaemon refuses what `serve` cannot work with.
func (c *config) validateDaemon() error {
	if _, port, err := net.SplitHostPort(c.Bridge.Address); err != nil || port == "" {
		return cli.Misconfigured("bridge.address %q is not host:port: name the bridge's port for servers, for example bridge.example.com:44333", c.Bridge.Address)
	}
	if c.Bridge.IdleConnections < 1 {
		return cli.Misconfigured("bridge.idle_connections is %d: at least 1", c.Bridge.IdleConnections)
	}
	for _, file := range []struct{ key, path string }{
		{"tls.ca_certificate", c.TLS.CACertificate},
		{"tls.certificate", c.TLS.Certificate},
		{"tls.private_key", c.TLS.PrivateKey},
	} {
		if file.path == "" {
			return cli.Misconfigured("%s is not set: 'chancery-server pki' makes certificates for those who have none", file.key)
		}
	}
	return nil
}
