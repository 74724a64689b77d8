package main

import (
	"cmp"
	"context"
	"encoding/hex"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"chancery/access"
	"chancery/client"
	"chancery/internal/certfile"
	"chancery/internal/cli"
	"chancery/tunnel"
)

const (
	systemConfigFile  = "/etc/chancery/client.toml"
	environmentPrefix = "CHANCERY_CLIENT"
)

// config is the client's configuration file. The example in
// packaging/examples/client.toml says what each key means.
type config struct {
	Bridge   bridgeConfig         `mapstructure:"bridge"`
	Server   serverConfig         `mapstructure:"server"`
	TLS      tlsConfig            `mapstructure:"tls"`
	Timeouts timeoutsConfig       `mapstructure:"timeouts"`
	Enroll   enrollConfig         `mapstructure:"enroll"`
	Keys     map[string]keyConfig `mapstructure:"keys"`
	Log      cli.Logging          `mapstructure:"log"`
}

type bridgeConfig struct {
	Address  string `mapstructure:"address"`  // host:port
	Hostname string `mapstructure:"hostname"` // in its certificate; default: the address' host
}

type serverConfig struct {
	Hostname string `mapstructure:"hostname"` // in its certificate
}

type tlsConfig struct {
	CACertificate                  string   `mapstructure:"ca_certificate"`
	Certificate                    string   `mapstructure:"certificate"`
	PrivateKey                     string   `mapstructure:"private_key"`
	PrivateKeyPassphraseFile       string   `mapstructure:"private_key_passphrase_file"`
	PrivateKeyPassphraseCredential string   `mapstructure:"private_key_passphrase_credential"`
	CRLFiles                       []string `mapstructure:"crl_files"`   // PEM or DER
	CRLExpired                     string   `mapstructure:"crl_expired"` // warn or refuse
}

type timeoutsConfig struct {
	Connect time.Duration `mapstructure:"connect"`
	Request time.Duration `mapstructure:"request"`
	Busy    time.Duration `mapstructure:"busy"`
}

type enrollConfig struct {
	MinPassphrase int `mapstructure:"min_passphrase"` // characters
}

// keyConfig is what the user knows of one key. The tags are for 'config show'.
type keyConfig struct {
	Name                 string `mapstructure:"name" toml:"name"` // default: the table's
	Handle               string `mapstructure:"handle" toml:"handle"`
	Certificate          string `mapstructure:"certificate" toml:"certificate"`
	PassphraseFile       string `mapstructure:"passphrase_file" toml:"passphrase_file"`
	PassphraseCredential string `mapstructure:"passphrase_credential" toml:"passphrase_credential"`
}

func defaultConfig() *config {
	return &config{
		TLS: tlsConfig{
			CACertificate: "/etc/chancery/ca.crt",
			Certificate:   "/etc/chancery/client.crt",
			PrivateKey:    "/etc/chancery/client.key",
			CRLFiles:      []string{},
			CRLExpired:    string(certfile.WarnExpired),
		},
		Timeouts: timeoutsConfig{
			Connect: 15 * time.Second, Request: client.DefaultRequestTimeout, Busy: client.DefaultBusyTimeout,
		},
		Enroll: enrollConfig{MinPassphrase: access.DefaultMinPassphrase},
		Keys:   map[string]keyConfig{},
		Log:    cli.Logging{Level: "warn", Format: "text"},
	}
}

// read returns the configuration as it is written.
func (a *app) read() (*config, string, error) {
	c := defaultConfig()
	var search []string
	if directory, err := os.UserConfigDir(); err == nil {
		search = append(search, filepath.Join(directory, "chancery", "client.toml"))
	}
	search = append(search, systemConfigFile)
	file, err := cli.Load(cli.Source{File: a.configFile, Search: search, EnvPrefix: environmentPrefix}, c)
	if err != nil {
		return nil, "", err
	}
	return c, file, c.validate()
}

// load returns a configuration that names a bridge and a server.
func (a *app) load() (*config, error) {
	c, file, err := a.read()
	if err != nil {
		return nil, err
	}
	hint := "write it into " + file
	if file == "" {
		hint = "there is no configuration file; give one with --config, or write " + systemConfigFile
	}
	for _, needed := range []struct{ key, value string }{{"bridge.address", c.Bridge.Address}, {"server.hostname", c.Server.Hostname}} {
		if needed.value == "" {
			e := cli.Misconfigured("%s is not configured", needed.key)
			e.Hint = hint
			return nil, e
		}
	}
	return c, nil
}

func (c *config) validate() error {
	if c.Bridge.Address != "" {
		if host, port, err := net.SplitHostPort(c.Bridge.Address); err != nil || host == "" || port == "" {
			return cli.Misconfigured("bridge.address %q is not host:port", c.Bridge.Address)
		}
	}
	if host := c.bridgeName(); host != "" && sameHost(host, c.Server.Hostname) {
		return cli.Misconfigured("server.hostname %q is the bridge's host name too, so that the bridge's certificate would pass as the server's; give the server a certificate for a name of its own", c.Server.Hostname)
	}
	for _, timeout := range []struct {
		key   string
		value time.Duration
	}{{"connect", c.Timeouts.Connect}, {"request", c.Timeouts.Request}, {"busy", c.Timeouts.Busy}} {
		if timeout.value <= 0 {
			return cli.Misconfigured("timeouts.%s is %s: more than 0, for example 15s", timeout.key, timeout.value)
		}
	}
	if c.Enroll.MinPassphrase < 1 {
		return cli.Misconfigured("enroll.min_passphrase is %d: at least 1", c.Enroll.MinPassphrase)
	}
	if err := c.oneTableEach(); err != nil {
		return err
	}
	for table, key := range c.Keys {
		if sum, err := hex.DecodeString(key.Handle); err != nil || len(sum) != 0 && len(sum) != 32 {
			return cli.Misconfigured("keys.%s.handle is not 64 hexadecimal digits; 'key show' prints the handle", table)
		}
		if key.PassphraseFile != "" && key.PassphraseCredential != "" {
			return cli.Misconfigured("keys.%s: give the passphrase by file or by credential, not both", table)
		}
	}
	_, err := c.Log.Logger(os.Stderr)
	return err
}

// oneTableEach refuses two tables for one key: which of two handles, or of a handle and none, is asked for would be
// a matter of luck. A table without a name is for its key in whatever case.
func (c *config) oneTableEach() error {
	tables := slices.Sorted(maps.Keys(c.Keys))
	for i, table := range tables {
		for _, other := range tables[:i] {
			name, otherName := c.Keys[table].Name, c.Keys[other].Name
			same := name == otherName && name != ""
			if name == "" || otherName == "" {
				same = strings.EqualFold(cmp.Or(name, table), cmp.Or(otherName, other))
			}
			if same {
				return cli.Misconfigured("keys.%s and keys.%s are for the same key; make one table of them, or give each its name if they differ by case alone", other, table)
			}
		}
	}
	return nil
}

// bridgeName is the name that is asked of the bridge's certificate, or "".
func (c *config) bridgeName() string {
	if c.Bridge.Hostname != "" {
		return c.Bridge.Hostname
	}
	host, _, err := net.SplitHostPort(c.Bridge.Address)
	if err != nil {
		return ""
	}
	return host
}

// sameHost tells whether one certificate for a single name would do for both. Names are compared as
// crypto/x509 compares them with a certificate's.
func sameHost(a, b string) bool {
	return plainHost(a) == plainHost(b)
}

func plainHost(host string) string {
	unbracketed := strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if address := net.ParseIP(unbracketed); address != nil {
		return address.String()
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// key returns what is configured for the key of this name. A table without a
// name is for the key that it is called after, in whatever case: the
// configuration's own names have none, and a pin must not be missed for that.
func (c *config) key(name string) keyConfig {
	for _, key := range c.Keys {
		if key.Name == name {
			return key
		}
	}
	for table, key := range c.Keys {
		if key.Name == "" && strings.EqualFold(table, name) {
			return key
		}
	}
	return keyConfig{}
}

// keyNames are the keys that the configuration names.
func (c *config) keyNames() []string {
	var names []string
	for table, key := range c.Keys {
		if key.Name != "" {
			table = key.Name
		}
		names = append(names, table)
	}
	return names
}

// passphrase says where a key's passphrase comes from: the command line's source, the configuration's, or
// the terminal.
func (c *config) passphrase(name string, given cli.Secret) cli.Secret {
	secret := given
	secret.What = "passphrase for key " + quoted(name)
	if !secret.Given() {
		configured := c.key(name)
		secret.File, secret.Credential = configured.PassphraseFile, configured.PassphraseCredential
	}
	return secret
}

// identityPassphrase says where the passphrase of the connection's private key comes from, if it needs one.
func (c *config) identityPassphrase() cli.Secret {
	return cli.Secret{
		What: "passphrase of the private key " + c.TLS.PrivateKey,
		File: c.TLS.PrivateKeyPassphraseFile, Credential: c.TLS.PrivateKeyPassphraseCredential, Descriptor: -1,
	}
}

// identity loads the certificates and the private key.
func (c *config) identity() (*certfile.Identity, []string, error) {
	passphrase := c.identityPassphrase()
	return certfile.Load(certfile.Files{
		CA: c.TLS.CACertificate, Certificate: c.TLS.Certificate, Key: c.TLS.PrivateKey, Passphrase: passphrase.Read,
		CRLs: c.TLS.CRLFiles, Expired: certfile.ExpiredPolicy(c.TLS.CRLExpired),
	})
}

// checkCertificates tries the OpenPGP certificates that the configuration names.
func (c *config) checkCertificates(ctx context.Context) error {
	for _, key := range c.Keys {
		if key.Certificate == "" {
			continue
		}
		if _, err := readCertificate(ctx, key.Certificate); err != nil {
			return err
		}
	}
	return nil
}

// client makes the settings of the connection.
func (c *config) client(a *app) (*client.Config, error) {
	log, err := c.Log.Logger(a.stderr)
	if err != nil {
		return nil, err
	}
	identity, warnings, err := c.identity()
	if err != nil {
		return nil, err
	}
	for _, warning := range warnings {
		log.Warn(warning)
	}
	return &client.Config{
		Tunnel: &tunnel.Config{
			Bridge: c.Bridge.Address, Handshake: c.Timeouts.Connect,
			Outer: identity.OuterDialer(c.Bridge.Hostname), Inner: identity.InnerDialer(c.Server.Hostname),
		},
		Pin:            func(key string) string { return c.key(key).Handle },
		RequestTimeout: c.Timeouts.Request,
		BusyTimeout:    c.Timeouts.Busy,
		BatchSize:      batchSize,
		Log:            log,
	}, nil
}

func (a *app) configCommand() *cobra.Command {
	var command *cobra.Command
	command = cli.ConfigCommand(
		func() (any, string, error) { return a.read() },
		func() error {
			c, err := a.load()
			if err != nil {
				return err
			}
			if _, err := c.client(a); err != nil {
				return err
			}
			ctx, cancel := a.context(command.Root())
			defer cancel()
			return c.checkCertificates(ctx)
		},
	)
	return command
}
