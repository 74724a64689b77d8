package tunnel_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery/internal/testtool"
	"chancery/pki"
	"chancery/tunnel"
	"chancery/tunnel/bridge"
	"chancery/tunnel/tunneltest"
)

// present makes a dialer send the given certificate.
func present(c *tls.Config, cert tls.Certificate) {
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
}

// Ways to spoil a certificate.
func good(*x509.Certificate)         {}
func expired(c *x509.Certificate)    { c.NotAfter = time.Now().Add(-time.Minute) }
func early(c *x509.Certificate)      { c.NotBefore = time.Now().Add(time.Minute) }
func nameless(c *x509.Certificate)   { c.Subject = pkix.Name{Organization: []string{"Example"}} }
func onlyServer(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }
func onlyClient(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }

func names(values ...string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.Subject = pkix.Name{}
		for _, value := range values {
			c.Subject.ExtraNames = append(c.Subject.ExtraNames,
				pkix.AttributeTypeAndValue{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: value})
		}
	}
}

// TestClientRejected is the client's half of the matrix: each row spoils one
// thing of a good client and says what the user must be told.
func TestClientRejected(t *testing.T) {
	w := newWorld(t, 2, nil)
	stranger := tunneltest.NewAuthority(t)
	cases := map[string]struct {
		spoil  func(*tunnel.Config)
		kind   tunnel.Kind
		status tunnel.Status
		text   string
	}{
		"outer certificate of another CA": {
			spoil: func(c *tunnel.Config) { present(c.Outer, stranger.Forge("alice", good)) },
			kind:  tunnel.KindBridgeRefused, text: "unknown certificate authority"},
		"outer certificate expired": {
			spoil: func(c *tunnel.Config) { present(c.Outer, w.Forge("alice", expired)) },
			kind:  tunnel.KindBridgeRefused, text: "expired certificate"},
		"outer certificate not yet valid": {
			spoil: func(c *tunnel.Config) { present(c.Outer, w.Forge("alice", early)) },
			kind:  tunnel.KindBridgeRefused, text: "expired certificate"},
		"outer certificate for a TLS server": {
			spoil: func(c *tunnel.Config) { present(c.Outer, w.Forge("alice", onlyServer)) },
			kind:  tunnel.KindBridgeRefused, text: "bad certificate"},
		"outer certificate missing": {
			spoil: func(c *tunnel.Config) { present(c.Outer, tls.Certificate{}) },
			kind:  tunnel.KindBridgeRefused, text: "certificate required"},
		"outer certificate without a name": {
			spoil: func(c *tunnel.Config) { present(c.Outer, w.Forge("", nameless)) },
			kind:  tunnel.KindRejected, status: tunnel.StatusNoName},
		"outer certificate whose name holds NUL": {
			spoil: func(c *tunnel.Config) { present(c.Outer, w.Forge("", names("root\x00alice"))) },
			kind:  tunnel.KindRejected, status: tunnel.StatusNoName},
		"inner certificate of another CA": {
			spoil: func(c *tunnel.Config) { present(c.Inner, stranger.Forge("alice", good)) },
			kind:  tunnel.KindServerRefused, text: "unknown certificate authority"},
		"inner certificate expired": {
			spoil: func(c *tunnel.Config) { present(c.Inner, w.Forge("alice", expired)) },
			kind:  tunnel.KindServerRefused, text: "expired certificate"},
		"inner certificate for a TLS server": {
			spoil: func(c *tunnel.Config) { present(c.Inner, w.Forge("alice", onlyServer)) },
			kind:  tunnel.KindServerRefused, text: "bad certificate"},
		"inner certificate missing": {
			spoil: func(c *tunnel.Config) { present(c.Inner, tls.Certificate{}) },
			kind:  tunnel.KindServerRefused, text: "certificate required"},
		"inner certificate without a name": {
			spoil: func(c *tunnel.Config) { present(c.Inner, w.Forge("", nameless)) },
			kind:  tunnel.KindServerRefused, text: "bad certificate"},
		"bridge of another CA":    {spoil: func(c *tunnel.Config) { c.Outer.RootCAs = stranger.Pool() }, kind: tunnel.KindBridgeUntrusted},
		"bridge of another name":  {spoil: func(c *tunnel.Config) { c.Outer.ServerName = "other.test" }, kind: tunnel.KindBridgeName},
		"server of another CA":    {spoil: func(c *tunnel.Config) { c.Inner.RootCAs = stranger.Pool() }, kind: tunnel.KindServerUntrusted},
		"server of another name":  {spoil: func(c *tunnel.Config) { c.Inner.ServerName = "other.test" }, kind: tunnel.KindServerName},
		"client on servers' port": {spoil: func(c *tunnel.Config) { c.Bridge = w.bridge.ServerAddr }, kind: tunnel.KindRejected, status: tunnel.StatusRole},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := w.Client(w.bridge, "alice")
			c.spoil(cfg)
			err := firstError(t, cfg)
			wantKind(t, err, c.kind)
			var e *tunnel.Error
			errors.As(err, &e)
			if e.Status != c.status || !strings.Contains(err.Error(), c.text) || e.Hint() == "" {
				t.Errorf("status %v, text %q, hint %q; want status %v and %q", e.Status, err, e.Hint(), c.status, c.text)
			}
		})
	}
	t.Cleanup(func() {
		if err := checkEcho(dial(t, w.Client(w.bridge, "alice")), 1000); err != nil {
			t.Errorf("an honest client afterwards: %v", err)
		}
	})
}

// firstError connects and reads: in TLS 1.3 a client learns from its first
// read that the server refused it.
func firstError(t *testing.T, cfg *tunnel.Config) error {
	t.Helper()
	conn, err := tunnel.Dial(context.Background(), cfg)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, err = conn.Read(make([]byte, 1))
	return err
}

// TestServerRejected is the server's half of the matrix.
func TestServerRejected(t *testing.T) {
	authority, stranger := tunneltest.NewAuthority(t), tunneltest.NewAuthority(t)
	b := authority.StartBridge([]string{"server-1"}, nil)
	cases := map[string]struct {
		spoil  func(*tunnel.Config)
		kind   tunnel.Kind
		status tunnel.Status
	}{
		"certificate of another CA": {spoil: func(c *tunnel.Config) { present(c.Outer, stranger.Forge("server-1", good)) }, kind: tunnel.KindBridgeRefused},
		"certificate expired":       {spoil: func(c *tunnel.Config) { present(c.Outer, authority.Forge("server-1", expired)) }, kind: tunnel.KindBridgeRefused},
		"certificate for a bridge":  {spoil: func(c *tunnel.Config) { present(c.Outer, authority.Forge("server-1", onlyServer)) }, kind: tunnel.KindBridgeRefused},
		"certificate without name":  {spoil: func(c *tunnel.Config) { present(c.Outer, authority.Forge("", nameless)) }, kind: tunnel.KindRejected, status: tunnel.StatusNoName},
		"name not allowed":          {spoil: func(c *tunnel.Config) { present(c.Outer, authority.Forge("server-2", good)) }, kind: tunnel.KindRejected, status: tunnel.StatusNotAllowed},
		"allowed name only second":  {spoil: func(c *tunnel.Config) { present(c.Outer, authority.Forge("", names("x", "server-1"))) }, kind: tunnel.KindRejected, status: tunnel.StatusNotAllowed},
		"a user's certificate": {spoil: func(c *tunnel.Config) {
			c.Outer = authority.Identity(pki.Request{Kind: pki.Client, CommonName: "alice"}).OuterDialer(tunneltest.BridgeHost)
		}, kind: tunnel.KindRejected, status: tunnel.StatusNotAllowed},
		"bridge of another CA":    {spoil: func(c *tunnel.Config) { c.Outer.RootCAs = stranger.Pool() }, kind: tunnel.KindBridgeUntrusted},
		"bridge of another name":  {spoil: func(c *tunnel.Config) { c.Outer.ServerName = "other.test" }, kind: tunnel.KindBridgeName},
		"server on clients' port": {spoil: func(c *tunnel.Config) { c.Bridge = b.ClientAddr }, kind: tunnel.KindRejected, status: tunnel.StatusRole},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := authority.Server(b, "server-1")
			c.spoil(cfg)
			l := listen(t, cfg, 1)
			tunneltest.Eventually(t, "the leg fails", func() bool { return l.Stats().LastError != nil })
			err := l.Stats().LastError
			wantKind(t, err, c.kind)
			var e *tunnel.Error
			if errors.As(err, &e); e.Status != c.status {
				t.Errorf("status %v, want %v", e.Status, c.status)
			}
		})
	}
}

// TestServerCertificate spoils what the client sees of a server that the
// bridge has let in.
func TestServerCertificate(t *testing.T) {
	authority, stranger := tunneltest.NewAuthority(t), tunneltest.NewAuthority(t)
	cases := map[string]struct {
		spoil func(*tls.Config)
		kind  tunnel.Kind
	}{
		"of another CA":     {func(c *tls.Config) { c.Certificates = []tls.Certificate{stranger.Forge("server-1", good)} }, tunnel.KindServerUntrusted},
		"expired":           {func(c *tls.Config) { c.Certificates = []tls.Certificate{authority.Forge("server-1", expired)} }, tunnel.KindServerExpired},
		"for a TLS client":  {func(c *tls.Config) { c.Certificates = []tls.Certificate{authority.Forge("server-1", onlyClient)} }, tunnel.KindServerUntrusted},
		"trusts another CA": {func(c *tls.Config) { c.ClientCAs = stranger.Pool() }, tunnel.KindServerRefused},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := authority.StartBridge([]string{"server-1"}, nil)
			cfg := authority.Server(b, "server-1")
			c.spoil(cfg.Inner)
			log := tunneltest.Logger(t)
			cfg.Log = log
			l := listen(t, cfg, 1)
			wantKind(t, firstError(t, authority.Client(b, "alice")), c.kind)
			tunneltest.Eventually(t, "the listener counts and logs it", func() bool {
				return l.Stats().Refused == 1 && log.Contains("handshake with a client failed")
			})
		})
	}
}

// TestBridgeCertificate spoils the bridge's own.
func TestBridgeCertificate(t *testing.T) {
	authority := tunneltest.NewAuthority(t)
	for name, c := range map[string]struct {
		change func(*x509.Certificate)
		kind   tunnel.Kind
	}{
		"expired":          {expired, tunnel.KindBridgeExpired},
		"for a TLS client": {onlyClient, tunnel.KindBridgeUntrusted},
		"name only in CN":  {func(c *x509.Certificate) { c.DNSNames, c.Subject.CommonName = nil, tunneltest.BridgeHost }, tunnel.KindBridgeName},
	} {
		t.Run(name, func(t *testing.T) {
			b := authority.StartBridge([]string{"server-1"}, func(cfg *bridge.Config) {
				cfg.TLS.Certificates = []tls.Certificate{authority.Forge("bridge", c.change)}
			})
			_, err := tunnel.Dial(t.Context(), authority.Client(b, "alice"))
			wantKind(t, err, c.kind)
		})
	}
}

// TestFirstNameCounts holds that of two common names the first is the user's,
// where Go's own CommonName would be the second.
func TestFirstNameCounts(t *testing.T) {
	authority := tunneltest.NewAuthority(t)
	b := authority.StartBridge([]string{"server-1"}, nil)
	l := listen(t, authority.Server(b, "server-1"), 1)
	cfg := authority.Client(b, "alice")
	present(cfg.Inner, authority.Forge("", names("alice", "root")))
	dial(t, cfg)
	conn, err := l.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if conn.PeerName() != "alice" || conn.PeerCertificate().Subject.CommonName != "root" {
		t.Errorf("the peer is %q", conn.PeerName())
	}
}

// TestNoUsageAtAllPasses follows the protocol's reference: a certificate
// without extended key usages is good for both.
func TestNoUsageAtAllPasses(t *testing.T) {
	w := newWorld(t, 1, nil)
	cfg := w.Client(w.bridge, "alice")
	unlimited := w.Forge("alice", func(c *x509.Certificate) { c.ExtKeyUsage = nil })
	present(cfg.Outer, unlimited)
	present(cfg.Inner, unlimited)
	if err := checkEcho(dial(t, cfg), 100); err != nil {
		t.Error(err)
	}
}

// TestNotABridge dials things that are none.
func TestNotABridge(t *testing.T) {
	authority := tunneltest.NewAuthority(t)
	cfg := authority.Client(authority.StartBridge([]string{"server-1"}, nil), "alice")
	old := authority.Identity(pki.Request{Kind: pki.Bridge, Hosts: []string{tunneltest.BridgeHost}}).BridgeServer()
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	for name, c := range map[string]struct {
		serve func(net.Conn)
		kind  tunnel.Kind
	}{
		"a web server": {func(c net.Conn) { io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n") }, tunnel.KindBridgeProtocol},
		"TLS 1.2":      {func(c net.Conn) { _ = tls.Server(c, old).Handshake() }, tunnel.KindBridgeProtocol},
		"hangs up":     {func(c net.Conn) { _, _ = c.Read(make([]byte, 4096)) }, tunnel.KindBridgeUnreachable},
		"silent":       {func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }, tunnel.KindBridgeUnreachable},
	} {
		t.Run(name, func(t *testing.T) {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			go func() {
				if conn, err := listener.Accept(); err == nil {
					c.serve(conn)
					conn.Close()
				}
			}()
			mine := *cfg
			mine.Bridge, mine.Handshake = listener.Addr().String(), time.Second
			_, err = tunnel.Dial(t.Context(), &mine)
			wantKind(t, err, c.kind)
		})
	}
}

// TestOpenSSLRefused has OpenSSL speak TLS 1.2 to the bridge, and TLS 1.3 with a
// certificate of another CA, whose alert must arrive.
func TestOpenSSLRefused(t *testing.T) {
	openssl := testtool.Need(t, "openssl")
	authority, stranger := tunneltest.NewAuthority(t), tunneltest.NewAuthority(t)
	b := authority.StartBridge([]string{"server-1"}, nil)
	certPEM, keyPEM, err := stranger.Issue(pki.Request{Kind: pki.Client, CommonName: "mallory"})
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := pki.WritePair(filepath.Join(t.TempDir(), "new"), "mallory", certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	for flag, want := range map[string]string{"-tls1_2": "alert protocol version", "-tls1_3": "alert unknown ca"} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		cmd := exec.CommandContext(ctx, openssl, "s_client", "-connect", b.ClientAddr, flag, "-cert", cert, "-key", key, "-ign_eof")
		cmd.Stdin = strings.NewReader("hello")
		out, _ := cmd.CombinedOutput() // its status says only that the session failed
		if !strings.Contains(string(out), want) {
			t.Errorf("openssl s_client %s was not told %q:\n%s", flag, want, out)
		}
	}
}
