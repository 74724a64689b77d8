package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"time"

	"chancery/internal/certfile"
	"chancery/internal/cli"
	"chancery/tunnel"
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

// certificates loads the files that the configuration names; they may be watched from then on.
func (c tlsConfig) certificates(log *slog.Logger) (*certfile.Live, error) {
	passphrase := cli.Secret{
		What: "passphrase of the private key " + c.PrivateKey,
		File: c.PrivateKeyPassphraseFile, Credential: c.PrivateKeyPassphraseCredential, Descriptor: -1,
	}
	live, err := certfile.Open(certfile.Files{
		CA: c.CACertificate, Certificate: c.Certificate, Key: c.PrivateKey,
		Uses:       []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}, // at the bridge, and to clients
		Passphrase: passphrase.Read, Interactive: !passphrase.Given(),
		CRLs: c.CRLFiles, Expired: certfile.ExpiredPolicy(c.CRLExpired),
	}, log)
	if err != nil {
		return nil, fmt.Errorf("the TLS files: %w", err)
	}
	return live, nil
}

// tunnel makes the settings of both layers, which follow the certificates.
func (c *config) tunnel(certificates *certfile.Live, log *slog.Logger) (*tunnel.Config, error) {
	hostname := c.Bridge.Hostname
	if hostname == "" {
		var err error
		if hostname, _, err = net.SplitHostPort(c.Bridge.Address); err != nil {
			return nil, err
		}
	}
	return &tunnel.Config{
		Bridge: c.Bridge.Address,
		Settings: func() (outer, inner *tls.Config) {
			identity := certificates.Identity()
			return identity.OuterDialer(hostname), identity.InnerAcceptor()
		},
		Handshake: c.Bridge.HandshakeTimeout, Log: log,
	}, nil
}

// certificateStatus is what the daemon tells of its own certificate, CA and revocation lists.
type certificateStatus struct {
	Certificate time.Time  `json:"certificate_expires"`
	CA          time.Time  `json:"ca_expires"`
	CRL         *time.Time `json:"crl_expires"` // the first one; null: there are none
	DaysLeft    int        `json:"days_left"`   // of certificate and CA; negative once one has expired
	Warnings    []string   `json:"warnings"`
}

func (s *certificateStatus) observe(identity *certfile.Identity) {
	expiry := identity.Expiry()
	s.Certificate, s.CA, s.CRL = expiry.Certificate.UTC(), expiry.CA.UTC(), optionalTime(expiry.CRL.UTC())
	s.DaysLeft = expiry.Days(time.Now())
	s.Warnings = append([]string{}, identity.Warnings()...)
}

// fields shows the certificate's end and each warning on a line of its own.
func (s *certificateStatus) fields() []field {
	fields := []field{{"certificate", fmt.Sprintf("valid until %s, its CA until %s: %d days left", moment(s.Certificate), moment(s.CA), s.DaysLeft)}}
	if s.CRL != nil {
		fields = append(fields, field{"revocation lists", "good until " + moment(*s.CRL)})
	}
	for _, warning := range s.Warnings {
		fields = append(fields, field{"WARNING", warning})
	}
	return fields
}
