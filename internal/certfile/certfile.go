// Package certfile loads a program's certificates and private key from PEM
// files and makes the TLS settings of the tunnel's two layers from them.
//
// Load is told the files: the CA whose certificates are trusted (and nothing
// else ever is), the program's own certificate with any intermediates, its
// key, and revocation lists. Private keys are PKCS#8, plain or protected by a
// passphrase (PBES2), or the older SEC 1 and PKCS#1 forms. A key file that
// others than its owner can read is refused.
//
// # Files that change
//
// Open returns a Live, which follows its files. A set that does not fit
// together, for example because it is half written, changes nothing: the last
// good one stays in use. Sessions are not dropped when certificates change.
//
// # Revocation
//
// Certificate revocation lists (RFC 5280, section 5) are honoured by acceptors
// and by dialers, for the peer's certificate and the intermediates above it.
// Each list must be signed by a CA of the CA file, be complete (no delta, no
// indirect list) and say when the next one comes. A CA without a list revokes
// nothing. A refused peer gets the TLS alert bad_certificate, since crypto/tls
// sends no other for a verdict that is not its own; the log and the error say
// that the certificate is revoked.
package certfile

import (
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"

	"chancery/tunnel"
)

// ErrUnusable is wrapped by every error of Load. Its text names the file and
// says what to do; a retry helps only after that.
var ErrUnusable = errors.New("certfile: cannot be used")

// maxFile bounds what is read of a file, but for revocation lists.
const maxFile = 1 << 20

// Files names what to load.
type Files struct {
	CA          string // certificates that are trusted, PEM
	Certificate string // the program's own, then intermediates, PEM
	Key         string // its private key, PEM
	// Passphrase is asked, once, for the passphrase of a protected key. The
	// slice that it returns is overwritten after use. Without it a protected
	// key is an error.
	Passphrase func() ([]byte, error)
	// Interactive tells that Passphrase asks a person. A Live then takes a new
	// certificate for the key it has, but another protected key is refused
	// until the program is restarted.
	Interactive bool
	// Uses are the extended key usages that the program needs its certificate
	// for, of a TLS server and of a TLS client. None: it is not looked at.
	Uses []x509.ExtKeyUsage
	// CRLs are files with certificate revocation lists, PEM or DER.
	CRLs []string
	// Expired decides about a CA whose lists are all past their nextUpdate. The
	// zero value stands for WarnExpired.
	Expired ExpiredPolicy
}

// ExpiredPolicy is what to do when a CA's revocation lists are out of date.
type ExpiredPolicy string

// The policies, as configuration files have them.
const (
	WarnExpired   ExpiredPolicy = "warn"   // honour what they say, and warn
	RefuseExpired ExpiredPolicy = "refuse" // accept no certificate of that CA
)

// Identity is a loaded certificate with its key, the CA to trust and the
// certificates not to. It may be used by many goroutines.
type Identity struct {
	pair
	files   Files
	revoked revocations

	// Made once, since an acceptor's settings live on in each of its sessions.
	bridgeServer, innerAcceptor *tls.Config
}

// pair is a certificate with its key and the CA, which must fit together.
type pair struct {
	authorities []*x509.Certificate
	chain       []*x509.Certificate // the program's own, then intermediates
	roots       *x509.CertPool
	certificate tls.Certificate
	keyDigest   [sha256.Size]byte // of the key file
}

// Load reads the files and checks that they fit together. The warnings are
// those of Identity.Warnings.
func Load(files Files) (identity *Identity, warnings []string, err error) {
	loaded, err := loadPair(files, nil)
	if err != nil {
		return nil, nil, err
	}
	identity, err = newIdentity(files, loaded)
	if err != nil {
		return nil, nil, err
	}
	return identity, identity.Warnings(), nil
}

// newIdentity adds the revocation lists to a pair.
func newIdentity(files Files, loaded *pair) (*Identity, error) {
	switch files.Expired {
	case "", WarnExpired, RefuseExpired:
	default:
		return nil, fmt.Errorf("%w: crl_expired is %q; give %q or %q", ErrUnusable, files.Expired, WarnExpired, RefuseExpired)
	}
	revoked, err := readRevocations(files.CRLs, loaded.authorities, files.Expired == RefuseExpired)
	if err != nil {
		return nil, err
	}
	id := &Identity{pair: *loaded, files: files, revoked: revoked}
	id.bridgeServer = id.acceptor()
	id.innerAcceptor = id.acceptor()
	id.innerAcceptor.NextProtos = []string{tunnel.Protocol}
	return id, nil
}

// loadPair reads all but the revocation lists. The key of the previous pair is
// kept where its file has not changed, so that nobody is asked for its
// passphrase again.
func loadPair(files Files, previous *pair) (*pair, error) {
	authorities, err := readCertificates(files.CA)
	if err != nil {
		return nil, err
	}
	chain, err := readCertificates(files.Certificate)
	if err != nil {
		return nil, err
	}
	key, digest, err := readKey(files, previous)
	if err != nil {
		return nil, err
	}
	leaf := chain[0]
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(leaf.PublicKey) {
		return nil, fmt.Errorf("%w: the key %q does not belong to the first certificate in %q; "+
			"configure the pair that was issued together", ErrUnusable, files.Key, files.Certificate)
	}
	loaded := &pair{
		authorities: authorities,
		chain:       chain,
		roots:       x509.NewCertPool(),
		certificate: tls.Certificate{PrivateKey: key, Leaf: leaf},
		keyDigest:   digest,
	}
	for _, authority := range authorities {
		loaded.roots.AddCert(authority)
	}
	for _, cert := range chain {
		loaded.certificate.Certificate = append(loaded.certificate.Certificate, cert.Raw)
	}
	return loaded, nil
}

// Leaf returns the program's own certificate.
func (id *Identity) Leaf() *x509.Certificate { return id.certificate.Leaf }

// readCertificates reads all certificates of a PEM file; there is at least one.
func readCertificates(path string) ([]*x509.Certificate, error) {
	content, err := readFile(path, maxFile, nil)
	if err != nil {
		return nil, err
	}
	blocks, err := readBlocks(path, content, "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	var found []*x509.Certificate
	for i, der := range blocks {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("%w: certificate %d in %q: %w", ErrUnusable, i+1, path, err)
		}
		found = append(found, cert)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%w: %q holds no certificate; it must be PEM (BEGIN CERTIFICATE)", ErrUnusable, path)
	}
	return found, nil
}

// readFile reads a bounded file after judging what was opened.
func readFile(path string, limit int64, judge func(*os.File) error) ([]byte, error) {
	if path == "" {
		return nil, fmt.Errorf("%w: no file is configured for the CA, the certificate or the key, all of which are needed, or a revocation list's name is empty", ErrUnusable)
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
	content, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnusable, err)
	}
	if int64(len(content)) > limit {
		clear(content)
		return nil, fmt.Errorf("%w: %q is larger than %d MiB; is it the right file?", ErrUnusable, path, limit>>20)
	}
	return content, nil
}
