package x509cert

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/internal/testtool"
)

// opaque hides a key behind crypto.Signer, as a token's key is hidden.
type opaque struct{ key crypto.Signer }

func (o opaque) Public() crypto.PublicKey { return o.key.Public() }
func (o opaque) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return o.key.Sign(r, digest, opts)
}

// testSigners makes one key of each kind, once for all tests.
var testSigners = sync.OnceValue(func() map[string]crypto.Signer {
	signers := make(map[string]crypto.Signer)
	add := func(name string, key crypto.Signer, err error) {
		if err != nil {
			panic(err)
		}
		signers[name] = opaque{key}
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	add("rsa", rsaKey, err)
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		add(curve.Params().Name, key, err)
	}
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	add("ed25519", edwards, err)
	return signers
})

var algorithms = map[string]struct {
	algorithm x509.SignatureAlgorithm
	openssl   string
}{
	"rsa":     {x509.SHA256WithRSA, "sha256WithRSAEncryption"},
	"P-256":   {x509.ECDSAWithSHA256, "ecdsa-with-SHA256"},
	"P-384":   {x509.ECDSAWithSHA384, "ecdsa-with-SHA384"},
	"P-521":   {x509.ECDSAWithSHA512, "ecdsa-with-SHA512"},
	"ed25519": {x509.PureEd25519, "ED25519"},
}

const subject = `CN=Release,OU=Signing,O=Example\, Inc.,C=DE`

func TestSelfSigned(t *testing.T) {
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, signer := range testSigners() {
		data, err := SelfSigned(signer, Options{Subject: subject, NotBefore: start, Validity: 24 * time.Hour})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		certificate, err := Parse(data)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !Matches(certificate, signer.Public()) {
			t.Errorf("%s: it does not match its key", name)
		}
		if certificate.SignatureAlgorithm != algorithms[name].algorithm {
			t.Errorf("%s: signed with %v", name, certificate.SignatureAlgorithm)
		}
		// In Go a certificate without CA rights does not sign itself, but the signature must be right.
		err = certificate.CheckSignature(certificate.SignatureAlgorithm, certificate.RawTBSCertificate, certificate.Signature)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if certificate.IsCA || certificate.KeyUsage != x509.KeyUsageDigitalSignature || len(certificate.SubjectKeyId) != 20 ||
			len(certificate.ExtKeyUsage) != 1 || certificate.ExtKeyUsage[0] != x509.ExtKeyUsageCodeSigning {
			t.Errorf("%s: CA %v, usage %v, %v, key ID %x", name, certificate.IsCA, certificate.KeyUsage,
				certificate.ExtKeyUsage, certificate.SubjectKeyId)
		}
		if !certificate.NotBefore.Equal(start) || !certificate.NotAfter.Equal(start.Add(24*time.Hour)) {
			t.Errorf("%s: valid from %v to %v", name, certificate.NotBefore, certificate.NotAfter)
		}
		if got := certificate.Subject.String(); got != subject {
			t.Errorf("%s: subject %s, want %s", name, got, subject)
		}
	}
}

func TestSerialsDiffer(t *testing.T) {
	signer := testSigners()["ed25519"]
	seen := make(map[string]bool)
	for range 50 {
		data, err := SelfSigned(signer, Options{Subject: subject})
		if err != nil {
			t.Fatal(err)
		}
		certificate, err := Parse(data)
		if err != nil {
			t.Fatal(err)
		}
		serial := certificate.SerialNumber
		if seen[serial.String()] || serial.Sign() <= 0 || serial.BitLen() > serialBits {
			t.Fatalf("serial %v", serial)
		}
		seen[serial.String()] = true
	}
}

func TestOpenSSLTakesCertificates(t *testing.T) {
	openssl := testtool.Need(t, "openssl")
	for name, signer := range testSigners() {
		for _, usage := range Usages() {
			t.Run(name+"/"+string(usage), func(t *testing.T) {
				data, err := SelfSigned(signer, Options{Subject: subject, Usage: usage})
				if err != nil {
					t.Fatal(err)
				}
				path := filepath.Join(t.TempDir(), "cert.pem")
				if err := os.WriteFile(path, data, 0o600); err != nil {
					t.Fatal(err)
				}
				verify := []string{"verify", "-check_ss_sig", "-CAfile", path}
				if usage == Timestamping {
					verify = append(verify, "-purpose", "timestampsign")
				}
				run(t, openssl, append(verify, path)...)
				text := run(t, openssl, "x509", "-in", path, "-noout", "-text", "-nameopt", "RFC2253")
				for _, want := range []string{
					"Signature Algorithm: " + algorithms[name].openssl, "CA:FALSE", "X509v3 Subject Key Identifier",
					"X509v3 Key Usage: critical\n                Digital Signature\n", `Subject: ` + subject, usageText[usage],
				} {
					if !strings.Contains(text, want) {
						t.Errorf("the listing lacks %q:\n%s", want, text)
					}
				}
				if usage == Unrestricted && strings.Contains(text, "Extended Key Usage") {
					t.Errorf("it is restricted:\n%s", text)
				}
			})
		}
	}
}

// usageText is what openssl prints of each usage.
var usageText = map[Usage]string{
	CodeSigning:  "X509v3 Extended Key Usage: \n                Code Signing\n",
	Timestamping: "X509v3 Extended Key Usage: critical\n                Time Stamping\n",
	Email:        "X509v3 Extended Key Usage: \n                E-mail Protection\n",
	Unrestricted: "",
}

func TestOpenSSLTakesRequests(t *testing.T) {
	openssl := testtool.Need(t, "openssl")
	for name, signer := range testSigners() {
		for _, usage := range Usages() {
			t.Run(name+"/"+string(usage), func(t *testing.T) {
				data, err := Request(signer, Options{Subject: subject, Usage: usage})
				if err != nil {
					t.Fatal(err)
				}
				path := filepath.Join(t.TempDir(), "request.pem")
				if err := os.WriteFile(path, data, 0o600); err != nil {
					t.Fatal(err)
				}
				text := run(t, openssl, "req", "-verify", "-in", path, "-noout", "-text", "-nameopt", "RFC2253")
				for _, want := range []string{"Subject: " + subject, "Digital Signature", algorithms[name].openssl,
					strings.ReplaceAll(usageText[usage], "\n                ", "\n                    ")} {
					if !strings.Contains(text, want) {
						t.Errorf("the listing lacks %q:\n%s", want, text)
					}
				}
			})
		}
	}
}

func run(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", filepath.Base(program), strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestOptionsAreChecked(t *testing.T) {
	signer := testSigners()["ed25519"]
	for name, test := range map[string]struct {
		opts Options
		want error
	}{
		"no subject":    {Options{}, ErrSubject},
		"unknown usage": {Options{Subject: subject, Usage: "everything"}, ErrOptions},
		"negative":      {Options{Subject: subject, Validity: -time.Hour}, ErrOptions},
		"a century":     {Options{Subject: subject, Validity: 100 * 366 * 24 * time.Hour}, ErrOptions},
	} {
		if _, err := SelfSigned(signer, test.opts); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []crypto.Signer{weak, p224} {
		if _, err := SelfSigned(key, Options{Subject: subject}); !errors.Is(err, ErrUnsupported) {
			t.Errorf("SelfSigned returned %v", err)
		}
		if _, err := Request(key, Options{Subject: subject}); !errors.Is(err, ErrUnsupported) {
			t.Errorf("Request returned %v", err)
		}
	}
}

// refusing is a key whose token says no.
type refusing struct{ crypto.Signer }

func (refusing) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, io.ErrNoProgress
}

func TestSignerErrorsArePassedOn(t *testing.T) {
	signer := refusing{testSigners()["P-256"]}
	if _, err := SelfSigned(signer, Options{Subject: subject}); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("SelfSigned returned %v", err)
	}
	if _, err := Request(signer, Options{Subject: subject}); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("Request returned %v", err)
	}
}

func TestParseRefuses(t *testing.T) {
	signer := testSigners()["ed25519"]
	good, err := SelfSigned(signer, Options{Subject: subject})
	if err != nil {
		t.Fatal(err)
	}
	request, err := Request(signer, Options{Subject: subject})
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"nothing":     nil,
		"text":        []byte("no certificate"),
		"too long":    bytes.Repeat([]byte("\n"), maxCertificateSize+1),
		"a request":   request,
		"two":         append(bytes.Clone(good), good...),
		"a key after": append(bytes.Clone(good), "-----BEGIN PRIVATE KEY-----\n"...),
		"garbage":     pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("garbage")}),
	} {
		if _, err := Parse(data); !errors.Is(err, ErrCertificate) {
			t.Errorf("%s: %v", name, err)
		}
	}
	certificate, err := Parse(append([]byte("subject=Release\n\n"), good...))
	if err != nil {
		t.Fatalf("with a note before it: %v", err)
	}
	if Matches(certificate, testSigners()["P-256"].Public()) || Matches(certificate, nil) {
		t.Error("it matches another key")
	}
}

func FuzzParse(f *testing.F) {
	good, err := SelfSigned(testSigners()["ed25519"], Options{Subject: subject})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, data []byte) {
		if certificate, err := Parse(data); err == nil {
			Matches(certificate, certificate.PublicKey)
		}
	})
}
