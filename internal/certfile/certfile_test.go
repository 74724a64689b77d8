package certfile_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery/internal/certfile"
	"chancery/internal/testtool"
	"chancery/pki"
	"chancery/tunnel"
)

// pair is an authority and a client's certificate from it, in files.
func pair(t *testing.T, validity time.Duration) certfile.Files {
	t.Helper()
	ca, err := pki.NewCA(pki.CAOptions{})
	if err != nil {
		t.Fatal(err)
	}
	certPEM, keyPEM, err := ca.Issue(pki.Request{Kind: pki.Client, CommonName: "alice", Validity: validity})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	caPath, _, err := ca.Write(dir, "ca")
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := pki.WritePair(dir, "alice", certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	return certfile.Files{CA: caPath, Certificate: cert, Key: key}
}

func openssl(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(testtool.Need(t, "openssl"), args...).CombinedOutput(); err != nil {
		t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func TestLoad(t *testing.T) {
	files := pair(t, 0)
	identity, warnings, err := certfile.Load(files)
	if err != nil || len(warnings) != 0 {
		t.Fatalf("%v, warnings %q", err, warnings)
	}
	if name, err := tunnel.CertificateName(identity.Leaf()); name != "alice" || err != nil {
		t.Errorf("the leaf is %q, %v", name, err)
	}
	for name, config := range map[string]*tls.Config{
		"bridge": identity.BridgeServer(), "inner acceptor": identity.InnerAcceptor(),
		"outer dialer": identity.OuterDialer("b"), "inner dialer": identity.InnerDialer("s"),
	} {
		if config.MinVersion != tls.VersionTLS13 || config.MaxVersion != tls.VersionTLS13 ||
			config.ClientSessionCache != nil || config.CurvePreferences != nil {
			t.Errorf("%s: %+v", name, config)
		}
		acceptor := config.ServerName == ""
		if acceptor && (config.ClientAuth != tls.RequireAndVerifyClientCert || config.ClientCAs == nil || !config.SessionTicketsDisabled) {
			t.Errorf("%s accepts too much", name)
		}
		if !acceptor && (config.RootCAs == nil || config.GetClientCertificate == nil) {
			t.Errorf("%s trusts too much or sends no certificate", name)
		}
		if inner := strings.HasPrefix(name, "inner"); inner != (len(config.NextProtos) == 1) {
			t.Errorf("%s offers %q", name, config.NextProtos)
		}
	}
}

// TestKeyForms loads what openssl makes of one key.
func TestKeyForms(t *testing.T) {
	files := pair(t, 0)
	secret := func() ([]byte, error) { return []byte("open sesame"), nil }
	dir := t.TempDir()
	forms := map[string][]string{
		"SEC 1":                {"ec", "-in", files.Key},
		"PBES2, PBKDF2 SHA256": {"pkcs8", "-topk8", "-v2", "aes-256-cbc", "-v2prf", "hmacWithSHA256", "-passout", "pass:open sesame", "-in", files.Key},
		"PBES2, scrypt":        {"pkcs8", "-topk8", "-scrypt", "-passout", "pass:open sesame", "-in", files.Key},
		"openssl's default":    {"pkcs8", "-topk8", "-passout", "pass:open sesame", "-in", files.Key},
	}
	for name, args := range forms {
		t.Run(name, func(t *testing.T) {
			converted := files
			converted.Key = filepath.Join(dir, strings.Map(letters, name)+".key")
			openssl(t, append(args, "-out", converted.Key)...)
			if err := os.Chmod(converted.Key, 0o600); err != nil {
				t.Fatal(err)
			}
			converted.Passphrase = secret
			if _, _, err := certfile.Load(converted); err != nil {
				t.Fatal(err)
			}
			if args[0] == "ec" {
				return
			}
			converted.Passphrase = nil
			wantError(t, converted, "protected by a passphrase")
			converted.Passphrase = func() ([]byte, error) { return []byte("wrong"), nil }
			wantError(t, converted, "does not open")
			converted.Passphrase = func() ([]byte, error) { return nil, nil }
			wantError(t, converted, "is empty")
			converted.Passphrase = func() ([]byte, error) { return nil, errors.New("the terminal is gone") }
			wantError(t, converted, "the terminal is gone")
		})
	}
}

func letters(r rune) rune {
	if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
		return r
	}
	return -1
}

func TestRSAKey(t *testing.T) {
	files := pair(t, 0)
	dir := t.TempDir()
	files.Key, files.Certificate = filepath.Join(dir, "rsa.key"), filepath.Join(dir, "rsa.crt")
	openssl(t, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=alice", "-days", "90",
		"-keyout", files.Key, "-out", files.Certificate)
	old := filepath.Join(dir, "pkcs1.key")
	openssl(t, "rsa", "-traditional", "-in", files.Key, "-out", old)
	for _, key := range []string{files.Key, old} {
		if err := os.Chmod(key, 0o600); err != nil {
			t.Fatal(err)
		}
		files.Key = key
		_, warnings, err := certfile.Load(files)
		if err != nil {
			t.Errorf("%s: %v", key, err)
		}
		if len(warnings) != 1 || !strings.Contains(warnings[0], "not issued by the CA") {
			t.Errorf("warnings %q", warnings)
		}
	}
}

func TestUnusable(t *testing.T) {
	files, other := pair(t, 0), pair(t, 0)
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, []byte("nothing here"), 0o600); err != nil {
		t.Fatal(err)
	}
	damaged := filepath.Join(t.TempDir(), "damaged")
	if err := os.WriteFile(damaged, []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	huge := filepath.Join(t.TempDir(), "huge")
	if err := os.WriteFile(huge, bytes.Repeat([]byte("x"), 1<<20+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		files certfile.Files
		text  string
	}{
		"another's key":    {certfile.Files{CA: files.CA, Certificate: files.Certificate, Key: other.Key}, "does not belong"},
		"no file":          {certfile.Files{CA: files.CA, Certificate: files.Certificate}, "no file is configured"},
		"missing file":     {certfile.Files{CA: files.CA + "x", Certificate: files.Certificate, Key: files.Key}, "no such file"},
		"empty CA":         {certfile.Files{CA: empty, Certificate: files.Certificate, Key: files.Key}, "holds no certificate"},
		"empty key":        {certfile.Files{CA: files.CA, Certificate: files.Certificate, Key: empty}, "holds no private key"},
		"damaged key":      {certfile.Files{CA: files.CA, Certificate: files.Certificate, Key: damaged}, "cannot be read"},
		"key as a CA":      {certfile.Files{CA: files.Key, Certificate: files.Certificate, Key: files.Key}, "holds no certificate"},
		"not a PEM at all": {certfile.Files{CA: huge, Certificate: files.Certificate, Key: files.Key}, "larger than 1 MiB"},
	} {
		t.Run(name, func(t *testing.T) { wantError(t, c.files, c.text) })
	}
}

func TestKeyFileMode(t *testing.T) {
	files := pair(t, 0)
	for _, mode := range []os.FileMode{0o640, 0o604, 0o644, 0o620} {
		if err := os.Chmod(files.Key, mode); err != nil {
			t.Fatal(err)
		}
		wantError(t, files, "chmod 600")
	}
	if err := os.Chmod(files.Key, 0o440); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CREDENTIALS_DIRECTORY", t.TempDir())
	wantError(t, files, "chmod 600")
	t.Setenv("CREDENTIALS_DIRECTORY", filepath.Dir(files.Key))
	if _, _, err := certfile.Load(files); err != nil {
		t.Errorf("a systemd credential: %v", err)
	}
}

func TestExpiryWarnings(t *testing.T) {
	for validity, text := range map[time.Duration]string{time.Nanosecond: "expired on", 24 * time.Hour: "expires on"} {
		_, warnings, err := certfile.Load(pair(t, validity))
		if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], text) {
			t.Errorf("valid for %s: %v, warnings %q; want %q", validity, err, warnings, text)
		}
	}
}

// TestCertificateOlderThanItsCA: a CA that was renewed with its key has issued what is older than itself.
func TestCertificateOlderThanItsCA(t *testing.T) {
	for name, test := range map[string]struct {
		end  time.Duration // of the certificate, from now
		want string        // "" for no warning
	}{
		"expired before the CA began": {-48 * time.Hour, "expired on"},
		"still valid":                 {90 * 24 * time.Hour, ""},
	} {
		t.Run(name, func(t *testing.T) {
			identity, warnings, err := certfile.Load(olderThanCA(t, time.Now().Add(test.end)))
			if err != nil {
				t.Fatal(err)
			}
			if test.want == "" {
				if err := identity.Check(); len(warnings) != 0 || err != nil {
					t.Errorf("warnings %q, %v", warnings, err)
				}
				return
			}
			if len(warnings) != 1 || !strings.Contains(warnings[0], test.want) {
				t.Errorf("warnings %q; want only %q", warnings, test.want)
			}
			if err := identity.Check(); !errors.Is(err, certfile.ErrUnusable) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("check: %v; want %q", err, test.want)
			}
		})
	}
}

// olderThanCA is a certificate that began 90 days ago, and its CA, which began an hour ago.
func olderThanCA(t *testing.T, end time.Time) certfile.Files {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(365 * 24 * time.Hour),
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "alice"}, NotBefore: time.Now().Add(-90 * 24 * time.Hour), NotAfter: end}
	dir := t.TempDir()
	files := certfile.Files{CA: filepath.Join(dir, "ca.crt"), Certificate: filepath.Join(dir, "alice.crt"), Key: filepath.Join(dir, "alice.key")}
	for path, template := range map[string]*x509.Certificate{files.CA: ca, files.Certificate: leaf} {
		der, err := x509.CreateCertificate(rand.Reader, template, ca, &key.PublicKey, key)
		if err != nil {
			t.Fatal(err)
		}
		writePEM(t, path, "CERTIFICATE", der)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, files.Key, "PRIVATE KEY", der)
	return files
}

func writePEM(t *testing.T, path, label string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: label, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestCertificateForAnotherUse(t *testing.T) {
	files := pair(t, 0) // a client's
	files.Uses = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	identity, warnings, err := certfile.Load(files)
	if err != nil || len(warnings) != 0 || identity.Check() != nil {
		t.Errorf("its own use: %v, warnings %q", err, warnings)
	}
	files.Uses = append(files.Uses, x509.ExtKeyUsageServerAuth)
	identity, warnings, err = certfile.Load(files)
	if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], "is not for TLS servers") {
		t.Fatalf("%v, warnings %q", err, warnings)
	}
	if err := identity.Check(); !errors.Is(err, certfile.ErrUnusable) || !strings.Contains(err.Error(), "is not for TLS servers") {
		t.Errorf("check: %v", err)
	}
}

func wantError(t *testing.T, files certfile.Files, text string) {
	t.Helper()
	_, _, err := certfile.Load(files)
	if !errors.Is(err, certfile.ErrUnusable) || !strings.Contains(err.Error(), text) {
		t.Errorf("got %v; want %q", err, text)
	}
}
