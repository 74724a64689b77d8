package bridge_test

import (
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"chancery/pki"
	"chancery/tunnel"
	"chancery/tunnel/bridge"
	"chancery/tunnel/tunneltest"
)

// witness writes down what the bridge tells its observer.
type witness struct {
	mu   sync.Mutex
	seen []string
}

func (w *witness) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen = append(w.seen, fmt.Sprintf(format, args...))
}

func (w *witness) saw(what string) func() bool {
	return func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return slices.Contains(w.seen, what)
	}
}

func (w *witness) Refused(port tunnel.Role, why bridge.Reason) { w.note("refused %s %s", port, why) }
func (w *witness) Left(port tunnel.Role, waited time.Duration, why bridge.Reason) {
	w.note("left %s %s %t", port, why, waited > 0)
}
func (w *witness) Paired(client, server time.Duration) {
	w.note("paired %t", client > 0 && server > 0)
}
func (w *witness) Ended(took time.Duration, why bridge.Reason) {
	w.note("ended %s %t", why, took > 0)
}

func observedWorld(t *testing.T, change func(*bridge.Config)) (*world, *witness) {
	t.Helper()
	seen := &witness{}
	return newWorld(t, func(c *bridge.Config) {
		c.Observer = seen
		if change != nil {
			change(c)
		}
	}), seen
}

func TestObserverHearsWhy(t *testing.T) {
	client, server := hello(tunnel.RoleClient, tunnel.EnumFirst), hello(tunnel.RoleServer, tunnel.EnumFirst)
	for _, test := range []struct {
		what   string // that the observer is told
		change func(*bridge.Config)
		act    func(*world)
	}{
		{"refused client role", nil, func(w *world) { w.dial(w.ClientAddr, "alice", server) }},
		{"refused server not_allowed", nil, func(w *world) { w.dial(w.ServerAddr, "stranger", server) }},
		{"refused client hello", nil, func(w *world) { w.dial(w.ClientAddr, "alice", []byte("GET / HTTP/1.1\r\n\r\n")) }},
		{"refused client tls", nil, func(w *world) {
			conn, err := net.Dial("tcp", w.ClientAddr)
			if err != nil {
				w.t.Fatal(err)
			}
			w.t.Cleanup(func() { _ = conn.Close() })
			_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\n\r\n")
		}},
		{"refused client timeout", func(c *bridge.Config) { c.Handshake = 300 * time.Millisecond }, func(w *world) { w.dial(w.ClientAddr, "alice", nil) }},
		{"refused client full", func(c *bridge.Config) { c.MaxWaiting = 1 }, func(w *world) { w.client("alice"); w.dial(w.ClientAddr, "bob", client) }},
		{"left server closed true", nil, func(w *world) { w.server("server-1").Close() }},
		{"left server protocol true", nil, func(w *world) { _, _ = io.WriteString(w.server("server-1"), "I speak first") }},
		{"left client no_server true", func(c *bridge.Config) { c.QueueWait = 50 * time.Millisecond }, func(w *world) { w.client("alice") }},
		{"paired true", nil, func(w *world) { w.pair() }},
		{"ended closed true", nil, func(w *world) { a, b := w.pair(); a.Close(); b.Close() }},
		{"ended linger true", func(c *bridge.Config) { c.Linger = 50 * time.Millisecond }, func(w *world) { a, _ := w.pair(); _ = a.CloseWrite() }},
		{"ended idle true", func(c *bridge.Config) { c.IdleTimeout = 50 * time.Millisecond }, func(w *world) { w.pair() }},
		{"ended failed true", nil, func(w *world) { a, _ := w.pair(); _ = a.NetConn().Close() }},
	} {
		t.Run(test.what, func(t *testing.T) {
			w, seen := observedWorld(t, test.change)
			tunneltest.Eventually(t, "it is alive", func() bool { return w.Alive() == nil })
			test.act(w)
			tunneltest.Eventually(t, "the observer hears: "+test.what, seen.saw(test.what))
		})
	}
}

func TestAliveOnlyWhileServing(t *testing.T) {
	w := tunneltest.NewAuthority(t)
	b, err := bridge.New(bridge.Config{TLS: w.Identity(pki.Request{Kind: pki.Bridge, CommonName: "bridge", Hosts: []string{tunneltest.BridgeHost}}).BridgeServer(), Servers: []string{"s"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Alive(); err == nil {
		t.Error("alive before it serves")
	}
}
