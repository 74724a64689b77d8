package main

import (
	"crypto/tls"

	"chancery/internal/certfile"
	"chancery/internal/cli"
	"chancery/tunnel"
)

type tlsConfig struct {
	CACertificate                  string `mapstructure:"ca_certificate"`
	Certificate                    string `mapstructure:"certificate"`
	PrivateKey                     string `mapstructure:"private_key"`
	PrivateKeyPassphraseFile       string `mapstructure:"private_key_passphrase_file"`
	PrivateKeyPassphraseCredential string `mapstructure:"private_key_passphrase_credential"`
}

// load reads the files and makes the acceptor's settings. What may trouble peers goes to the log.
func (c tlsConfig) load(log tunnel.Logger) (*tls.Config, error) {
	passphrase := cli.Secret{
		What: "passphrase of the private key " + c.PrivateKey,
		File: c.PrivateKeyPassphraseFile, Credential: c.PrivateKeyPassphraseCredential, Descriptor: -1,
	}
	identity, warnings, err := certfile.Load(certfile.Files{
		CA: c.CACertificate, Certificate: c.Certificate, Key: c.PrivateKey, Passphrase: passphrase.Read,
	})
	if err != nil {
		return nil, err
	}
	for _, warning := range warnings {
		log.Warn(warning)
	}
	return identity.BridgeServer(), nil
}
