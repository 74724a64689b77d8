package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"

	"chancery/tunnel"
)

// The defaults of validity.
const (
	DefaultCAValidity   = 10 * 365 * 24 * time.Hour
	DefaultLeafValidity = 365 * 24 * time.Hour
)

// backdate lets a certificate be used on machines whose clock is a little late.
const backdate = 5 * time.Minute

// ErrCA is returned when a certificate and key cannot serve as an authority.
var ErrCA = errors.New("pki: not usable as a certification authority")

// CAOptions tells what NewCA makes.
type CAOptions struct {
	CommonName string        // default "Chancery CA"
	Validity   time.Duration // default DefaultCAValidity
}

// CA is a certification authority. It may be used by many goroutines.
type CA struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// NewCA makes an authority with a new P-256 key.
func NewCA(opts CAOptions) (*CA, error) {
	if opts.CommonName == "" {
		opts.CommonName = "Chancery CA"
	}
	if opts.Validity <= 0 {
		opts.Validity = DefaultCAValidity
	}
	if err := tunnel.ValidName(opts.CommonName); err != nil {
		return nil, fmt.Errorf("pki: common name of the CA: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("pki: generate the CA's key: %w", err)
	}
	template, err := newTemplate(opts.CommonName, opts.Validity, key.Public())
	if err != nil {
		return nil, err
	}
	template.IsCA = true
	template.MaxPathLenZero = true // it issues leaves only
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	template.AuthorityKeyId = template.SubjectKeyId
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("pki: sign the CA's certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("pki: read back the CA's certificate: %w", err)
	}
	return &CA{cert: cert, key: key}, nil
}

// LoadCA reads an authority from its PEM certificate and its unencrypted
// PKCS#8 PEM key. It fails with ErrCA when the two do not belong together or
// the certificate is not an authority's or has expired.
func LoadCA(certPEM, keyPEM []byte) (*CA, error) {
	certBlock, _ := pem.Decode(certPEM)
	if certBlock == nil || certBlock.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("%w: the certificate file holds no PEM certificate", ErrCA)
	}
	cert, err := x509.ParseCertificate(certBlock.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCA, err)
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, err
	}
	switch {
	case !cert.IsCA:
		return nil, fmt.Errorf("%w: the certificate of %q is not a CA's", ErrCA, cert.Subject.CommonName)
	case cert.KeyUsage != 0 && cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return nil, fmt.Errorf("%w: the certificate of %q may not sign certificates", ErrCA, cert.Subject.CommonName)
	case time.Now().After(cert.NotAfter):
		return nil, fmt.Errorf("%w: the certificate of %q expired on %s", ErrCA, cert.Subject.CommonName, cert.NotAfter.Format(time.DateOnly))
	case !samePublicKey(cert.PublicKey, key.Public()):
		return nil, fmt.Errorf("%w: the key does not belong to the certificate", ErrCA)
	}
	return &CA{cert: cert, key: key}, nil
}

func parseKey(keyPEM []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(keyPEM)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, fmt.Errorf("%w: the key file holds no unencrypted PKCS#8 PEM key (BEGIN PRIVATE KEY)", ErrCA)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: the key cannot be read", ErrCA)
	}
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%w: the key cannot sign", ErrCA)
	}
	return key, nil
}

func samePublicKey(a, b crypto.PublicKey) bool {
	comparable, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && comparable.Equal(b)
}

// Certificate returns the authority's certificate.
func (ca *CA) Certificate() *x509.Certificate { return ca.cert }

// CertificatePEM returns the authority's certificate for everybody's ca file.
func (ca *CA) CertificatePEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})
}

// KeyPEM returns the authority's private key, unencrypted. Whoever has it can
// be any user: keep it offline.
func (ca *CA) KeyPEM() ([]byte, error) { return encodeKey(ca.key) }

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("pki: encode a private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// newTemplate returns what all certificates have in common: a random 128-bit
// serial number, the subject, the validity and the subject's key identifier.
func newTemplate(commonName string, validity time.Duration, public crypto.PublicKey) (*x509.Certificate, error) {
	id, err := keyID(public)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               pkix.Name{CommonName: commonName},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(validity),
		SubjectKeyId:          id,
		BasicConstraintsValid: true,
	}, nil
}

// newSerial returns a positive number of 128 bits, 127 of them random: the top
// one is set so that all serials have the same length.
func newSerial() *big.Int {
	var b [16]byte
	rand.Read(b[:]) // never fails, see crypto/rand.Read
	b[0] |= 0x80
	return new(big.Int).SetBytes(b[:])
}

// keyID returns the leftmost 160 bits of the SHA-256 of the public key's bits
// (RFC 7093, section 2, method 1).
func keyID(public crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("pki: encode a public key: %w", err)
	}
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		PublicKey asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &info); err != nil {
		return nil, fmt.Errorf("pki: read back a public key: %w", err)
	}
	sum := sha256.Sum256(info.PublicKey.Bytes)
	return sum[:20], nil
}
