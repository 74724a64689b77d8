package certfile

import (
	"crypto/x509"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"chancery/tunnel"
)

// renewal is how long before its end a certificate is warned about.
const renewal = 30 * 24 * time.Hour

const day = 24 * time.Hour

// Expiry tells when what an Identity stands on comes to its end.
type Expiry struct {
	Certificate time.Time // the program's own certificate
	CA          time.Time // the CA that issued it, as the CA file has it
	CRL         time.Time // when the first CA's revocation lists go out of date; zero without any
}

// Expiry returns the three ends.
func (id *Identity) Expiry() Expiry {
	return Expiry{Certificate: id.Leaf().NotAfter, CA: id.issuer().NotAfter, CRL: id.revoked.nextUpdate()}
}

// Days returns the whole days that are left of the certificate or of its CA,
// whichever ends first. It is negative once that has ended.
func (e Expiry) Days(now time.Time) int {
	end := e.Certificate
	if e.CA.Before(end) {
		end = e.CA
	}
	return daysUntil(end, now)
}

func daysUntil(end, now time.Time) int {
	return int(math.Floor(end.Sub(now).Hours() / 24))
}

// Warnings returns sentences for the log and for people about what works now
// and may not work at the peers or soon: a certificate that is expired or has
// less than 30 days left, was issued by another CA or is not for the uses of
// Files; revocation lists that are out of date. They are made anew at each call.
func (id *Identity) Warnings() []string {
	now := time.Now()
	warnings := append(expiry(id.files.CA, id.issuer(), now), expiry(id.files.Certificate, id.Leaf(), now)...)
	warnings = append(warnings, id.doubts()...)
	return append(warnings, id.revoked.warnings(now)...)
}

// expiry warns about the end of a certificate's validity.
func expiry(path string, cert *x509.Certificate, now time.Time) []string {
	end := cert.NotAfter.Format(time.RFC3339)
	switch {
	case now.Before(cert.NotBefore):
		return []string{fmt.Sprintf("the certificate in %q is not valid before %s; check this machine's clock", path, cert.NotBefore.Format(time.RFC3339))}
	case now.After(cert.NotAfter):
		return []string{fmt.Sprintf("the certificate in %q expired on %s; have it renewed", path, end)}
	case now.Add(renewal).After(cert.NotAfter):
		return []string{fmt.Sprintf("the certificate in %q expires on %s, %d days from now; have it renewed", path, end, daysUntil(cert.NotAfter, now))}
	}
	return nil
}

// doubts warns about what peers with the same CA would refuse, whatever the time.
func (id *Identity) doubts() (warnings []string) {
	if _, err := tunnel.CertificateName(id.Leaf()); err != nil {
		warnings = append(warnings, fmt.Sprintf("the certificate in %q has no usable common name; have it issued again with one", id.files.Certificate))
	}
	warnings = append(warnings, id.misused()...)
	if len(id.verify()) == 0 {
		return append(warnings, fmt.Sprintf("the certificate in %q was not issued by the CA in %q; peers that trust the same CA will refuse it",
			id.files.Certificate, id.files.CA))
	}
	return append(warnings, id.withdrawn()...)
}

// useNames are the uses that a program may need its certificate for.
var useNames = map[x509.ExtKeyUsage]string{x509.ExtKeyUsageServerAuth: "TLS servers", x509.ExtKeyUsageClientAuth: "TLS clients"}

// misused warns about a certificate that is not for what the program needs it for (RFC 5280, section 4.2.1.12).
func (id *Identity) misused() (warnings []string) {
	leaf := id.Leaf()
	if len(leaf.ExtKeyUsage)+len(leaf.UnknownExtKeyUsage) == 0 || slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny) {
		return nil
	}
	for _, use := range id.files.Uses {
		if !slices.Contains(leaf.ExtKeyUsage, use) {
			warnings = append(warnings, fmt.Sprintf("the certificate in %q is not for %s (extended key usage), so that peers will refuse it; have it issued again for this program",
				id.files.Certificate, useNames[use]))
		}
	}
	return warnings
}

// withdrawn warns about a certificate that was revoked, or one above it.
func (id *Identity) withdrawn() (warnings []string) {
	chain := id.verify()
	for i := range len(chain) - 1 {
		if err := id.revoked.entry(chain[i], chain[i+1]); err != nil {
			warnings = append(warnings, fmt.Sprintf("the certificate in %q will be refused by peers: %s; have it issued again", id.files.Certificate, err))
		}
	}
	return warnings
}

// Check returns an error for what every peer would refuse at this moment: a certificate, or a CA above it, that is expired or
// not valid yet, is not for the uses of Files, or is revoked. The error wraps ErrUnusable. Whether peers trust another CA than
// this program does is theirs to say, and no error here.
func (id *Identity) Check() error {
	var refused []string
	now := time.Now()
	for _, end := range []struct {
		path string
		cert *x509.Certificate
	}{{id.files.CA, id.issuer()}, {id.files.Certificate, id.Leaf()}} {
		if now.Before(end.cert.NotBefore) || now.After(end.cert.NotAfter) {
			refused = append(refused, expiry(end.path, end.cert, now)...)
		}
	}
	refused = append(refused, id.misused()...)
	if refused = append(refused, id.withdrawn()...); len(refused) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrUnusable, strings.Join(refused, "; "))
}

// issuer returns the CA above the program's own certificate, or the first of
// the file where none is.
func (id *Identity) issuer() *x509.Certificate {
	chain := id.verify()
	if len(chain) == 0 {
		return id.authorities[0]
	}
	return chain[len(chain)-1]
}

// verify returns the way from the program's own certificate to a CA, or nil. One that is valid now comes first; without any,
// the times of the certificates do not matter, since they are judged apart. A CA may be younger than what it has issued: a
// renewed one with the same key is.
func (id *Identity) verify() []*x509.Certificate {
	asTheyAre := func(cert *x509.Certificate) *x509.Certificate { return cert }
	if chain := id.verifyAs(asTheyAre); chain != nil {
		return chain
	}
	return id.verifyAs(timeless)
}

// timeless returns a copy that is valid at any time at which it may be verified. Its signature is still over the original.
func timeless(cert *x509.Certificate) *x509.Certificate {
	copied := *cert
	copied.NotBefore, copied.NotAfter = time.Time{}, time.Now().Add(renewal)
	return &copied
}

// verifyAs verifies the certificates as view has them, and returns the originals.
func (id *Identity) verifyAs(view func(*x509.Certificate) *x509.Certificate) []*x509.Certificate {
	options := x509.VerifyOptions{
		Roots:         x509.NewCertPool(),
		Intermediates: x509.NewCertPool(),
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}
	for _, authority := range id.authorities {
		options.Roots.AddCert(view(authority))
	}
	for _, intermediate := range id.chain[1:] {
		options.Intermediates.AddCert(view(intermediate))
	}
	chains, err := view(id.Leaf()).Verify(options)
	if err != nil {
		return nil
	}
	known := slices.Concat(id.chain, id.authorities)
	chain := chains[0]
	for i, cert := range chain {
		chain[i] = known[slices.IndexFunc(known, cert.Equal)]
	}
	return chain
}
