package tunnel_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"chancery/pki"
	"chancery/tunnel"
	"chancery/tunnel/bridge"
	"chancery/tunnel/tunneltest"
)

// world is an authority with a bridge and a server that echoes.
type world struct {
	*tunneltest.Authority
	bridge   *tunneltest.Bridge
	listener *tunnel.Listener
}

func newWorld(tb testing.TB, idle int, change func(*bridge.Config)) *world {
	tb.Helper()
	authority := tunneltest.NewAuthority(tb)
	b := authority.StartBridge([]string{"server-1"}, change)
	l := listen(tb, authority.Server(b, "server-1"), idle)
	go serveEcho(l)
	return &world{authority, b, l}
}

func listen(tb testing.TB, cfg *tunnel.Config, idle int) *tunnel.Listener {
	tb.Helper()
	l := tunnel.Listen(context.Background(), cfg, idle)
	tb.Cleanup(func() { l.Close() })
	return l
}

// serveEcho returns to each peer what it sends, until it ends its stream.
func serveEcho(l *tunnel.Listener) {
	for {
		conn, err := l.Accept(context.Background())
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			_, _ = io.Copy(conn, conn)
		}()
	}
}

func dial(tb testing.TB, cfg *tunnel.Config) *tunnel.Conn {
	tb.Helper()
	conn, err := tunnel.Dial(context.Background(), cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { conn.Close() })
	return conn
}

// checkEcho sends bytes and wants them back.
func checkEcho(conn io.ReadWriter, size int) error {
	sent := make([]byte, size)
	rand.Read(sent)
	failed := make(chan error, 1)
	go func() {
		_, err := conn.Write(sent)
		failed <- err
	}()
	got := make([]byte, size)
	if _, err := io.ReadFull(conn, got); err != nil {
		return fmt.Errorf("read: %w", err)
	}
	if !bytes.Equal(sent, got) {
		return errors.New("the echo differs")
	}
	return <-failed
}

func TestEcho(t *testing.T) {
	w := newWorld(t, 2, nil)
	conn := dial(t, w.Client(w.bridge, "alice"))
	if err := checkEcho(conn, 1<<20); err != nil {
		t.Fatal(err)
	}
	if !conn.Extended() {
		t.Error("ALPN did not agree between our own ends")
	}
	if conn.PeerName() != "server-1" {
		t.Errorf("the server is called %q", conn.PeerName())
	}
	if id := conn.Session().String(); len(id) != 36 || id[14] != '7' {
		t.Errorf("session id %q is no UUIDv7", id)
	}
}

func TestServerSeesPeer(t *testing.T) {
	authority := tunneltest.NewAuthority(t)
	b := authority.StartBridge([]string{"server-1"}, nil)
	l := listen(t, authority.Server(b, "server-1"), 1)
	client := dial(t, authority.Client(b, "alice"))
	server, err := l.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if server.PeerName() != "alice" || server.Session() != client.Session() || !server.Extended() {
		t.Errorf("server sees peer %q, session %s (client %s), extended %v",
			server.PeerName(), server.Session(), client.Session(), server.Extended())
	}
}

func TestHalfClose(t *testing.T) {
	w := newWorld(t, 1, nil)
	conn := dial(t, w.Client(w.bridge, "alice"))
	if _, err := io.WriteString(conn, "last words"); err != nil {
		t.Fatal(err)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(conn)
	if err != nil || string(got) != "last words" {
		t.Fatalf("read %q, %v", got, err)
	}
	tunneltest.Eventually(t, "the pair is gone", func() bool { return w.bridge.Stats().Pairs == 0 })
}

func TestManyPairs(t *testing.T) {
	w := newWorld(t, 8, nil)
	cfg := w.Client(w.bridge, "alice")
	var group sync.WaitGroup
	for range 64 {
		group.Go(func() {
			conn, err := tunnel.Dial(t.Context(), cfg)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			for range 5 {
				if err := checkEcho(conn, 20_000); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	tunneltest.Eventually(t, "all pairs are gone and the legs are back", func() bool {
		s := w.bridge.Stats()
		return s.Pairs == 0 && s.WaitingServers == 8 && s.WaitingClients == 0 && s.Handshaking == 0
	})
}

func TestNoServer(t *testing.T) {
	authority := tunneltest.NewAuthority(t)
	b := authority.StartBridge([]string{"server-1"}, func(c *bridge.Config) { c.QueueWait = 50 * time.Millisecond })
	_, err := tunnel.Dial(t.Context(), authority.Client(b, "alice"))
	wantKind(t, err, tunnel.KindNoServer)
	cfg := authority.Client(authority.StartBridge([]string{"server-1"}, nil), "alice")
	cfg.Handshake = 300 * time.Millisecond
	_, err = tunnel.Dial(t.Context(), cfg)
	wantKind(t, err, tunnel.KindNoServer)
}

func TestBridgeUnreachable(t *testing.T) {
	authority := tunneltest.NewAuthority(t)
	b := authority.StartBridge([]string{"server-1"}, nil)
	cfg := authority.Client(b, "alice")
	b.Stop()
	_, err := tunnel.Dial(t.Context(), cfg)
	wantKind(t, err, tunnel.KindBridgeUnreachable)
}

func TestDialCanceled(t *testing.T) {
	authority := tunneltest.NewAuthority(t)
	b := authority.StartBridge([]string{"server-1"}, nil)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, cancel)
	_, err := tunnel.Dial(ctx, authority.Client(b, "alice"))
	wantKind(t, err, tunnel.KindCanceled)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v does not wrap context.Canceled", err)
	}
}

func TestBridgeRestart(t *testing.T) {
	w := newWorld(t, 3, nil)
	cfg := w.Client(w.bridge, "alice")
	if err := checkEcho(dial(t, cfg), 100); err != nil {
		t.Fatal(err)
	}
	if err := w.bridge.Stop(); err != nil {
		t.Fatal(err)
	}
	tunneltest.Eventually(t, "the listener notices", func() bool { return w.listener.Stats().LastError != nil })
	again := w.StartBridgeAt(w.bridge.ClientAddr, w.bridge.ServerAddr, []string{"server-1"}, nil)
	tunneltest.Eventually(t, "the legs are back", func() bool { return again.Stats().WaitingServers == 3 })
	if err := checkEcho(dial(t, cfg), 100); err != nil {
		t.Fatal(err)
	}
}

func TestListenerClose(t *testing.T) {
	w := newWorld(t, 3, nil)
	conn := dial(t, w.Client(w.bridge, "alice"))
	// The echo tells that the server has accepted it.
	if err := checkEcho(conn, 100); err != nil {
		t.Fatal(err)
	}
	tunneltest.Eventually(t, "legs wait", func() bool { return w.bridge.Stats().WaitingServers == 3 })
	w.listener.Close()
	if _, err := w.listener.Accept(t.Context()); !errors.Is(err, tunnel.ErrClosed) {
		t.Errorf("Accept after Close: %v", err)
	}
	tunneltest.Eventually(t, "the waiting legs are gone", func() bool { return w.bridge.Stats().WaitingServers == 0 })
	if err := checkEcho(conn, 100); err != nil {
		t.Errorf("an accepted session did not outlive the listener: %v", err)
	}
}

func TestUnknownUserIsTold(t *testing.T) {
	authority := tunneltest.NewAuthority(t)
	b := authority.StartBridge([]string{"server-1"}, nil)
	l := listen(t, authority.Server(b, "server-1"), 1)
	go func() {
		if conn, err := l.Accept(context.Background()); err == nil {
			conn.Close()
		}
	}()
	conn := dial(t, authority.Client(b, "mallory"))
	_, err := conn.Read(make([]byte, 1))
	wantKind(t, err, tunnel.KindServerClosed)
}

func TestConfigFailsClosed(t *testing.T) {
	authority := tunneltest.NewAuthority(t)
	b := authority.StartBridge([]string{"server-1"}, nil)
	identity := authority.Identity(pki.Request{Kind: pki.Client, CommonName: "alice"})
	breakages := map[string]func(*tunnel.Config){
		"no roots":          func(c *tunnel.Config) { c.Outer.RootCAs = nil },
		"no inner roots":    func(c *tunnel.Config) { c.Inner.RootCAs = nil },
		"no verification":   func(c *tunnel.Config) { c.Inner.InsecureSkipVerify = true },
		"no certificate":    func(c *tunnel.Config) { c.Inner.GetClientCertificate = nil },
		"no server's name":  func(c *tunnel.Config) { c.Inner.ServerName = "" },
		"no inner settings": func(c *tunnel.Config) { c.Inner = nil },
		"no address":        func(c *tunnel.Config) { c.Bridge = "bridge" },
	}
	for name, breakIt := range breakages {
		t.Run(name, func(t *testing.T) {
			cfg := authority.Client(b, "alice")
			breakIt(cfg)
			_, err := tunnel.Dial(t.Context(), cfg)
			wantKind(t, err, tunnel.KindConfig)
		})
	}
	l := listen(t, &tunnel.Config{Bridge: b.ServerAddr, Outer: identity.OuterDialer("x"), Inner: identity.InnerDialer("x")}, 1)
	_, err := l.Accept(t.Context())
	wantKind(t, err, tunnel.KindConfig)
}

func wantKind(t *testing.T, err error, kind tunnel.Kind) {
	t.Helper()
	var e *tunnel.Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v (%T), want an *Error", err, err)
	}
	if e.Kind != kind {
		t.Fatalf("got kind %d: %v; want kind %d", e.Kind, err, kind)
	}
	t.Log(err)
}
