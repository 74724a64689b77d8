package pki_test

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"chancery/internal/testtool"
	"chancery/pki"
)

func newCA(t *testing.T) *pki.CA {
	t.Helper()
	ca, err := pki.NewCA(pki.CAOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func parse(t *testing.T, certPEM []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(certPEM)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// TestOpenSSLAgrees has OpenSSL judge each kind of certificate for each purpose.
func TestOpenSSLAgrees(t *testing.T) {
	openssl := testtool.Need(t, "openssl")
	ca, dir := newCA(t), t.TempDir()
	caPath, _, err := ca.Write(dir, "ca")
	if err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		req            pki.Request
		client, server bool
	}{
		{pki.Request{Kind: pki.Bridge, Hosts: []string{"bridge.example.org", "192.0.2.1", "2001:db8::1"}}, false, true},
		{pki.Request{Kind: pki.Server, CommonName: "server-1", Hosts: []string{"server.example.org"}}, true, true},
		{pki.Request{Kind: pki.Client, CommonName: "Alice Müller"}, true, false},
	}
	for _, c := range cases {
		certPEM, keyPEM, err := ca.Issue(c.req)
		if err != nil {
			t.Fatal(err)
		}
		cert, key, err := pki.WritePair(dir, string(c.req.Kind), certPEM, keyPEM)
		if err != nil {
			t.Fatal(err)
		}
		for purpose, want := range map[string]bool{"sslclient": c.client, "sslserver": c.server} {
			out, err := exec.Command(openssl, "verify", "-x509_strict", "-purpose", purpose, "-CAfile", caPath, cert).CombinedOutput()
			if (err == nil) != want {
				t.Errorf("%s for %s: want %v, openssl says: %s", c.req.Kind, purpose, want, out)
			}
		}
		for _, host := range c.req.Hosts {
			flag := "-verify_hostname"
			if net.ParseIP(host) != nil {
				flag = "-verify_ip"
			}
			if out, err := exec.Command(openssl, "verify", flag, host, "-CAfile", caPath, cert).CombinedOutput(); err != nil {
				t.Errorf("%s for host %s: %s", c.req.Kind, host, out)
			}
		}
		if out, err := exec.Command(openssl, "pkey", "-in", key, "-check", "-noout").CombinedOutput(); err != nil {
			t.Errorf("%s key: %s", c.req.Kind, out)
		}
	}
}

func TestCertificateFields(t *testing.T) {
	ca, err := pki.NewCA(pki.CAOptions{CommonName: "Example CA", Validity: 48 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	root := ca.Certificate()
	if !root.IsCA || !root.MaxPathLenZero || root.Subject.CommonName != "Example CA" || root.KeyUsage&x509.KeyUsageCertSign == 0 {
		t.Errorf("the CA is %+v", root)
	}
	certPEM, _, err := ca.Issue(pki.Request{Kind: pki.Bridge, Hosts: []string{"bridge.example.org", "192.0.2.1"}})
	if err != nil {
		t.Fatal(err)
	}
	cert := parse(t, certPEM)
	if cert.IsCA || !bytes.Equal(cert.AuthorityKeyId, root.SubjectKeyId) || len(cert.SubjectKeyId) == 0 {
		t.Error("key identifiers or basic constraints are wrong")
	}
	if cert.SerialNumber.Sign() <= 0 || cert.SerialNumber.BitLen() != 128 {
		t.Errorf("serial %x", cert.SerialNumber)
	}
	if cert.NotAfter.After(root.NotAfter) {
		t.Error("the leaf outlasts its CA")
	}
	if cert.Subject.CommonName != "bridge.example.org" || len(cert.DNSNames) != 1 || len(cert.IPAddresses) != 1 {
		t.Errorf("names: %q %q %q", cert.Subject.CommonName, cert.DNSNames, cert.IPAddresses)
	}
}

func TestRefusedRequests(t *testing.T) {
	ca := newCA(t)
	for name, req := range map[string]pki.Request{
		"no kind":             {CommonName: "x"},
		"no name":             {Kind: pki.Client},
		"control character":   {Kind: pki.Client, CommonName: "a\nb"},
		"too long":            {Kind: pki.Client, CommonName: strings.Repeat("a", 65)},
		"client with a host":  {Kind: pki.Client, CommonName: "a", Hosts: []string{"h"}},
		"bridge without host": {Kind: pki.Bridge, CommonName: "b"},
		"wildcard":            {Kind: pki.Server, CommonName: "s", Hosts: []string{"*.example.org"}},
		"empty host":          {Kind: pki.Server, CommonName: "s", Hosts: []string{""}},
		"host with a space":   {Kind: pki.Server, CommonName: "s", Hosts: []string{"a b"}},
		"host with a port":    {Kind: pki.Server, CommonName: "s", Hosts: []string{"a:443"}},
	} {
		if _, _, err := ca.Issue(req); !errors.Is(err, pki.ErrRequest) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := pki.NewCA(pki.CAOptions{CommonName: "a\x00b"}); err == nil {
		t.Error("a CA with NUL in its name was made")
	}
}

func TestLoadCA(t *testing.T) {
	ca, other := newCA(t), newCA(t)
	keyPEM, err := ca.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	again, err := pki.LoadCA(ca.CertificatePEM(), keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	certPEM, leafKey, err := again.Issue(pki.Request{Kind: pki.Client, CommonName: "alice"})
	if err != nil {
		t.Fatal(err)
	}
	if err := parse(t, certPEM).CheckSignatureFrom(ca.Certificate()); err != nil {
		t.Errorf("the loaded CA's leaf: %v", err)
	}
	for name, pair := range map[string][2][]byte{
		"another key":    {other.CertificatePEM(), keyPEM},
		"a leaf":         {certPEM, leafKey},
		"no certificate": {nil, keyPEM},
		"no key":         {ca.CertificatePEM(), nil},
		"swapped":        {keyPEM, ca.CertificatePEM()},
	} {
		if _, err := pki.LoadCA(pair[0], pair[1]); !errors.Is(err, pki.ErrCA) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWritePair(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	cert, key, err := pki.WritePair(dir, "alice", []byte("cert"), []byte("key"))
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(key); err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v, %v", info.Mode(), err)
	}
	if _, _, err := pki.WritePair(dir, "alice", []byte("x"), []byte("x")); !errors.Is(err, pki.ErrExists) {
		t.Errorf("second write: %v", err)
	}
	if content, _ := os.ReadFile(cert); string(content) != "cert" {
		t.Errorf("the certificate was overwritten: %q", content)
	}
	// Where only the certificate is in the way, no lone key may stay behind.
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	if _, _, err := pki.WritePair(dir, "alice", []byte("x"), []byte("x")); !errors.Is(err, pki.ErrExists) {
		t.Errorf("with the certificate in the way: %v", err)
	}
	if _, err := os.Stat(key); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a lone key stayed behind: %v", err)
	}
	for _, name := range []string{"", ".", "..", "a/b", "../a", ".hidden"} {
		if _, _, err := pki.WritePair(dir, name, nil, nil); err == nil {
			t.Errorf("name %q was accepted", name)
		}
	}
}
