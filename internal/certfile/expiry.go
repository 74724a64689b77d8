package certfile

import (
	"crypto/x509"
	"fmt"
	"math"
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
// less than 30 days left, or was issued by another CA; revocation lists that
// are out of date. They are made anew at each call.
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

// doubts warns about what peers with the same CA would refuse.
func (id *Identity) doubts() (warnings []string) {
	if _, err := tunnel.CertificateName(id.Leaf()); err != nil {
		warnings = append(warnings, fmt.Sprintf("the certificate in %q has no usable common name; have it issued again with one", id.files.Certificate))
	}
	chains := id.verify()
	if len(chains) == 0 {
		return append(warnings, fmt.Sprintf("the certificate in %q was not issued by the CA in %q; peers that trust the same CA will refuse it",
			id.files.Certificate, id.files.CA))
	}
	for i := range len(chains[0]) - 1 {
		if err := id.revoked.entry(chains[0][i], chains[0][i+1]); err != nil {
			warnings = append(warnings, fmt.Sprintf("the certificate in %q will be refused by peers: %s; have it issued again", id.files.Certificate, err))
		}
	}
	return warnings
}

// issuer returns the CA above the program's own certificate, or the first of
// the file where none is.
func (id *Identity) issuer() *x509.Certificate {
	chains := id.verify()
	if len(chains) == 0 {
		return id.authorities[0]
	}
	return chains[0][len(chains[0])-1]
}

// verify returns the ways from the program's own certificate to a CA, at a time
// when it was valid: its time is judged apart.
func (id *Identity) verify() [][]*x509.Certificate {
	options := x509.VerifyOptions{
		Roots:         id.roots,
		Intermediates: x509.NewCertPool(),
		CurrentTime:   id.Leaf().NotBefore.Add(time.Second),
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}
	for _, intermediate := range id.chain[1:] {
		options.Intermediates.AddCert(intermediate)
	}
	chains, err := id.Leaf().Verify(options)
	if err != nil {
		return nil
	}
	return chains
}
