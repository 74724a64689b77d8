package tunnel_test

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"chancery/tunnel"
	"chancery/tunnel/tunneltest"
)

// rawOuter runs a dialler's outer handshake and sends a hello.
func rawOuter(t *testing.T, cfg *tunnel.Config, hello tunnel.Hello) *tls.Conn {
	t.Helper()
	raw, err := net.Dial("tcp", cfg.Bridge)
	if err != nil {
		t.Fatal(err)
	}
	conn := tls.Client(raw, cfg.Outer)
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	b := hello.Encode()
	if _, err := conn.Write(b[:]); err != nil {
		t.Fatal(err)
	}
	return conn
}

func readAck(t *testing.T, conn io.Reader) tunnel.Ack {
	t.Helper()
	var b [tunnel.AckSize]byte
	if _, err := io.ReadFull(conn, b[:]); err != nil {
		t.Fatal(err)
	}
	return tunnel.DecodeAck(b)
}

// TestPlainVersion2Client is a client that waits for its ack before it begins
// the inner session, in which it offers no ALPN.
func TestPlainVersion2Client(t *testing.T) {
	authority := tunneltest.NewAuthority(t)
	b := authority.StartBridge([]string{"server-1"}, nil)
	l := listen(t, authority.Server(b, "server-1"), 1)
	cfg := authority.Client(b, "alice")
	cfg.Inner.NextProtos = nil
	outer := rawOuter(t, cfg, tunnel.NewHello(tunnel.RoleClient))
	ack := readAck(t, outer)
	inner := tls.Client(outer, cfg.Inner)
	if err := inner.Handshake(); err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if server.Extended() || server.PeerName() != "alice" || server.Session() != ack.Session {
		t.Errorf("extended %v, peer %q, session %s (client %s)", server.Extended(), server.PeerName(), server.Session(), ack.Session)
	}
	// Its shutdown: both layers' close_notify and FIN, without waiting.
	io.WriteString(inner, "bye")
	inner.Close()
	if got, err := io.ReadAll(server); err != nil || string(got) != "bye" {
		t.Errorf("the server read %q, %v; want an orderly end", got, err)
	}
}

// TestPlainVersion2Server is a server that answers no ALPN.
func TestPlainVersion2Server(t *testing.T) {
	authority := tunneltest.NewAuthority(t)
	b := authority.StartBridge([]string{"server-1"}, nil)
	cfg := authority.Server(b, "server-1")
	cfg.Inner.NextProtos = nil
	hello := tunnel.NewHello(tunnel.RoleServer)
	hello.Order = tunnel.Documented
	outer := rawOuter(t, cfg, hello)
	go func() {
		var ack [tunnel.AckSize]byte
		if _, err := io.ReadFull(outer, ack[:]); err == nil {
			inner := tls.Server(outer, cfg.Inner)
			io.Copy(inner, inner)
		}
	}()
	conn := dial(t, authority.Client(b, "alice"))
	if conn.Extended() {
		t.Error("extended without ALPN")
	}
	if err := checkEcho(conn, 100_000); err != nil {
		t.Error(err)
	}
}

// TestTruncationIsSeen cuts a session at each layer. The server must not take
// any of them for the client's orderly end.
func TestTruncationIsSeen(t *testing.T) {
	authority := tunneltest.NewAuthority(t)
	b := authority.StartBridge([]string{"server-1"}, nil)
	l := listen(t, authority.Server(b, "server-1"), 2)
	cfg := authority.Client(b, "alice")
	for name, cut := range map[string]func(outer *tls.Conn){
		"outer close without an inner one": func(outer *tls.Conn) { outer.Close() },
		"FIN without any close":            func(outer *tls.Conn) { outer.NetConn().Close() },
	} {
		t.Run(name, func(t *testing.T) {
			outer := rawOuter(t, cfg, tunnel.NewHello(tunnel.RoleClient))
			readAck(t, outer)
			inner := tls.Client(outer, cfg.Inner)
			if _, err := io.WriteString(inner, "half a mess"); err != nil {
				t.Fatal(err)
			}
			server, err := l.Accept(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			cut(outer)
			got, err := io.ReadAll(server)
			if !errors.Is(err, tunnel.ErrTruncated) || string(got) != "half a mess" {
				t.Errorf("read %q, %v; want ErrTruncated", got, err)
			}
		})
	}
}

// TestEndDuringHandshake ends a paired client at each stage of its inner
// handshake; the listener must go on.
func TestEndDuringHandshake(t *testing.T) {
	w := newWorld(t, 1, nil)
	cfg := w.Client(w.bridge, "alice")
	for _, garbage := range []string{"", "\x16", "\x16\x03\x01\x02\x00\x01", "GET / HTTP/1.1\r\n\r\n"} {
		outer := rawOuter(t, cfg, tunnel.NewHello(tunnel.RoleClient))
		readAck(t, outer)
		io.WriteString(outer, garbage)
		outer.Close()
	}
	tunneltest.Eventually(t, "all four are counted", func() bool { return w.listener.Stats().Refused == 4 })
	if err := checkEcho(dial(t, cfg), 1000); err != nil {
		t.Error(err)
	}
}

// TestServerEndsDuringHandshake has a server hang up on its client.
func TestServerEndsDuringHandshake(t *testing.T) {
	authority := tunneltest.NewAuthority(t)
	b := authority.StartBridge([]string{"server-1"}, nil)
	outer := rawOuter(t, authority.Server(b, "server-1"), tunnel.NewHello(tunnel.RoleServer))
	go func() {
		var ack [tunnel.AckSize + 1]byte // and the first byte of its client
		io.ReadFull(outer, ack[:])
		io.WriteString(outer, "\x16") // the client is given another server than one that hangs up without a word
		outer.Close()
	}()
	_, err := tunnel.Dial(t.Context(), authority.Client(b, "alice"))
	wantKind(t, err, tunnel.KindServerUnreachable)
	var e *tunnel.Error
	if errors.As(err, &e); !e.Retry() {
		t.Error("a retry would help")
	}
}

// TestSlowHandshakeHoldsUpNobody has a client fall silent in its inner handshake.
func TestSlowHandshakeHoldsUpNobody(t *testing.T) {
	w := newWorld(t, 1, nil)
	cfg := w.Client(w.bridge, "alice")
	for range 3 {
		readAck(t, rawOuter(t, cfg, tunnel.NewHello(tunnel.RoleClient)))
	}
	if err := checkEcho(dial(t, cfg), 1000); err != nil {
		t.Error(err)
	}
	tunneltest.Eventually(t, "only the 3 silent handshakes are in progress", func() bool { return w.listener.Stats().Handshaking == 3 })
}

// TestOneSilentClientHoldsUpNobody has one user fall silent in as many inner handshakes as the bridge lets them have.
func TestOneSilentClientHoldsUpNobody(t *testing.T) {
	const perClient = 64 // the bridge's default
	w := newWorld(t, 1, nil)
	cfg := w.Client(w.bridge, "mallory")
	for range perClient {
		readAck(t, rawOuter(t, cfg, tunnel.NewHello(tunnel.RoleClient)))
	}
	tunneltest.Eventually(t, "all silent handshakes are in progress", func() bool { return w.listener.Stats().Handshaking == perClient })
	if err := checkEcho(dial(t, w.Client(w.bridge, "alice")), 1000); err != nil {
		t.Error(err)
	}
}

// TestCloseUnblocksRead holds that Close ends a Read in another goroutine.
func TestCloseUnblocksRead(t *testing.T) {
	w := newWorld(t, 1, nil)
	conn := dial(t, w.Client(w.bridge, "alice"))
	failed := make(chan error, 1)
	go func() {
		_, err := conn.Read(make([]byte, 1))
		failed <- err
	}()
	time.Sleep(50 * time.Millisecond)
	conn.Close()
	select {
	case err := <-failed:
		if err == nil {
			t.Error("Read returned a byte from nowhere")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Read still blocks")
	}
}
