package main

import (
	"crypto/x509"

	"chancery/internal/certfile"
	"chancery/internal/cli"
)

type tlsConfig struct {
	CACertificate                  string   `mapstructure:"ca_certificate"`
	Certificate                    string   `mapstructure:"certificate"`
	PrivateKey                     string   `mapstructure:"private_key"`
	PrivateKeyPassphraseFile       string   `mapstructure:"private_key_passphrase_file"`
	PrivateKeyPassphraseCredential string   `mapstructure:"private_key_passphrase_credential"`
	CRLFiles                       []string `mapstructure:"crl_files"`   // PEM or DER
	CRLExpired                     string   `mapstructure:"crl_expired"` // warn or refuse
}

// files are what the acceptor's settings are made from.
func (c tlsConfig) files() certfile.Files {
	passphrase := cli.Secret{
		What: "passphrase of the private key " + c.PrivateKey,
		File: c.PrivateKeyPassphraseFile, Credential: c.PrivateKeyPassphraseCredential, Descriptor: -1,
	}
	return certfile.Files{
		CA: c.CACertificate, Certificate: c.Certificate, Key: c.PrivateKey,
		Uses:       []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		Passphrase: passphrase.Read, Interactive: !passphrase.Given(),
		CRLs: c.CRLFiles, Expired: certfile.ExpiredPolicy(c.CRLExpired),
	}
}
