// Package certfile loads a program's certificates and private key from PEM
// files and makes the TLS settings of the tunnel's two layers from them.
//
// Load is told three files: the CA whose certificates are trusted (and nothing
// else ever is), the program's own certificate with any intermediates, and its
// key. Private keys are PKCS#8, plain or protected by a passphrase (PBES2), or
// the older SEC 1 and PKCS#1 forms. A key file that others than its owner can
// read is refused.
package certfile

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"chancery/tunnel"
)

// ErrUnusable is wrapped by every error of Load. Its text names the file and
// says what to do; a retry helps only after that.
var ErrUnusable = errors.New("certfile: cannot be used")

// maxFile bounds what is read of any file.
const maxFile = 1 << 20

// renewal is how long before its end a certificate is warned about.
const renewal = 30 * 24 * time.Hour

// Files names what to load.
type Files struct {
	CA          string // certificates that are trusted, PEM
	Certificate string // the program's own, then intermediates, PEM
	Key         string // its private key, PEM
	// Passphrase is asked, once, for the passphrase of a protected key. The
	// slice that it returns is overwritten after use. Without it a protected
	// key is an error.
	Passphrase func() ([]byte, error)
}

// Identity is a loaded certificate with its key and the CA to trust. It may be
// used by many goroutines.
type Identity struct {
	roots       *x509.CertPool
	certificate tls.Certificate
}

// Load reads the files and checks that they fit together. The warnings are
// sentences for the log about what works now and may not work at the peers or
// soon: a certificate that is expired or about to, or issued by another CA.
func Load(files Files) (identity *Identity, warnings []string, err error) {
	authorities, err := readCertificates(files.CA)
	if err != nil {
		return nil, nil, err
	}
	chain, err := readCertificates(files.Certificate)
	if err != nil {
		return nil, nil, err
	}
	key, err := readKey(files.Key, files.Passphrase)
	if err != nil {
		return nil, nil, err
	}
	leaf := chain[0]
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(leaf.PublicKey) {
		return nil, nil, fmt.Errorf("%w: the key %q does not belong to the first certificate in %q; "+
			"configure the pair that was issued together", ErrUnusable, files.Key, files.Certificate)
	}
	identity = &Identity{
		roots:       x509.NewCertPool(),
		certificate: tls.Certificate{PrivateKey: key, Leaf: leaf},
	}
	for _, authority := range authorities {
		identity.roots.AddCert(authority)
	}
	for _, cert := range chain {
		identity.certificate.Certificate = append(identity.certificate.Certificate, cert.Raw)
	}
	warnings = append(expiry(files.CA, authorities[0]), expiry(files.Certificate, leaf)...)
	return identity, append(warnings, identity.doubts(files, chain)...), nil
}

// Leaf returns the program's own certificate.
func (id *Identity) Leaf() *x509.Certificate { return id.certificate.Leaf }

// expiry warns about the end of a certificate's validity.
func expiry(path string, cert *x509.Certificate) []string {
	now := time.Now()
	switch {
	case now.Before(cert.NotBefore):
		return []string{fmt.Sprintf("the certificate in %q is not valid before %s; check this machine's clock", path, cert.NotBefore.Format(time.RFC3339))}
	case now.After(cert.NotAfter):
		return []string{fmt.Sprintf("the certificate in %q expired on %s; have it renewed", path, cert.NotAfter.Format(time.RFC3339))}
	case now.Add(renewal).After(cert.NotAfter):
		return []string{fmt.Sprintf("the certificate in %q expires on %s; have it renewed", path, cert.NotAfter.Format(time.RFC3339))}
	}
	return nil
}

// doubts warns about what peers with the same CA would refuse.
func (id *Identity) doubts(files Files, chain []*x509.Certificate) (warnings []string) {
	if _, err := tunnel.CertificateName(chain[0]); err != nil {
		warnings = append(warnings, fmt.Sprintf("the certificate in %q has no usable common name; have it issued again with one", files.Certificate))
	}
	options := x509.VerifyOptions{
		Roots:         id.roots,
		Intermediates: x509.NewCertPool(),
		CurrentTime:   chain[0].NotBefore.Add(time.Second), // its time is judged apart
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}
	for _, intermediate := range chain[1:] {
		options.Intermediates.AddCert(intermediate)
	}
	if _, err := chain[0].Verify(options); err != nil {
		warnings = append(warnings, fmt.Sprintf("the certificate in %q was not issued by the CA in %q; peers that trust the same CA will refuse it",
			files.Certificate, files.CA))
	}
	return warnings
}

// readCertificates reads all certificates of a PEM file; there is at least one.
func readCertificates(path string) ([]*x509.Certificate, error) {
	rest, err := readFile(path, nil)
	if err != nil {
		return nil, err
	}
	var found []*x509.Certificate
	for {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%w: certificate %d in %q: %w", ErrUnusable, len(found)+1, path, err)
		}
		found = append(found, cert)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%w: %q holds no certificate; it must be PEM (BEGIN CERTIFICATE)", ErrUnusable, path)
	}
	return found, nil
}

// readFile reads a bounded file after judging what was opened.
func readFile(path string, judge func(*os.File) error) ([]byte, error) {
	if path == "" {
		return nil, fmt.Errorf("%w: no file is configured for the CA, the certificate or the key; all three are needed", ErrUnusable)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnusable, err)
	}
	defer file.Close()
	if judge != nil {
		if err := judge(file); err != nil {
			return nil, err
		}
	}
	content, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnusable, err)
	}
	if len(content) > maxFile {
		return nil, fmt.Errorf("%w: %q is larger than 1 MiB; is it the right file?", ErrUnusable, path)
	}
	return content, nil
}
