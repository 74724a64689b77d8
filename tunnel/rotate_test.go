package tunnel_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/internal/certfile"
	"chancery/pki"
	"chancery/tunnel"
	"chancery/tunnel/bridge"
	"chancery/tunnel/tunneltest"
)

// folder holds the files of one program, watched.
type folder struct {
	tb        testing.TB
	authority *tunneltest.Authority
	request   pki.Request
	files     certfile.Files
	live      *certfile.Live
}

// newFolder writes a first set of files; changed, which may be nil, is called
// when another one has come into use.
func newFolder(tb testing.TB, authority *tunneltest.Authority, request pki.Request, changed func()) *folder {
	tb.Helper()
	dir := tb.TempDir()
	f := &folder{tb: tb, authority: authority, request: request, files: certfile.Files{
		CA: filepath.Join(dir, "ca.crt"), Certificate: filepath.Join(dir, "own.crt"), Key: filepath.Join(dir, "own.key"),
		CRLs: []string{filepath.Join(dir, "ca.crl")},
	}}
	f.put(f.files.CA, authority.CertificatePEM())
	f.revoke()
	f.renew()
	var err error
	if f.live, err = certfile.Open(f.files, tunneltest.Logger(tb)); err != nil {
		tb.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.live.Watch(ctx, 5*time.Millisecond, changed)
	}()
	tb.Cleanup(func() { stop(); <-done })
	return f
}

// put replaces a file in one step.
func (f *folder) put(path string, content []byte) {
	f.tb.Helper()
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		f.tb.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		f.tb.Fatal(err)
	}
}

// renew replaces certificate and key, one after the other.
func (f *folder) renew() {
	f.tb.Helper()
	certPEM, keyPEM, err := f.authority.Issue(f.request)
	if err != nil {
		f.tb.Fatal(err)
	}
	f.put(f.files.Key, keyPEM)
	f.put(f.files.Certificate, certPEM)
}

// revoke replaces the list by one of these certificates.
func (f *folder) revoke(certs ...*x509.Certificate) {
	f.tb.Helper()
	template := &x509.RevocationList{Number: big.NewInt(time.Now().UnixNano()), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}
	for _, cert := range certs {
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: cert.SerialNumber, RevocationTime: time.Now()})
	}
	keyPEM, err := f.authority.KeyPEM()
	if err != nil {
		f.tb.Fatal(err)
	}
	signer := tunneltest.Certificate(f.tb, f.authority.CertificatePEM(), keyPEM).PrivateKey.(crypto.Signer)
	der, err := x509.CreateRevocationList(rand.Reader, template, f.authority.Certificate(), signer)
	if err != nil {
		f.tb.Fatal(err)
	}
	f.put(f.files.CRLs[0], der)
}

// shop is a bridge, an echoing server and a client whose files are watched.
type shop struct {
	bridgeFiles, serverFiles, clientFiles *folder
	bridge                                *tunneltest.Bridge
	listener                              *tunnel.Listener
	client                                *tunnel.Config
}

func newShop(t *testing.T) *shop {
	t.Helper()
	authority := tunneltest.NewAuthority(t)
	s := &shop{}
	var ready sync.WaitGroup
	ready.Add(1)
	s.bridgeFiles = newFolder(t, authority, pki.Request{Kind: pki.Bridge, Hosts: []string{tunneltest.BridgeHost}}, func() { ready.Wait(); s.bridge.CutRevoked() })
	s.serverFiles = newFolder(t, authority, pki.Request{Kind: pki.Server, CommonName: "server-1", Hosts: []string{tunneltest.ServerHost}}, func() { ready.Wait(); s.listener.CutRevoked() })
	s.clientFiles = newFolder(t, authority, pki.Request{Kind: pki.Client, CommonName: "alice"}, nil)
	s.bridge = authority.StartBridge([]string{"server-1"}, func(c *bridge.Config) {
		c.TLS, c.Settings = nil, func() *tls.Config { return s.bridgeFiles.live.Identity().BridgeServer() }
	})
	s.listener = listen(t, &tunnel.Config{
		Bridge: s.bridge.ServerAddr, RetryMin: 10 * time.Millisecond, RetryMax: 200 * time.Millisecond, Log: tunneltest.Logger(t),
		Settings: func() (outer, inner *tls.Config) {
			identity := s.serverFiles.live.Identity()
			return identity.OuterDialer(tunneltest.BridgeHost), identity.InnerAcceptor()
		},
	}, 4)
	ready.Done()
	s.client = &tunnel.Config{Bridge: s.bridge.ClientAddr, Settings: func() (outer, inner *tls.Config) {
		identity := s.clientFiles.live.Identity()
		return identity.OuterDialer(tunneltest.BridgeHost), identity.InnerDialer(tunneltest.ServerHost)
	}}
	go serveEcho(s.listener)
	return s
}

// TestRotationUnderLoad renews the certificates of all three programs 20 times
// while 8 clients echo. Pairs that exist must not notice, and new ones must use
// the new certificates.
func TestRotationUnderLoad(t *testing.T) {
	s := newShop(t)
	ctx, stop := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	var echoes [8]int
	for i := range echoes {
		conn := dial(t, s.client)
		clients.Go(func() {
			for ; ctx.Err() == nil; echoes[i]++ {
				if err := checkEcho(conn, 2000); err != nil {
					t.Errorf("client %d, after %d echoes: %v", i, echoes[i], err)
					return
				}
				time.Sleep(time.Millisecond) // leave the others some of the processors
			}
		})
	}
	for range 20 {
		s.rotate(t)
	}
	stop()
	clients.Wait()
	t.Logf("echoes of each client meanwhile: %v", echoes)
}

// rotate renews all three certificates and dials with the new ones.
func (s *shop) rotate(t *testing.T) {
	t.Helper()
	for _, f := range []*folder{s.bridgeFiles, s.serverFiles, s.clientFiles} {
		before := f.live.Identity().Leaf()
		f.renew()
		tunneltest.Eventually(t, "the new certificate is in use", func() bool { return !f.live.Identity().Leaf().Equal(before) })
	}
	conn := dial(t, s.client)
	defer conn.Close()
	if err := checkEcho(conn, 100); err != nil {
		t.Fatal(err)
	}
	if !conn.PeerCertificate().Equal(s.serverFiles.live.Identity().Leaf()) {
		t.Error("a new session shows the server's old certificate")
	}
	if !s.bridgeShows(t).Equal(s.bridgeFiles.live.Identity().Leaf()) {
		t.Error("a new connection shows the bridge's old certificate")
	}
}

// bridgeShows returns the bridge's certificate on a new connection.
func (s *shop) bridgeShows(t *testing.T) *x509.Certificate {
	t.Helper()
	outer, _ := s.client.Settings()
	conn, err := tls.Dial("tcp", s.client.Bridge, outer)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0]
}

// TestRevocationCutsSessions revokes the client's certificate at the bridge
// and at the server while it has a session.
func TestRevocationCutsSessions(t *testing.T) {
	for name, c := range map[string]struct {
		at   func(*shop) *folder
		kind tunnel.Kind
	}{
		"at the bridge": {func(s *shop) *folder { return s.bridgeFiles }, tunnel.KindBridgeRefused},
		"at the server": {func(s *shop) *folder { return s.serverFiles }, tunnel.KindServerRefused},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShop(t)
			conn := dial(t, s.client)
			if err := checkEcho(conn, 100); err != nil {
				t.Fatal(err)
			}
			c.at(s).revoke(s.clientFiles.live.Identity().Leaf())
			_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
			if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("the session goes on: %v", err)
			}
			again, err := tunnel.Dial(t.Context(), s.client)
			if err == nil {
				_, err = again.Read(make([]byte, 1))
				again.Close()
			}
			wantKind(t, err, c.kind)
			s.clientFiles.renew()
			tunneltest.Eventually(t, "a new certificate is let in", func() bool {
				conn, err := tunnel.Dial(t.Context(), s.client)
				if err != nil {
					return false
				}
				defer conn.Close()
				return checkEcho(conn, 100) == nil
			})
		})
	}
}

// TestRevokedBridgeAndServer holds that diallers honour the lists too.
func TestRevokedBridgeAndServer(t *testing.T) {
	s := newShop(t)
	for kind, revoked := range map[tunnel.Kind]*folder{tunnel.KindBridgeUntrusted: s.bridgeFiles, tunnel.KindServerUntrusted: s.serverFiles} {
		s.clientFiles.revoke(revoked.live.Identity().Leaf())
		if err := s.clientFiles.live.Reload(); err != nil {
			t.Fatal(err)
		}
		_, err := tunnel.Dial(t.Context(), s.client)
		wantKind(t, err, kind)
		if !errors.Is(err, tunnel.ErrRevoked) || !strings.Contains(err.Error(), "the certificate is revoked") || !strings.Contains(err.Error(), "do not trust it") {
			t.Errorf("the error does not say it: %v", err)
		}
	}
}
