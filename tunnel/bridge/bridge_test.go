package bridge_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"chancery/pki"
	"chancery/tunnel"
	"chancery/tunnel/bridge"
	"chancery/tunnel/tunneltest"
)

// world is a bridge and peers that speak to it byte by byte.
type world struct {
	*tunneltest.Authority
	*tunneltest.Bridge
	t   *testing.T
	log *tunneltest.Log
}

func newWorld(t *testing.T, change func(*bridge.Config)) *world {
	t.Helper()
	w := &world{Authority: tunneltest.NewAuthority(t), t: t, log: tunneltest.Logger(t)}
	w.Bridge = w.StartBridge([]string{"server-1", "server-2"}, func(c *bridge.Config) {
		c.Log = w.log
		if change != nil {
			change(c)
		}
	})
	return w
}

// in returns the same world for a subtest.
func (w *world) in(t *testing.T) *world {
	sub := *w
	sub.t = t
	return &sub
}

// peer is an outer session, its end made visible as tunnel.ErrTruncated where
// it is not orderly.
type peer struct {
	*tls.Conn
	t *testing.T
}

// dial runs the outer handshake and sends the given bytes.
func (w *world) dial(address, name string, first []byte) *peer {
	w.t.Helper()
	kind, hosts := pki.Client, []string(nil)
	if address == w.ServerAddr {
		kind, hosts = pki.Server, []string{tunneltest.ServerHost}
	}
	raw, err := net.Dial("tcp", address)
	if err != nil {
		w.t.Fatal(err)
	}
	transport := tunnel.NewTransport(raw, tunnel.DefaultKeepAlive())
	w.t.Cleanup(func() { transport.Close() })
	config := w.Identity(pki.Request{Kind: kind, CommonName: name, Hosts: hosts}).OuterDialer(tunneltest.BridgeHost)
	conn := tls.Client(transport, config)
	if err := conn.Handshake(); err != nil {
		w.t.Fatal(err)
	}
	if _, err := conn.Write(first); err != nil {
		w.t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	return &peer{conn, w.t}
}

func hello(role tunnel.Role, order tunnel.Order) []byte {
	h := tunnel.NewHello(role)
	h.Order = order
	b := h.Encode()
	return b[:]
}

// client and server come to wait; the bridge knows them when they return.
func (w *world) client(name string) *peer {
	before := w.Stats()
	p := w.dial(w.ClientAddr, name, hello(tunnel.RoleClient, tunnel.EnumFirst))
	w.known(before)
	return p
}

func (w *world) server(name string) *peer {
	before := w.Stats()
	p := w.dial(w.ServerAddr, name, hello(tunnel.RoleServer, tunnel.EnumFirst))
	w.known(before)
	return p
}

func (w *world) known(before bridge.Stats) {
	w.t.Helper()
	tunneltest.Eventually(w.t, "the peer waits or is paired", func() bool {
		s := w.Stats()
		return s.WaitingClients > before.WaitingClients || s.WaitingServers > before.WaitingServers || s.Paired > before.Paired
	})
}

// ack reads an ack.
func (p *peer) ack() tunnel.Ack {
	p.t.Helper()
	var b [tunnel.AckSize]byte
	if _, err := io.ReadFull(p, b[:]); err != nil {
		p.t.Fatalf("no ack: %v", err)
	}
	return tunnel.DecodeAck(b)
}

// ended fails unless the bridge ended the session without another byte, in order.
func (p *peer) ended() {
	p.t.Helper()
	if n, err := p.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		p.t.Fatalf("read %d bytes, %v; want an orderly end", n, err)
	}
}

// pair brings two peers together.
func (w *world) pair() (client, server *peer) {
	w.t.Helper()
	server, client = w.server("server-1"), w.client("alice")
	if a, b := server.ack(), client.ack(); a.Status != 0 || a != b {
		w.t.Fatalf("acks differ: %+v, %+v", a, b)
	}
	return client, server
}

// passes fails unless a text goes from one peer to the other.
func passes(t *testing.T, from, to *peer, text string) {
	t.Helper()
	from.says(text)
	to.gets(text)
}

func (p *peer) says(text string) {
	p.t.Helper()
	if _, err := io.WriteString(p, text); err != nil {
		p.t.Fatal(err)
	}
}

func (p *peer) gets(text string) {
	p.t.Helper()
	got := make([]byte, len(text))
	if _, err := io.ReadFull(p, got); err != nil || string(got) != text {
		p.t.Fatalf("got %q, %v; want %q", got, err, text)
	}
}

func TestPairInEveryOrder(t *testing.T) {
	w := newWorld(t, nil)
	for _, serverOrder := range []tunnel.Order{tunnel.EnumFirst, tunnel.Documented} {
		for _, clientOrder := range []tunnel.Order{tunnel.EnumFirst, tunnel.Documented} {
			server := w.dial(w.ServerAddr, "server-1", hello(tunnel.RoleServer, serverOrder))
			// The early bytes stand for an inner ClientHello in the same flight.
			client := w.dial(w.ClientAddr, "alice", append(hello(tunnel.RoleClient, clientOrder), "early"...))
			a := server.ack()
			server.gets("early")
			server.says("down")
			b := client.ack()
			if a.Order != serverOrder || b.Order != clientOrder || a.Session != b.Session || a.Status != 0 || b.Status != 0 {
				t.Fatalf("acks %+v and %+v", a, b)
			}
			client.gets("down")
			passes(t, client, server, "up")
			client.Close()
			server.ended()
			server.Close()
		}
	}
}

func TestHelloAnswers(t *testing.T) {
	w := newWorld(t, nil)
	change := func(index int, value byte) []byte {
		b := hello(tunnel.RoleClient, tunnel.EnumFirst)
		b[index] = value
		return b
	}
	documented := hello(tunnel.RoleServer, tunnel.Documented)
	documented[3] = 'X'
	cases := map[string]struct {
		hello  []byte
		status tunnel.Status
		order  tunnel.Order
	}{
		"magic":            {change(3, 'X'), tunnel.StatusMagic, tunnel.EnumFirst},
		"version 1":        {change(12, 1), tunnel.StatusVersion, tunnel.EnumFirst},
		"version 3":        {change(12, 3), tunnel.StatusVersion, tunnel.EnumFirst},
		"role":             {change(0, 1), tunnel.StatusRole, tunnel.EnumFirst},
		"documented magic": {documented, tunnel.StatusMagic, tunnel.Documented},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			w := w.in(t)
			p := w.dial(w.ClientAddr, "alice", append(c.hello, "an inner hello that nobody reads"...))
			if ack := p.ack(); ack.Status != c.status || ack.Order != c.order || ack.Session[6]>>4 != 7 {
				t.Errorf("ack %+v", ack)
			}
			p.ended()
		})
	}
	t.Run("unknown role", func(t *testing.T) {
		w := w.in(t)
		w.dial(w.ClientAddr, "alice", change(0, 2)).ended()
	})
}

func TestDeadWaitingLegs(t *testing.T) {
	w := newWorld(t, nil)
	for _, end := range []func(*peer){
		func(p *peer) { p.Close() },
		func(p *peer) { p.NetConn().Close() },
		func(p *peer) { io.WriteString(p, "I speak first"); p.ended() },
	} {
		end(w.server("server-1"))
		tunneltest.Eventually(t, "no server waits", func() bool { return w.Stats().WaitingServers == 0 })
	}
	gone := w.client("alice")
	gone.Close()
	tunneltest.Eventually(t, "no client waits", func() bool { return w.Stats().WaitingClients == 0 })
	client, server := w.pair()
	passes(t, client, server, "hello")
}

func TestEarlyBytesAreBounded(t *testing.T) {
	w := newWorld(t, nil)
	p := w.client("alice")
	_, _ = p.Write(make([]byte, 128<<10)) // the bridge may end it while we write
	p.ended()
	if w.Stats().WaitingClients != 0 {
		t.Error("it still waits")
	}
}

func TestClientsFirstComeFirstServed(t *testing.T) {
	w := newWorld(t, nil)
	var clients []*peer
	for i := range 5 {
		clients = append(clients, w.client(fmt.Sprintf("user-%d", i)))
	}
	for i, client := range clients {
		server := w.server("server-1")
		if client.ack().Session != server.ack().Session {
			t.Fatalf("client %d was not next", i)
		}
	}
}

func TestLeastLoadedServer(t *testing.T) {
	w := newWorld(t, nil)
	servers := map[string]string{} // session to server name
	var waiting []*peer
	for range 3 {
		waiting = append(waiting, w.server("server-1"))
	}
	for range 3 {
		waiting = append(waiting, w.server("server-2"))
	}
	for range 4 {
		w.client("alice").ack()
	}
	for i, server := range waiting {
		name := "server-1"
		if i >= 3 {
			name = "server-2"
		}
		_ = server.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		var b [tunnel.AckSize]byte
		if _, err := io.ReadFull(server, b[:]); err == nil {
			servers[tunnel.DecodeAck(b).Session.String()] = name
		}
	}
	count := map[string]int{}
	for _, name := range servers {
		count[name]++
	}
	if count["server-1"] != 2 || count["server-2"] != 2 {
		t.Errorf("pairs by server: %v, want 2 each", count)
	}
}

func TestSilentPeersHoldUpNobody(t *testing.T) {
	w := newWorld(t, func(c *bridge.Config) { c.MaxHandshakes = 12; c.Handshake = 20 * time.Second })
	for _, address := range []string{w.ClientAddr, w.ServerAddr} {
		for range 10 {
			conn, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
		}
	}
	tunneltest.Eventually(t, "the silent peers are held", func() bool { return w.Stats().Handshaking == 20 })
	client, server := w.pair()
	passes(t, client, server, "hello")
}

func TestSilentPeersAreDropped(t *testing.T) {
	w := newWorld(t, func(c *bridge.Config) { c.MaxHandshakes = 2; c.Handshake = 100 * time.Millisecond })
	for range 5 { // more than there are slots: the rest waits in the kernel
		conn, err := net.Dial("tcp", w.ClientAddr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	client, server := w.pair()
	passes(t, client, server, "hello")
	tunneltest.Eventually(t, "the refusals are logged", func() bool { return w.log.Contains("connection refused port=client") })
}

func TestPlainTCPIsRefused(t *testing.T) {
	w := newWorld(t, nil)
	for _, text := range []string{"GET / HTTP/1.1\r\n\r\n", string(hello(tunnel.RoleClient, tunnel.EnumFirst)), "\x16\x03\x01\xff\xff"} {
		conn, err := net.Dial("tcp", w.ClientAddr)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(conn, text)
		_ = conn.(*net.TCPConn).CloseWrite()
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.ReadAll(conn); err != nil {
			t.Errorf("%q: %v, want the connection closed", text, err)
		}
		conn.Close()
	}
	if got := w.Stats().Refused; got != 3 {
		t.Errorf("%d refused, want 3", got)
	}
}

func TestLimits(t *testing.T) {
	t.Run("waiting", func(t *testing.T) {
		w := newWorld(t, func(c *bridge.Config) { c.MaxWaiting = 1 })
		w.client("alice")
		w.dial(w.ClientAddr, "bob", hello(tunnel.RoleClient, tunnel.EnumFirst)).ended()
	})
	t.Run("per client", func(t *testing.T) {
		w := newWorld(t, func(c *bridge.Config) { c.MaxPerClient = 1 })
		client, server := w.pair()
		w.dial(w.ClientAddr, "alice", hello(tunnel.RoleClient, tunnel.EnumFirst)).ended()
		client.Close()
		server.ended()
		server.Close()
		tunneltest.Eventually(t, "the pair is gone", func() bool { return w.Stats().Pairs == 0 })
		w.pair()
	})
	t.Run("per client, as it is without saying", func(t *testing.T) {
		w := newWorld(t, func(c *bridge.Config) { c.QueueWait = time.Minute })
		for range 64 {
			w.client("alice")
		}
		w.dial(w.ClientAddr, "alice", hello(tunnel.RoleClient, tunnel.EnumFirst)).ended()
		w.client("bob") // the queue has room for others
	})
	t.Run("sessions", func(t *testing.T) {
		w := newWorld(t, func(c *bridge.Config) { c.MaxSessions = 1 })
		first, firstServer := w.pair()
		w.server("server-1")
		second := w.client("bob")
		if s := w.Stats(); s.Pairs != 1 || s.WaitingClients != 1 || s.WaitingServers != 1 {
			t.Fatalf("%+v", s)
		}
		first.Close()
		firstServer.Close()
		if second.ack().Status != tunnel.StatusOK {
			t.Error("the second client was not paired when the first had gone")
		}
	})
	t.Run("queue wait", func(t *testing.T) {
		w := newWorld(t, func(c *bridge.Config) { c.QueueWait = 50 * time.Millisecond })
		w.client("alice").ended()
	})
}

func TestHalfClose(t *testing.T) {
	w := newWorld(t, nil)
	client, server := w.pair()
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	server.ended()
	passes(t, server, client, "still here")
	server.Close()
	client.ended()
}

func TestLinger(t *testing.T) {
	w := newWorld(t, func(c *bridge.Config) { c.Linger = 50 * time.Millisecond })
	client, server := w.pair()
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	server.ended()
	client.ended()
	tunneltest.Eventually(t, "the reason is logged", func() bool { return w.log.Contains("did not follow in time") })
}

func TestErrorEndsBothLegs(t *testing.T) {
	w := newWorld(t, nil)
	client, server := w.pair()
	client.NetConn().Close() // FIN without close_notify
	server.ended()
	tunneltest.Eventually(t, "the cut is logged with the byte counts", func() bool {
		return w.log.Contains("bytes_up=0 bytes_down=0") && w.log.Contains("without a TLS close")
	})
	tunneltest.Eventually(t, "the pair is gone", func() bool { return w.Stats().Pairs == 0 })
}

func TestIdlePairIsCut(t *testing.T) {
	w := newWorld(t, func(c *bridge.Config) { c.IdleTimeout = 100 * time.Millisecond })
	client, server := w.pair()
	client.ended()
	server.ended()
	tunneltest.Eventually(t, "the reason is logged", func() bool { return w.log.Contains("idle for too long") })
}

func TestStalledPeerIsCut(t *testing.T) {
	w := newWorld(t, func(c *bridge.Config) { c.Stall = 200 * time.Millisecond })
	client, _ := w.pair() // the server reads nothing
	_ = client.SetWriteDeadline(time.Now().Add(30 * time.Second))
	chunk := make([]byte, 64<<10)
	var err error
	for err == nil {
		_, err = client.Write(chunk)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		t.Fatal("a peer that reads nothing held its partner for 30 s")
	}
	tunneltest.Eventually(t, "the reason is logged", func() bool { return w.log.Contains("took in nothing for too long: server") })
	tunneltest.Eventually(t, "the pair is gone", func() bool { return w.Stats().Pairs == 0 })
}

func TestDrain(t *testing.T) {
	w := newWorld(t, func(c *bridge.Config) { c.Drain = 20 * time.Second })
	client, server := w.pair()
	waiting := w.client("bob")
	stopped := make(chan error, 1)
	go func() { stopped <- w.Stop() }()
	waiting.ended()
	if conn, err := net.Dial("tcp", w.ClientAddr); err == nil {
		conn.Close()
		t.Error("it still accepts")
	}
	passes(t, client, server, "I may finish")
	client.Close()
	server.ended()
	server.Close()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

func TestDrainCuts(t *testing.T) {
	w := newWorld(t, func(c *bridge.Config) { c.Drain = 50 * time.Millisecond })
	client, server := w.pair()
	if err := w.Stop(); err != nil {
		t.Error(err)
	}
	client.ended()
	server.ended()
}

func TestConfig(t *testing.T) {
	authority := tunneltest.NewAuthority(t)
	identity := authority.Identity(pki.Request{Kind: pki.Bridge, Hosts: []string{tunneltest.BridgeHost}})
	for name, cfg := range map[string]bridge.Config{
		"no servers":      {TLS: identity.BridgeServer()},
		"an empty name":   {TLS: identity.BridgeServer(), Servers: []string{""}},
		"no TLS":          {Servers: []string{"s"}},
		"no client roots": {Servers: []string{"s"}, TLS: &tls.Config{Certificates: identity.BridgeServer().Certificates}},
		"no certificate":  {Servers: []string{"s"}, TLS: &tls.Config{ClientCAs: authority.Pool()}},
	} {
		if _, err := bridge.New(cfg); !errors.Is(err, bridge.ErrConfig) {
			t.Errorf("%s: %v", name, err)
		} else {
			t.Log(err)
		}
	}
}

// flaky fails a few times before it accepts, like a process out of descriptors.
type flaky struct {
	net.Listener
	failures int
}

func (f *flaky) Accept() (net.Conn, error) {
	if f.failures > 0 {
		f.failures--
		return nil, errors.New("too many open files")
	}
	return f.Listener.Accept()
}

func TestAcceptErrors(t *testing.T) {
	authority := tunneltest.NewAuthority(t)
	identity := authority.Identity(pki.Request{Kind: pki.Bridge, Hosts: []string{tunneltest.BridgeHost}})
	b, err := bridge.New(bridge.Config{TLS: identity.BridgeServer(), Servers: []string{"server-1"}})
	if err != nil {
		t.Fatal(err)
	}
	var listeners [2]net.Listener
	for i := range listeners {
		if listeners[i], err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
	}
	served := make(chan error, 1)
	go func() { served <- b.Serve(t.Context(), &flaky{listeners[0], 3}, listeners[1]) }()
	conn, err := net.Dial("tcp", listeners[0].Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	tunneltest.Eventually(t, "it accepts after the errors", func() bool { return b.Stats().Accepted == 1 })
	conn.Close()
	listeners[1].Close()
	if err := <-served; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve returned %v when a listener was closed under it", err)
	}
}
