// Package tunneltest builds what a test of the tunnel needs: a certification
// authority made for the test, certificates from it, and a bridge on loopback.
package tunneltest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
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
)

// The hosts that certificates are issued for and that Configs expect.
const (
	BridgeHost = "bridge.test"
	ServerHost = "server.test"
)

// Authority is a certification authority for one test.
type Authority struct {
	*pki.CA
	tb  testing.TB
	dir string
}

// NewAuthority makes an authority.
func NewAuthority(tb testing.TB) *Authority {
	tb.Helper()
	ca, err := pki.NewCA(pki.CAOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	return &Authority{CA: ca, tb: tb, dir: tb.TempDir()}
}

// Pool returns a pool that trusts this authority.
func (a *Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.Certificate())
	return pool
}

// Identity issues a certificate and loads it the way that programs do.
func (a *Authority) Identity(req pki.Request) *certfile.Identity {
	a.tb.Helper()
	certPEM, keyPEM, err := a.Issue(req)
	if err != nil {
		a.tb.Fatal(err)
	}
	dir, err := os.MkdirTemp(a.dir, "")
	if err != nil {
		a.tb.Fatal(err)
	}
	cert, key, err := pki.WritePair(dir, "leaf", certPEM, keyPEM)
	if err != nil {
		a.tb.Fatal(err)
	}
	ca := filepath.Join(dir, "ca.crt")
	if err := os.WriteFile(ca, a.CertificatePEM(), 0o600); err != nil {
		a.tb.Fatal(err)
	}
	identity, _, err := certfile.Load(certfile.Files{CA: ca, Certificate: cert, Key: key})
	if err != nil {
		a.tb.Fatal(err)
	}
	return identity
}

// Bridge is a bridge that serves on loopback until the test ends.
type Bridge struct {
	*bridge.Bridge
	ClientAddr, ServerAddr string
	stop                   context.CancelFunc
	done                   chan error
}

// StartBridge starts a bridge on which the given server names may register.
// change may alter its Config and may be nil.
func (a *Authority) StartBridge(servers []string, change func(*bridge.Config)) *Bridge {
	a.tb.Helper()
	return a.StartBridgeAt("127.0.0.1:0", "127.0.0.1:0", servers, change)
}

// StartBridgeAt is StartBridge on chosen addresses, for restarts.
func (a *Authority) StartBridgeAt(clientAddr, serverAddr string, servers []string, change func(*bridge.Config)) *Bridge {
	a.tb.Helper()
	cfg := bridge.Config{
		TLS:     a.Identity(pki.Request{Kind: pki.Bridge, Hosts: []string{BridgeHost}}).BridgeServer(),
		Servers: servers,
		Drain:   -1,
		Log:     Logger(a.tb),
	}
	if change != nil {
		change(&cfg)
	}
	b, err := bridge.New(cfg)
	if err != nil {
		a.tb.Fatal(err)
	}
	clients, servers2 := listen(a.tb, clientAddr), listen(a.tb, serverAddr)
	ctx, stop := context.WithCancel(context.Background())
	running := &Bridge{
		Bridge: b, stop: stop, done: make(chan error, 1),
		ClientAddr: clients.Addr().String(), ServerAddr: servers2.Addr().String(),
	}
	go func() { running.done <- b.Serve(ctx, clients, servers2) }()
	a.tb.Cleanup(func() { running.Stop() })
	return running
}

func listen(tb testing.TB, address string) net.Listener {
	tb.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		tb.Fatal(err)
	}
	return listener
}

// Stop ends the bridge, waits for it, and returns what Serve returned. Only
// the first call gets Serve's error.
func (b *Bridge) Stop() error {
	b.stop()
	err, ok := <-b.done
	if ok {
		close(b.done)
	}
	return err
}

// Client returns the Config of a client with the given user name.
func (a *Authority) Client(b *Bridge, user string) *tunnel.Config {
	a.tb.Helper()
	identity := a.Identity(pki.Request{Kind: pki.Client, CommonName: user})
	return &tunnel.Config{
		Bridge: b.ClientAddr,
		Outer:  identity.OuterDialer(BridgeHost),
		Inner:  identity.InnerDialer(ServerHost),
		Log:    Logger(a.tb),
	}
}

// Server returns the Config of a server with the given name.
func (a *Authority) Server(b *Bridge, name string) *tunnel.Config {
	a.tb.Helper()
	identity := a.Identity(pki.Request{Kind: pki.Server, CommonName: name, Hosts: []string{ServerHost}})
	return &tunnel.Config{
		Bridge:   b.ServerAddr,
		Outer:    identity.OuterDialer(BridgeHost),
		Inner:    identity.InnerAcceptor(),
		RetryMin: 10 * time.Millisecond,
		RetryMax: 200 * time.Millisecond,
		Log:      Logger(a.tb),
	}
}

// Certificate turns PEM into what a tls.Config takes.
func Certificate(tb testing.TB, certPEM, keyPEM []byte) tls.Certificate {
	tb.Helper()
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		tb.Fatal(err)
	}
	return pair
}

// Log keeps what was logged.
type Log struct {
	tb testing.TB

	mu    sync.Mutex
	ended bool
	lines []string
}

// Logger returns a Log that also writes to the test's own log.
func Logger(tb testing.TB) *Log {
	l := &Log{tb: tb}
	tb.Cleanup(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.ended = true
	})
	return l
}

// Contains tells whether a line with this text was logged.
func (l *Log) Contains(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.lines {
		if strings.Contains(line, text) {
			return true
		}
	}
	return false
}

func (l *Log) add(level, msg string, args []any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var line strings.Builder
	fmt.Fprintf(&line, "%s %s", level, msg)
	for i := 0; i+1 < len(args); i += 2 {
		fmt.Fprintf(&line, " %v=%v", args[i], args[i+1])
	}
	l.lines = append(l.lines, line.String())
	if _, benchmark := l.tb.(*testing.B); !benchmark && !l.ended {
		l.tb.Log(line.String())
	}
}

// Debug, Info, Warn and Error make Log a tunnel.Logger.
func (l *Log) Debug(msg string, args ...any) { l.add("DEBUG", msg, args) }

// Info logs.
func (l *Log) Info(msg string, args ...any) { l.add("INFO", msg, args) }

// Warn logs.
func (l *Log) Warn(msg string, args ...any) { l.add("WARN", msg, args) }

// Error logs.
func (l *Log) Error(msg string, args ...any) { l.add("ERROR", msg, args) }

// Eventually waits up to 10 s for a condition and fails the test without it.
func Eventually(tb testing.TB, what string, condition func() bool) {
	tb.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if condition() {
			return
		}
	}
	tb.Fatalf("waited in vain until %s", what)
}

// Forge issues a certificate that no honest authority would: change alters the
// template of a certificate that is good for both roles, for the name and for
// both hosts.
func (a *Authority) Forge(name string, change func(*x509.Certificate)) tls.Certificate {
	a.tb.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		DNSNames:     []string{BridgeHost, ServerHost},
	}
	change(template)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.tb.Fatal(err)
	}
	caPEM, err := a.KeyPEM()
	if err != nil {
		a.tb.Fatal(err)
	}
	signer := Certificate(a.tb, a.CertificatePEM(), caPEM)
	der, err := x509.CreateCertificate(rand.Reader, template, a.Certificate(), key.Public(), signer.PrivateKey)
	if err != nil {
		a.tb.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
