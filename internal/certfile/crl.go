package certfile

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"chancery/tunnel"
)

// maxCRL bounds what is read of a revocation list's file: room for some
// hundred thousand entries.
const maxCRL = 16 << 20

// revocations are what the CRLs of all files say. The zero value revokes nothing.
type revocations struct {
	issuers     map[string]*issuer // by the raw public key of the CA
	refuseStale bool
	digest      [sha256.Size]byte // of all lists, to tell whether anything changed
}

// issuer is one CA that has issued lists.
type issuer struct {
	name       string
	path       string               // of its newest list
	revoked    map[string]time.Time // by serial number, the bytes of its magnitude
	nextUpdate time.Time            // of its newest list
}

// readRevocations reads CRL files, each PEM or DER. The lists must be signed by
// one of the authorities; the entries of several lists of one CA add up.
func readRevocations(paths []string, authorities []*x509.Certificate, refuseStale bool) (revocations, error) {
	r := revocations{issuers: make(map[string]*issuer), refuseStale: refuseStale}
	sum := sha256.New()
	for _, path := range paths {
		content, err := readFile(path, maxCRL, nil)
		if err != nil {
			return revocations{}, err
		}
		lists, err := splitLists(path, content)
		if err != nil {
			return revocations{}, err
		}
		for _, der := range lists {
			sum.Write(der)
			if err := r.add(path, der, authorities); err != nil {
				return revocations{}, err
			}
		}
	}
	sum.Sum(r.digest[:0])
	return r, nil
}

// splitLists returns the DER of the lists in a file.
func splitLists(path string, content []byte) ([][]byte, error) {
	if !bytes.Contains(content, []byte("-----BEGIN")) {
		return [][]byte{content}, nil
	}
	blocks, err := readBlocks(path, content, "X509 CRL")
	if err == nil && len(blocks) == 0 {
		err = fmt.Errorf("%w: %q holds no certificate revocation list; it must be DER or PEM (BEGIN X509 CRL)", ErrUnusable, path)
	}
	return blocks, err
}

// readBlocks returns the contents of a PEM file's blocks of one type. A block
// that is cut off is an error, not the end: a half-written file must not pass
// for one with fewer blocks.
func readBlocks(path string, rest []byte, blockType string) (found [][]byte, err error) {
	for {
		block, after := pem.Decode(rest)
		if block == nil {
			break
		}
		if block.Type == blockType {
			found = append(found, block.Bytes)
		}
		rest = after
	}
	if bytes.Contains(rest, []byte("-----BEGIN")) {
		return nil, fmt.Errorf("%w: %q ends within a PEM block; is it damaged, or still being written?", ErrUnusable, path)
	}
	return found, nil
}

// add takes in one list after checking who signed it.
func (r *revocations) add(path string, der []byte, authorities []*x509.Certificate) error {
	list, err := x509.ParseRevocationList(der)
	if err == nil && len(list.Raw) != len(der) {
		err = errors.New("other data stands behind it")
	}
	if err != nil {
		return fmt.Errorf("%w: the certificate revocation list in %q: %w", ErrUnusable, path, err)
	}
	authority, err := signerOf(path, list, authorities)
	if err != nil {
		return err
	}
	if err := complete(path, list); err != nil {
		return err
	}
	key := string(authority.RawSubjectPublicKeyInfo)
	of := r.issuers[key]
	if of == nil {
		of = &issuer{name: authority.Subject.String(), revoked: make(map[string]time.Time)}
		r.issuers[key] = of
	}
	if list.NextUpdate.After(of.nextUpdate) {
		of.nextUpdate, of.path = list.NextUpdate, path
	}
	for i := range list.RevokedCertificateEntries {
		entry := &list.RevokedCertificateEntries[i]
		of.revoked[string(entry.SerialNumber.Bytes())] = entry.RevocationTime
	}
	return nil
}

// signerOf returns the authority that signed a list.
func signerOf(path string, list *x509.RevocationList, authorities []*x509.Certificate) (*x509.Certificate, error) {
	known := false
	for _, authority := range authorities {
		if !bytes.Equal(authority.RawSubject, list.RawIssuer) {
			continue
		}
		known = true
		if list.CheckSignatureFrom(authority) == nil {
			return authority, nil
		}
	}
	if known {
		return nil, fmt.Errorf("%w: the certificate revocation list in %q names the CA %q but is not signed by its key, "+
			"or that CA may not sign lists; fetch it again from the CA", ErrUnusable, path, list.Issuer)
	}
	return nil, fmt.Errorf("%w: the certificate revocation list in %q is from %q, which is not among the trusted CAs; "+
		"add its certificate to the CA file, or remove the list", ErrUnusable, path, list.Issuer)
}

// complete refuses lists that say less, or something else, than which of the
// issuer's own certificates are revoked: delta lists, indirect lists, and
// those with any other critical extension (RFC 5280, section 5.2).
func complete(path string, list *x509.RevocationList) error {
	if list.NextUpdate.IsZero() {
		return fmt.Errorf("%w: the certificate revocation list in %q does not say when the next one comes; have the CA set nextUpdate", ErrUnusable, path)
	}
	extensions := list.Extensions
	for i := range list.RevokedCertificateEntries {
		extensions = append(extensions, list.RevokedCertificateEntries[i].Extensions...)
	}
	for _, extension := range extensions {
		if extension.Critical {
			return fmt.Errorf("%w: the certificate revocation list in %q has the critical extension %s; only complete lists are supported", ErrUnusable, path, extension.Id)
		}
	}
	return nil
}

// verify refuses a peer of whose certificates, up to the CA, one is revoked. It
// is a tls.Config's VerifyConnection; crypto/tls answers it with the alert
// bad_certificate.
func (r *revocations) verify(state tls.ConnectionState) error {
	for _, chain := range state.VerifiedChains {
		for i := range len(chain) - 1 {
			if err := r.check(chain[i], chain[i+1]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *revocations) check(cert, authority *x509.Certificate) error {
	if err := r.entry(cert, authority); err != nil {
		return err
	}
	of := r.issuers[string(authority.RawSubjectPublicKeyInfo)]
	if of != nil && r.refuseStale && time.Now().After(of.nextUpdate) {
		return fmt.Errorf("certfile: the certificate revocation list of %s is out of date since %s, and nobody whom a newer one might name is let in",
			of.name, of.nextUpdate.UTC().Format(time.RFC3339))
	}
	return nil
}

// entry returns tunnel.ErrRevoked, with the particulars, for a certificate that
// is on its issuer's lists.
func (r *revocations) entry(cert, authority *x509.Certificate) error {
	of := r.issuers[string(authority.RawSubjectPublicKeyInfo)]
	if of == nil {
		return nil
	}
	since, revoked := of.revoked[string(cert.SerialNumber.Bytes())]
	if !revoked {
		return nil
	}
	name, _ := tunnel.CertificateName(cert) // empty for an intermediate without one
	return fmt.Errorf("%w: %q, serial number %x, since %s", tunnel.ErrRevoked, name, cert.SerialNumber, since.UTC().Format(time.RFC3339))
}

// entries counts the revoked certificates.
func (r *revocations) entries() (n int) {
	for _, of := range r.issuers {
		n += len(of.revoked)
	}
	return n
}

// nextUpdate returns when the first CA's lists go out of date; zero without any.
func (r *revocations) nextUpdate() (first time.Time) {
	for _, of := range r.issuers {
		if first.IsZero() || of.nextUpdate.Before(first) {
			first = of.nextUpdate
		}
	}
	return first
}

// warnings tells which CA's lists are out of date.
func (r *revocations) warnings(now time.Time) (warnings []string) {
	for _, of := range r.issuers {
		if !now.After(of.nextUpdate) {
			continue
		}
		effect := "its entries are still honoured, newer ones are missing"
		if r.refuseStale {
			effect = "no certificate of this CA is accepted"
		}
		warnings = append(warnings, fmt.Sprintf("the certificate revocation list in %q is out of date since %s: %s; fetch the new one",
			of.path, of.nextUpdate.UTC().Format(time.RFC3339), effect))
	}
	return warnings
}
