package certfile_test

import (
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery/internal/certfile"
	"chancery/pki"
	"chancery/tunnel"
)

// office is an authority that issues to files and signs revocation lists.
type office struct {
	t   *testing.T
	ca  *pki.CA
	dir string
	crl string // where revoke writes
}

func newOffice(t *testing.T) *office {
	t.Helper()
	ca, err := pki.NewCA(pki.CAOptions{})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if _, _, err := ca.Write(dir, "ca"); err != nil {
		t.Fatal(err)
	}
	return &office{t: t, ca: ca, dir: dir, crl: filepath.Join(dir, "ca.crl")}
}

// issue writes a certificate and key and returns their files.
func (o *office) issue(req pki.Request) certfile.Files {
	o.t.Helper()
	certPEM, keyPEM, err := o.ca.Issue(req)
	if err != nil {
		o.t.Fatal(err)
	}
	cert, key, err := pki.WritePair(o.dir, req.CommonName, certPEM, keyPEM)
	if err != nil {
		o.t.Fatal(err)
	}
	return certfile.Files{CA: filepath.Join(o.dir, "ca.crt"), Certificate: cert, Key: key}
}

func (o *office) client(name string) certfile.Files {
	return o.issue(pki.Request{Kind: pki.Client, CommonName: name})
}

func (o *office) bridge() certfile.Files {
	return o.issue(pki.Request{Kind: pki.Bridge, CommonName: "bridge", Hosts: []string{"bridge.test"}})
}

func (o *office) signer() crypto.Signer {
	o.t.Helper()
	keyPEM, err := o.ca.KeyPEM()
	if err != nil {
		o.t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(o.ca.CertificatePEM(), keyPEM)
	if err != nil {
		o.t.Fatal(err)
	}
	return pair.PrivateKey.(crypto.Signer)
}

// list makes a revocation list, DER.
func (o *office) list(change func(*x509.RevocationList), revoked ...*x509.Certificate) []byte {
	o.t.Helper()
	template := &x509.RevocationList{
		Number: big.NewInt(time.Now().UnixNano()), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour),
	}
	for _, cert := range revoked {
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: cert.SerialNumber, RevocationTime: time.Now().Add(-time.Minute)})
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, o.ca.Certificate(), o.signer())
	if err != nil {
		o.t.Fatal(err)
	}
	return der
}

// write replaces a file in one step and returns its path.
func write(t *testing.T, path string, content []byte) string {
	t.Helper()
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	return path
}

func toPEM(lists ...[]byte) (out []byte) {
	for _, der := range lists {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})...)
	}
	return out
}

func load(t *testing.T, files certfile.Files) *certfile.Identity {
	t.Helper()
	identity, _, err := certfile.Load(files)
	if err != nil {
		t.Fatal(err)
	}
	return identity
}

// shake runs a handshake and returns what each side says of it. In TLS 1.3 the
// client hears of a refusal when it first reads.
func shake(t *testing.T, acceptor, dialer *tls.Config) (accepted, dialed error) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	result := make(chan error, 1)
	go func() {
		raw, err := listener.Accept()
		if err != nil {
			result <- err
			return
		}
		conn := tls.Server(raw, acceptor)
		if err = conn.Handshake(); err == nil {
			_, err = conn.Write([]byte("x"))
		}
		result <- err
		conn.Close()
	}()
	conn, err := tls.Dial("tcp", listener.Addr().String(), dialer)
	if err == nil {
		_, err = conn.Read(make([]byte, 1))
		conn.Close()
	}
	return <-result, err
}

func TestRevoked(t *testing.T) {
	o := newOffice(t)
	aliceFiles, malloryFiles, bridgeFiles := o.client("alice"), o.client("mallory"), o.bridge()
	alice, mallory := load(t, aliceFiles), load(t, malloryFiles)
	der := o.list(nil, mallory.Leaf())
	empty := o.list(nil)
	for name, content := range map[string][]byte{
		"DER": der, "PEM": toPEM(der), "two in one file": toPEM(empty, der), "PEM with text": append([]byte("Certificate Revocation List:\n"), toPEM(der)...),
	} {
		t.Run(name, func(t *testing.T) {
			files := bridgeFiles
			files.CRLs = []string{write(t, o.crl, content)}
			acceptor := load(t, files).BridgeServer()
			if accepted, dialed := shake(t, acceptor, alice.OuterDialer("bridge.test")); accepted != nil || dialed != nil {
				t.Fatalf("alice is refused: %v, %v", accepted, dialed)
			}
			accepted, dialed := shake(t, acceptor, mallory.OuterDialer("bridge.test"))
			if !errors.Is(accepted, tunnel.ErrRevoked) || !strings.Contains(accepted.Error(), `revoked: "mallory", serial number`) {
				t.Errorf("the bridge says %v", accepted)
			}
			if dialed == nil || !strings.Contains(dialed.Error(), "bad certificate") {
				t.Errorf("mallory is told %v", dialed)
			}
		})
	}
}

func TestRevokedAcceptor(t *testing.T) {
	o := newOffice(t)
	files, bridge := o.client("alice"), load(t, o.bridge())
	files.CRLs = []string{write(t, o.crl, o.list(nil, bridge.Leaf()))}
	alice := load(t, files)
	for name, dialer := range map[string]*tls.Config{"outer": alice.OuterDialer("bridge.test"), "inner": alice.InnerDialer("bridge.test")} {
		acceptor := bridge.BridgeServer()
		if name == "inner" {
			acceptor = bridge.InnerAcceptor()
		}
		if _, dialed := shake(t, acceptor, dialer); !errors.Is(dialed, tunnel.ErrRevoked) {
			t.Errorf("the %s dialer says %v", name, dialed)
		}
	}
}

// TestOpenSSLList has openssl revoke and make the lists.
func TestOpenSSLList(t *testing.T) {
	o := newOffice(t)
	mallory, bridge := o.client("mallory"), o.bridge()
	config := write(t, filepath.Join(o.dir, "ca.cnf"), fmt.Appendf(nil, `[ca]
default_ca = it
[it]
database = %[1]s/index.txt
crlnumber = %[1]s/crlnumber
certificate = %[1]s/ca.crt
private_key = %[1]s/ca.key
default_md = sha256
default_crl_days = 7
`, o.dir))
	write(t, filepath.Join(o.dir, "index.txt"), nil)
	write(t, filepath.Join(o.dir, "crlnumber"), []byte("01\n"))
	openssl(t, "ca", "-config", config, "-revoke", mallory.Certificate, "-crl_reason", "keyCompromise")
	openssl(t, "ca", "-config", config, "-gencrl", "-out", o.crl)
	der := filepath.Join(o.dir, "der.crl")
	openssl(t, "crl", "-in", o.crl, "-outform", "DER", "-out", der)
	for _, path := range []string{o.crl, der} {
		files := bridge
		files.CRLs = []string{path}
		if accepted, _ := shake(t, load(t, files).BridgeServer(), load(t, mallory).OuterDialer("bridge.test")); !errors.Is(accepted, tunnel.ErrRevoked) {
			t.Errorf("with %s: %v", filepath.Base(path), accepted)
		}
	}
}

// TestSameName holds that a list counts for its issuer's key, not for its name:
// a new CA commonly has the old one's.
func TestSameName(t *testing.T) {
	old, renewed := newOffice(t), newOffice(t)
	both := append(old.ca.CertificatePEM(), renewed.ca.CertificatePEM()...)
	files := renewed.bridge()
	files.CA = write(t, filepath.Join(renewed.dir, "both.crt"), both)
	alice := load(t, renewed.client("alice"))
	files.CRLs = []string{write(t, old.crl, old.list(nil, alice.Leaf())), write(t, renewed.crl, renewed.list(nil))}
	if accepted, dialed := shake(t, load(t, files).BridgeServer(), alice.OuterDialer("bridge.test")); accepted != nil || dialed != nil {
		t.Errorf("a list of another CA with the same name counts: %v, %v", accepted, dialed)
	}
}

func TestUnusableLists(t *testing.T) {
	o, stranger := newOffice(t), newOffice(t)
	other, err := pki.NewCA(pki.CAOptions{CommonName: "Another CA"})
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := &office{t: t, ca: other}
	der := o.list(nil)
	flipped := append([]byte(nil), der...)
	flipped[len(flipped)-1] ^= 1
	alice := o.client("alice")
	critical := func(extension asn1.ObjectIdentifier) func(*x509.RevocationList) {
		return func(l *x509.RevocationList) {
			l.ExtraExtensions = []pkix.Extension{{Id: extension, Critical: true, Value: []byte{2, 1, 1}}}
		}
	}
	for name, c := range map[string]struct {
		content []byte
		text    string
	}{
		"another key of that name": {stranger.list(nil), "is not signed by its key"},
		"a changed signature":      {flipped, "is not signed by its key"},
		"of an unknown CA":         {elsewhere.list(nil), `is from "CN=Another CA", which is not among the trusted CAs`},
		"a delta list":             {o.list(critical(asn1.ObjectIdentifier{2, 5, 29, 27})), "critical extension 2.5.29.27"},
		"cut off":                  {der[:len(der)/2], "the certificate revocation list"},
		"cut off PEM":              {toPEM(der)[:200], "ends within a PEM block"},
		"a second one cut off":     {append(toPEM(der), toPEM(der)[:200]...), "ends within a PEM block"},
		"a certificate":            {o.ca.CertificatePEM(), "holds no certificate revocation list"},
		"nothing":                  {nil, "the certificate revocation list"},
		"data behind it":           {append(append([]byte(nil), der...), 0), "the certificate revocation list"},
	} {
		t.Run(name, func(t *testing.T) {
			files := alice
			files.CRLs = []string{write(t, o.crl, c.content)}
			wantError(t, files, c.text)
		})
	}
	files := alice
	files.CRLs = []string{filepath.Join(o.dir, "absent.crl")}
	wantError(t, files, "no such file")
	files.CRLs, files.Expired = nil, "ignore"
	wantError(t, files, `crl_expired is "ignore"`)
}

func TestExpiredList(t *testing.T) {
	o := newOffice(t)
	alice, mallory, files := load(t, o.client("alice")), load(t, o.client("mallory")), o.bridge()
	yesterday := func(l *x509.RevocationList) {
		l.ThisUpdate, l.NextUpdate = time.Now().Add(-48*time.Hour), time.Now().Add(-24*time.Hour)
	}
	files.CRLs = []string{write(t, o.crl, o.list(yesterday, mallory.Leaf()))}
	for policy, honest := range map[certfile.ExpiredPolicy]string{"": "", certfile.WarnExpired: "", certfile.RefuseExpired: "is out of date since"} {
		files.Expired = policy
		identity, warnings, err := certfile.Load(files)
		if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], "is out of date since") {
			t.Fatalf("%q: %v, warnings %q", policy, err, warnings)
		}
		if accepted, _ := shake(t, identity.BridgeServer(), mallory.OuterDialer("bridge.test")); !errors.Is(accepted, tunnel.ErrRevoked) {
			t.Errorf("%q lets a revoked certificate in: %v", policy, accepted)
		}
		accepted, _ := shake(t, identity.BridgeServer(), alice.OuterDialer("bridge.test"))
		if honest == "" && accepted != nil || honest != "" && (accepted == nil || !strings.Contains(accepted.Error(), honest)) {
			t.Errorf("%q tells an honest peer %v; want %q", policy, accepted, honest)
		}
	}
	// A newer list beside it makes the CA's lists good again.
	files.CRLs = append(files.CRLs, write(t, o.crl+"2", o.list(nil)))
	identity, warnings, err := certfile.Load(files)
	if err != nil || len(warnings) != 0 {
		t.Fatalf("%v, warnings %q", err, warnings)
	}
	if accepted, _ := shake(t, identity.BridgeServer(), alice.OuterDialer("bridge.test")); accepted != nil {
		t.Error(accepted)
	}
}

func TestExpiry(t *testing.T) {
	o := newOffice(t)
	files := o.issue(pki.Request{Kind: pki.Client, CommonName: "alice", Validity: 10*24*time.Hour + time.Hour})
	expiry := load(t, files).Expiry()
	if days := expiry.Days(time.Now()); days != 10 || !expiry.CRL.IsZero() || !expiry.CA.Equal(o.ca.Certificate().NotAfter) {
		t.Errorf("%d days, %+v", days, expiry)
	}
	if days := expiry.Days(expiry.Certificate.Add(time.Minute)); days != -1 {
		t.Errorf("%d days after the end", days)
	}
	identity := load(t, files)
	files.CRLs = []string{write(t, o.crl, o.list(nil, identity.Leaf()))}
	identity, warnings, err := certfile.Load(files)
	if err != nil || len(warnings) != 2 || !strings.Contains(warnings[1], "will be refused by peers") {
		t.Errorf("%v, warnings %q", err, warnings)
	}
	if left := time.Until(identity.Expiry().CRL); left <= 0 || left > time.Hour {
		t.Errorf("the list is good for %s", left)
	}
}
