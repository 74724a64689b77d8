package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"chancery/tunnel"
)

// ErrRequest is returned for a request that no certificate can be issued for.
var ErrRequest = errors.New("pki: cannot issue")

// Kind is the kind of program that a certificate is for.
type Kind string

// The three kinds; see the package's documentation.
const (
	Bridge Kind = "bridge"
	Server Kind = "server"
	Client Kind = "client"
)

// usages are the extended key usages of each kind.
var usages = map[Kind][]x509.ExtKeyUsage{
	Bridge: {x509.ExtKeyUsageServerAuth},
	Server: {x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	Client: {x509.ExtKeyUsageClientAuth},
}

// Request describes a certificate.
type Request struct {
	Kind Kind
	// CommonName is the identity, see tunnel.ValidName: the user's name for a
	// client. Default for the other two: the first of Hosts.
	CommonName string
	// Hosts are the DNS names and IP addresses under which others reach a
	// bridge or a server. They are matched exactly, so at least one is needed.
	// A client has none.
	Hosts []string
	// Validity defaults to DefaultLeafValidity and never outlasts the CA.
	Validity time.Duration
}

// Issue makes a certificate with a new P-256 key and returns both as PEM, the
// key as unencrypted PKCS#8. A request that makes no sense is ErrRequest.
func (ca *CA) Issue(req Request) (certPEM, keyPEM []byte, err error) {
	if req.CommonName == "" && req.Kind != Client && len(req.Hosts) > 0 {
		req.CommonName = req.Hosts[0]
	}
	if err := req.check(); err != nil {
		return nil, nil, fmt.Errorf("%w a %s certificate: %w", ErrRequest, req.Kind, err)
	}
	if req.Validity <= 0 {
		req.Validity = DefaultLeafValidity
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("pki: generate a key: %w", err)
	}
	template, err := newTemplate(req.CommonName, req.Validity, key.Public())
	if err != nil {
		return nil, nil, err
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = usages[req.Kind]
	template.AuthorityKeyId = ca.cert.SubjectKeyId
	for _, host := range req.Hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	if template.NotAfter.After(ca.cert.NotAfter) {
		template.NotAfter = ca.cert.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		return nil, nil, fmt.Errorf("pki: sign a certificate: %w", err)
	}
	if keyPEM, err = encodeKey(key); err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), keyPEM, nil
}

func (req Request) check() error {
	if _, ok := usages[req.Kind]; !ok {
		return fmt.Errorf("the kind must be %q, %q or %q", Bridge, Server, Client)
	}
	if err := tunnel.ValidName(req.CommonName); err != nil {
		return fmt.Errorf("common name: %w", err)
	}
	if req.Kind == Client && len(req.Hosts) > 0 {
		return errors.New("a client's certificate names no hosts")
	}
	if req.Kind != Client && len(req.Hosts) == 0 {
		return errors.New("name at least one host (DNS name or IP address) under which it is reached")
	}
	for _, host := range req.Hosts {
		if !validHost(host) {
			return fmt.Errorf("%q is neither an IP address nor a DNS name without wildcard", host)
		}
	}
	return nil
}

// validHost accepts IP addresses and DNS names of letters, digits, hyphens and
// underscores (RFC 1123, section 2.1, with the underscore of common use).
func validHost(host string) bool {
	if net.ParseIP(host) != nil {
		return true
	}
	if len(host) > 253 {
		return false
	}
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(strings.ToLower(label)) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return false
			}
		}
	}
	return true
}
