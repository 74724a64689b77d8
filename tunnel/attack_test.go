//go:build unix

package tunnel_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"chancery/tunnel"
	"chancery/tunnel/bridge"
	"chancery/tunnel/tunneltest"
)

// strangers is how many silent peers TestAttacks brings up where the limit of
// open files allows it.
const strangers = 10_000

// attackers runs peers of the bridge that mean no good.
type attackers struct {
	t     *testing.T
	w     *world
	ctx   context.Context
	peers sync.WaitGroup
	open  sync.WaitGroup // first connections that are being made
}

// each runs n peers, each from the address that from gives it. A peer whose
// connection ended comes again after a pause.
func (a *attackers) each(n int, target string, from func(int) string, behave func(net.Conn)) {
	gate := make(chan struct{}, 64)
	a.open.Add(n)
	for i := range n {
		dialer := net.Dialer{}
		if runtime.GOOS == "linux" { // elsewhere 127.0.0.1 is the only loopback address
			dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from(i))}
		}
		opened := sync.OnceFunc(a.open.Done)
		a.peers.Go(func() {
			defer opened()
			for a.ctx.Err() == nil {
				gate <- struct{}{}
				conn, err := dialer.DialContext(a.ctx, "tcp", target)
				<-gate
				opened()
				if err == nil {
					stop := context.AfterFunc(a.ctx, func() { conn.Close() })
					behave(conn)
					stop()
					conn.Close()
				}
				pause(a.ctx, 5*time.Second)
			}
		})
	}
	a.open.Wait()
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// hold keeps a connection, reading nothing of worth, until it is ended.
func hold(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }

func oneAddress(int) string      { return "127.0.0.2" }
func manyAddresses(i int) string { return fmt.Sprintf("127.0.%d.%d", 1+i%8, 1+i/8%25) }
func sameAddress(int) string     { return "127.0.0.1" }

// affordable returns how many of n connections this process may open beside
// the bridge's own ends.
func affordable(t *testing.T, n int) int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	limit.Cur = limit.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Logf("the limit of open files stays: %v", err)
	}
	const own = 3000 // two doors' guests, and what tests need
	if room := int(min(limit.Cur, 1<<20)) - own; room < n {
		t.Logf("only %d of %d peers: the limit of open files is %d", max(room, 100), n, limit.Cur)
		return max(room, 100)
	}
	return n
}

// clientHello returns the first flight of a TLS client.
func clientHello(t *testing.T) []byte {
	t.Helper()
	ours, theirs := net.Pipe()
	defer ours.Close()
	go func() { _ = tls.Client(theirs, &tls.Config{ServerName: tunneltest.BridgeHost}).Handshake() }()
	b := make([]byte, 16<<10)
	n, err := ours.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

// attacks begin an attack and return when it is in force.
var attacks = map[string]func(*attackers){
	"silent peers of one address": func(a *attackers) {
		a.each(affordable(a.t, strangers), a.w.bridge.ClientAddr, oneAddress, hold)
	},
	"silent peers of 200 addresses": func(a *attackers) {
		a.each(affordable(a.t, strangers/2), a.w.bridge.ClientAddr, manyAddresses, hold)
	},
	"silent peers of the honest client's address": func(a *attackers) {
		a.each(2000, a.w.bridge.ClientAddr, sameAddress, hold)
	},
	"silent peers on the servers' port": func(a *attackers) {
		a.each(2000, a.w.bridge.ServerAddr, manyAddresses, hold)
	},
	"stopped in mid-handshake": func(a *attackers) {
		hello := clientHello(a.t)
		a.each(1200, a.w.bridge.ClientAddr, manyAddresses, func(conn net.Conn) {
			_, _ = conn.Write(hello)
			hold(conn)
		})
	},
	"stopped within the ClientHello": func(a *attackers) {
		hello := clientHello(a.t)
		a.each(1500, a.w.bridge.ClientAddr, manyAddresses, func(conn net.Conn) {
			_, _ = conn.Write(hello[:100])
			hold(conn)
		})
	},
	"stopped in mid-hello":           stopInHello,
	"servers that die while waiting": dyingServers,
	"clients that never read":        func(a *attackers) { deafClients(a, nil) },
	"clients that read slowly": func(a *attackers) {
		deafClients(a, func(conn net.Conn) {
			for b := make([]byte, 16); a.ctx.Err() == nil; pause(a.ctx, 20*time.Millisecond) {
				if _, err := conn.Read(b); err != nil {
					return
				}
			}
		})
	},
}

// stopInHello has peers with a valid certificate send half a hello.
func stopInHello(a *attackers) {
	outer := a.w.Client(a.w.bridge, "mallory").Outer
	hello := tunnel.NewHello(tunnel.RoleClient).Encode()
	var said sync.WaitGroup
	const n = 150
	said.Add(n)
	a.each(n, a.w.bridge.ClientAddr, oneAddress, func(conn net.Conn) {
		session := tls.Client(conn, outer)
		_, _ = session.Write(hello[:5])
		said.Done()
		hold(conn)
		<-a.ctx.Done()
	})
	said.Wait()
}

// dyingServers has legs of a server register and vanish with a reset.
func dyingServers(a *attackers) {
	outer := a.w.Server(a.w.bridge, "server-1").Outer
	hello := tunnel.NewHello(tunnel.RoleServer).Encode()
	for range 4 {
		a.peers.Go(func() {
			for a.ctx.Err() == nil {
				raw, err := net.Dial("tcp", a.w.bridge.ServerAddr)
				if err != nil {
					return
				}
				_, _ = tls.Client(raw, outer).Write(hello[:])
				pause(a.ctx, 10*time.Millisecond)
				_ = raw.(*net.TCPConn).SetLinger(0)
				raw.Close()
			}
		})
	}
}

// deafClients have sessions that send and send; read, which may be nil, is
// what they do about the answers.
func deafClients(a *attackers, read func(net.Conn)) {
	cfg := a.w.Client(a.w.bridge, "mallory")
	for range 4 {
		outer := rawOuter(a.t, cfg, tunnel.NewHello(tunnel.RoleClient))
		_ = outer.SetDeadline(time.Time{})
		readAck(a.t, outer)
		inner := tls.Client(outer, cfg.Inner)
		context.AfterFunc(a.ctx, func() {
			_ = outer.NetConn().(*net.TCPConn).SetLinger(0)
			outer.NetConn().Close()
		})
		a.peers.Go(func() {
			for chunk := make([]byte, 16<<10); ; {
				if _, err := inner.Write(chunk); err != nil {
					return
				}
			}
		})
		if read != nil {
			a.peers.Go(func() { read(inner) })
		}
	}
	pause(a.ctx, 200*time.Millisecond) // until the buffers are full
}

// TestAttacks holds that an honest client gets its echo in each attack, and
// reports how long that takes against quiet times.
func TestAttacks(t *testing.T) {
	for name, begin := range attacks {
		t.Run(name, func(t *testing.T) {
			if strings.HasPrefix(name, "clients that") { // they cost little but the time to part
				t.Parallel()
			}
			w := newWorld(t, 8, func(c *bridge.Config) {
				c.Log = tunnel.Discard()
				if name == "stopped in mid-hello" {
					c.MaxHandshakes = 100
				}
			})
			ctx, stop := context.WithCancel(context.Background())
			a := &attackers{t: t, w: w, ctx: ctx}
			defer func() { stop(); a.peers.Wait() }()
			quiet := honest(t, w)
			began := time.Now()
			begin(a)
			inForce := time.Since(began)
			attacked := honest(t, w)
			s := w.bridge.Stats()
			t.Logf("an honest echo takes %s in quiet times and %s under attack: ratio %.1f (in force after %s; %d accepted, %d too fast, %d shed, %d in handshake)",
				quiet, attacked, float64(attacked)/float64(quiet), inForce.Round(time.Millisecond), s.Accepted, s.Limited, s.Shed, s.Handshaking)
		})
	}
}

// honest returns the mean time to connect, echo and close.
func honest(t *testing.T, w *world) time.Duration {
	t.Helper()
	const times = 10
	cfg := w.Client(w.bridge, "alice")
	began := time.Now()
	for range times {
		conn, err := tunnel.Dial(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkEcho(conn, 300); err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
	return time.Since(began) / times
}
