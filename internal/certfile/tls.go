package certfile

import (
	"crypto/tls"

	"chancery/tunnel"
)

// BridgeServer returns the settings of the bridge's outer acceptor: a client
// certificate from the CA is demanded. They are shared; clone them to change them.
func (id *Identity) BridgeServer() *tls.Config { return id.bridgeServer }

// OuterDialer returns the settings for dialling a bridge whose certificate is
// for the given DNS name or IP address.
func (id *Identity) OuterDialer(bridgeHost string) *tls.Config { return id.dialer(bridgeHost) }

// InnerDialer returns a client's settings for the session with a server whose
// certificate is for the given DNS name or IP address. It offers
// tunnel.Protocol; a server without ALPN is accepted.
func (id *Identity) InnerDialer(serverHost string) *tls.Config {
	config := id.dialer(serverHost)
	config.NextProtos = []string{tunnel.Protocol}
	return config
}

// InnerAcceptor returns a server's settings for the session with a client. It
// selects tunnel.Protocol when that is offered; a client without ALPN is
// accepted. They are shared; clone them to change them.
func (id *Identity) InnerAcceptor() *tls.Config { return id.innerAcceptor }

func (id *Identity) acceptor() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		MaxVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{id.certificate},
		ClientCAs:              id.roots,
		ClientAuth:             tls.RequireAndVerifyClientCert,
		SessionTicketsDisabled: true,
		VerifyConnection:       id.revoked.verify,
	}
}

// dialer sends its certificate always: crypto/tls would keep it back when its
// issuer, for example an intermediate, is not in the acceptor's list.
func (id *Identity) dialer(host string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		MaxVersion: tls.VersionTLS13,
		RootCAs:    id.roots,
		ServerName: host,

		VerifyConnection: id.revoked.verify,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &id.certificate, nil
		},
	}
}
