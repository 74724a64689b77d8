// Package x509cert makes X.509 certificates and certificate requests (RFC 5280,
// RFC 2986) for signing keys that live elsewhere: behind any crypto.Signer.
//
// SelfSigned makes a certificate that the key signs itself, for verifiers that
// trust that certificate directly. Request makes what a certification authority
// wants to see before it issues one. Parse reads the certificate that came back,
// and Matches says whether it belongs to the key.
//
// RSA keys sign with PKCS#1 v1.5 and SHA-256, ECDSA keys with the hash of their
// curve's size, Ed25519 keys as RFC 8410 has it.
package x509cert

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"
)

// Errors of this package, wrapped with what they are about. None goes away by
// trying again with the same input.
var (
	// ErrSubject says that a subject cannot be understood or does not fit a certificate.
	ErrSubject = errors.New("x509cert: subject not usable")
	// ErrOptions says that the other options make no sense.
	ErrOptions = errors.New("x509cert: options not usable")
	// ErrUnsupported says that no certificate is made for such a key.
	ErrUnsupported = errors.New("x509cert: key not supported")
	// ErrCertificate says that something is not one readable certificate.
	ErrCertificate = errors.New("x509cert: certificate not usable")
)

// Usage is what a certificate's key may be used for.
type Usage string

const (
	// CodeSigning is for programs, packages, kernel modules and boot loaders.
	CodeSigning Usage = "codesigning"
	// Timestamping is for a time-stamping authority (RFC 3161), and for nothing else.
	Timestamping Usage = "timestamping"
	// Email is for S/MIME messages.
	Email Usage = "email"
	// Unrestricted leaves the purpose out: any signature is allowed.
	Unrestricted Usage = "unrestricted"
)

// Usages lists the usages there are, for help texts and completion.
func Usages() []Usage { return []Usage{CodeSigning, Timestamping, Email, Unrestricted} }

// DefaultValidity is how long a certificate is valid when Options does not say.
const DefaultValidity = 3 * 365 * 24 * time.Hour

const (
	maxValidity        = 50 * 366 * 24 * time.Hour
	maxCertificateSize = 256 << 10 // bytes of PEM
	serialBits         = 128
)

// Options says what a certificate or request claims.
type Options struct {
	// Subject is the owner's name as in RFC 4514, most specific part first:
	// "CN=Release,O=Example". See ParseSubject.
	Subject string
	// Usage is CodeSigning when empty.
	Usage Usage
	// NotBefore is when a certificate becomes valid. Zero means now. A request has no such time.
	NotBefore time.Time
	// Validity is how long a certificate is valid, at most 50 years. Zero means
	// DefaultValidity. A request has none.
	Validity time.Duration
}

// SelfSigned returns a PEM certificate of the signer's key, signed by itself,
// with a random serial number of 128 bits. The signer's own errors are passed on.
func SelfSigned(signer crypto.Signer, opts Options) (certPEM []byte, err error) {
	subject, extensions, err := prepare(signer.Public(), opts)
	if err != nil {
		return nil, err
	}
	validity := opts.Validity
	if validity == 0 {
		validity = DefaultValidity
	}
	if validity < time.Second || validity > maxValidity {
		return nil, fmt.Errorf("%w: a certificate is valid for a second to 50 years", ErrOptions)
	}
	notBefore := opts.NotBefore
	if notBefore.IsZero() {
		notBefore = time.Now()
	}
	keyID, err := subjectKeyID(signer.Public())
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		RawSubject:            subject,
		NotBefore:             notBefore.UTC().Truncate(time.Second),
		NotAfter:              notBefore.UTC().Truncate(time.Second).Add(validity),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		SubjectKeyId:          keyID,
		BasicConstraintsValid: true, // and no authority
		ExtraExtensions:       extensions,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, signer.Public(), signer)
	if err != nil {
		return nil, fmt.Errorf("x509cert: signing the certificate: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// Request returns a PEM certificate request (PKCS#10) that the key signs, and
// which asks for the usage in Options. The signer's own errors are passed on.
func Request(signer crypto.Signer, opts Options) (csrPEM []byte, err error) {
	subject, extensions, err := prepare(signer.Public(), opts)
	if err != nil {
		return nil, err
	}
	// digitalSignature is bit 0 (RFC 5280, section 4.2.1.3).
	usage, err := asn1.Marshal(asn1.BitString{Bytes: []byte{0x80}, BitLength: 1})
	if err != nil {
		return nil, fmt.Errorf("x509cert: key usage: %w", err)
	}
	extensions = append(extensions, pkix.Extension{Id: oidKeyUsage, Critical: true, Value: usage})
	template := &x509.CertificateRequest{RawSubject: subject, ExtraExtensions: extensions}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, signer)
	if err != nil {
		return nil, fmt.Errorf("x509cert: signing the request: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

// Parse reads a PEM file that holds one certificate and nothing else but text
// around it. For a chain, keep the first certificate: the key's own.
func Parse(data []byte) (*x509.Certificate, error) {
	if len(data) > maxCertificateSize {
		return nil, fmt.Errorf("%w: more than %d bytes", ErrCertificate, maxCertificateSize)
	}
	block, rest := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("%w: no PEM block CERTIFICATE comes first", ErrCertificate)
	}
	if another, _ := pem.Decode(rest); another != nil || bytes.Contains(rest, []byte("-----BEGIN")) {
		return nil, fmt.Errorf("%w: more than one PEM block; keep only the key's own certificate", ErrCertificate)
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrCertificate, err)
	}
	return certificate, nil
}

// Matches says whether the certificate is of this public key.
func Matches(certificate *x509.Certificate, public crypto.PublicKey) bool {
	key, ok := certificate.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	return ok && key.Equal(public)
}

// prepare checks key and options, and encodes what certificates and requests share.
func prepare(public crypto.PublicKey, opts Options) (subject []byte, extensions []pkix.Extension, err error) {
	if err := checkPublic(public); err != nil {
		return nil, nil, err
	}
	name, err := ParseSubject(opts.Subject)
	if err != nil {
		return nil, nil, err
	}
	subject, err = asn1.Marshal(name)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %v", ErrSubject, err)
	}
	extensions, err = usageExtension(opts.Usage)
	return subject, extensions, err
}

func checkPublic(public crypto.PublicKey) error {
	switch key := public.(type) {
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < 2048 || bits > 8192 {
			return fmt.Errorf("%w: RSA of %d bits; use 2048 or more", ErrUnsupported, bits)
		}
		return nil
	case *ecdsa.PublicKey:
		switch key.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
			return nil
		}
		return fmt.Errorf("%w: ECDSA on %s; use P-256, P-384 or P-521", ErrUnsupported, key.Curve.Params().Name)
	case ed25519.PublicKey:
		return nil
	default:
		return fmt.Errorf("%w: use RSA, ECDSA or Ed25519", ErrUnsupported)
	}
}

// Object identifiers of RFC 5280, section 4.2.1.
var (
	oidKeyUsage         = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidExtendedKeyUsage = asn1.ObjectIdentifier{2, 5, 29, 37}
	oidPurposes         = map[Usage]asn1.ObjectIdentifier{
		CodeSigning:  {1, 3, 6, 1, 5, 5, 7, 3, 3},
		Email:        {1, 3, 6, 1, 5, 5, 7, 3, 4},
		Timestamping: {1, 3, 6, 1, 5, 5, 7, 3, 8},
	}
)

// usageExtension encodes the extended key usage. That of a time-stamping
// authority must be critical (RFC 3161, section 2.3), which the standard
// library's own field cannot say.
func usageExtension(usage Usage) ([]pkix.Extension, error) {
	if usage == "" {
		usage = CodeSigning
	}
	if usage == Unrestricted {
		return nil, nil
	}
	purpose, ok := oidPurposes[usage]
	if !ok {
		return nil, fmt.Errorf("%w: usage %.20q; use one of %v", ErrOptions, string(usage), Usages())
	}
	value, err := asn1.Marshal([]asn1.ObjectIdentifier{purpose})
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrOptions, err)
	}
	return []pkix.Extension{{Id: oidExtendedKeyUsage, Critical: usage == Timestamping, Value: value}}, nil
}

// subjectKeyID is the leftmost 160 bits of the SHA-256 of the key's bit string
// (RFC 7093, section 2, method 1).
func subjectKeyID(public crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrUnsupported, err)
	}
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &info); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrUnsupported, err)
	}
	sum := sha256.Sum256(info.Key.Bytes)
	return sum[:20], nil
}

// newSerial returns a positive random number (RFC 5280, section 4.1.2.2).
func newSerial() (*big.Int, error) {
	limit := new(big.Int).Lsh(big.NewInt(1), serialBits)
	for {
		serial, err := rand.Int(rand.Reader, limit)
		if err != nil {
			return nil, fmt.Errorf("x509cert: serial number: %w", err)
		}
		if serial.Sign() > 0 {
			return serial, nil
		}
	}
}
