package e2e

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chancery/client"
	"chancery/e2e/lab"
)

// A bridge in hostile hands holds the bridge's own certificate and does what it likes with the
// inner records that it is to copy. It cannot do so unnoticed.

// applicationData is the type of the encrypted records of TLS 1.3 (RFC 8446, section 5.2).
const applicationData = 23

// hostileBridge pairs like the real one. What a client sends goes through mischief, once armed.
type hostileBridge struct {
	t        *testing.T
	settings *tls.Config
	servers  chan net.Conn
	pairs    atomic.Int64

	mu       sync.Mutex
	mischief func(p *hostilePair, record []byte) (forward [][]byte, done bool)
	joined   []*hostilePair
}

// hostilePair is one client and the server leg that its records go to.
type hostilePair struct {
	client net.Conn
	server net.Conn
	held   [][]byte
}

// startHostileBridge takes the place of the lab's bridge, on its addresses.
func startHostileBridge(t *testing.T, l *scene) *hostileBridge {
	t.Helper()
	l.Bridge.Terminate()
	certificate, err := tls.LoadX509KeyPair(l.Path("pki/bridge.lab.crt"), l.Path("pki/bridge.lab.key"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(l.Read("pki/ca.crt")))
	b := &hostileBridge{t: t, servers: make(chan net.Conn, 64), settings: &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{certificate},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots,
	}}
	b.listen(l.Servers, func(leg net.Conn) { b.servers <- leg })
	b.listen(l.Clients, b.pair)
	return b
}

// listen accepts legs whose hello has arrived.
func (b *hostileBridge) listen(address string, serve func(net.Conn)) {
	b.t.Helper()
	listener, err := tls.Listen("tcp", address, b.settings)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			leg, err := listener.Accept()
			if err != nil {
				return
			}
			b.t.Cleanup(func() { leg.Close() })
			go func() {
				if _, err := io.ReadFull(leg, make([]byte, 13)); err == nil {
					serve(leg)
				}
			}()
		}
	}()
}

func (b *hostileBridge) pair(client net.Conn) {
	server := <-b.servers
	ack := make([]byte, 17)
	ack[1], ack[16] = 0x01, byte(b.pairs.Add(1))
	for _, leg := range []net.Conn{client, server} {
		if _, err := leg.Write(ack); err != nil {
			client.Close()
			server.Close()
			return
		}
	}
	p := &hostilePair{client: client, server: server}
	b.mu.Lock()
	b.joined = append(b.joined, p)
	b.mu.Unlock()
	go func() {
		io.Copy(client, server)
		client.Close()
	}()
	b.copyRecords(p)
	p.server.Close()
}

// copyRecords copies the client's inner records, each through the mischief while that is armed.
func (b *hostileBridge) copyRecords(p *hostilePair) {
	header := make([]byte, 5)
	for {
		if _, err := io.ReadFull(p.client, header); err != nil {
			return
		}
		record := append(slices.Clone(header), make([]byte, binary.BigEndian.Uint16(header[3:]))...)
		if _, err := io.ReadFull(p.client, record[5:]); err != nil {
			return
		}
		for _, out := range b.corrupt(p, record) {
			if out == nil {
				return // an end that looks orderly from outside
			}
			if _, err := p.server.Write(out); err != nil {
				return
			}
		}
	}
}

func (b *hostileBridge) corrupt(p *hostilePair, record []byte) [][]byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mischief == nil || record[0] != applicationData {
		return [][]byte{record}
	}
	forward, done := b.mischief(p, record)
	if done {
		b.mischief = nil
	}
	return forward
}

func (b *hostileBridge) arm(mischief func(p *hostilePair, record []byte) ([][]byte, bool)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mischief = mischief
}

func (b *hostileBridge) pending() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mischief != nil
}

// mischiefs are what the bridge does to one record, or two, of one client.
var mischiefs = map[string]func(p *hostilePair, record []byte) ([][]byte, bool){
	"reorders": func(p *hostilePair, record []byte) ([][]byte, bool) {
		if p.held = append(p.held, record); len(p.held) < 2 {
			return nil, false
		}
		return [][]byte{p.held[1], p.held[0]}, true
	},
	"drops":   func(*hostilePair, []byte) ([][]byte, bool) { return nil, true },
	"replays": func(_ *hostilePair, record []byte) ([][]byte, bool) { return [][]byte{record, record}, true },
	"alters": func(_ *hostilePair, record []byte) ([][]byte, bool) {
		record[len(record)/2] ^= 1
		return [][]byte{record}, true
	},
	"truncates": func(_ *hostilePair, record []byte) ([][]byte, bool) {
		return [][]byte{record[:len(record)-3], nil}, true
	},
	"injects": func(_ *hostilePair, record []byte) ([][]byte, bool) {
		forged := append([]byte{applicationData, 3, 3, 0, 32}, make([]byte, 32)...)
		return [][]byte{forged, record}, true
	},
}

// TestAHostileBridgeIsNoticed lets the bridge do each of its mischiefs to a working connection. The server
// must give the session up, the client must get all its signatures over a new one, and the
// record must have nothing that was not asked for, and nothing twice.
func TestAHostileBridgeIsNoticed(t *testing.T) {
	l := newLab(t, lab.Soft)
	l.CreateKey("release", "p256")
	b := startHostileBridge(t, l)
	l.Serve()
	for name, mischief := range mischiefs {
		t.Run(name, func(t *testing.T) {
			_, key := l.unlocked(t, "release")
			signEach(t, key, name+" before", 4)
			pairs := b.pairs.Load()
			b.arm(mischief)
			signEach(t, key, name, 32)
			if b.pending() {
				t.Fatal("the bridge had no occasion for its mischief")
			}
			if b.pairs.Load() == pairs {
				t.Error("nobody noticed: the connection goes on")
			}
			counts := l.recorded()
			for i := range 32 {
				if n := counts[digestName("release", name, i)]; n != 1 {
					t.Errorf("document %d is recorded %d times", i, n)
				}
			}
		})
	}
}

// TestSwappedStreamsSignForNobody exchanges what two users send. Neither may get, nor leave in the record, what the other asked for.
func TestSwappedStreamsSignForNobody(t *testing.T) {
	l := newLab(t, lab.Soft)
	l.CreateKey("release", "p256")
	b := startHostileBridge(t, l)
	l.Serve()
	_, alices := l.unlocked(t, "release")
	_, olgas := l.unlockedAs(t, "olga", lab.OlgaPassphrase, "release")
	b.mu.Lock()
	first, second := b.joined[0], b.joined[1]
	first.server, second.server = second.server, first.server
	b.mu.Unlock()
	pairs := b.pairs.Load()
	var both sync.WaitGroup
	both.Go(func() { signEach(t, alices, "alice", 8) })
	both.Go(func() { signEach(t, olgas, "olga", 8) })
	both.Wait()
	if b.pairs.Load() < pairs+2 {
		t.Error("the swapped connections go on")
	}
	owner := make(map[string]string)
	for _, user := range []string{"alice", "olga"} {
		for i := range 8 {
			owner[digestName("release", user, i)] = user
		}
	}
	for _, r := range l.records("--kind", "sign") {
		for _, digest := range r.Digests {
			if want := owner[r.Key+":"+digest]; want != r.User {
				t.Errorf("%q is recorded with a signature that %q asked for", r.User, want)
			}
		}
	}
}

func (l *scene) unlockedAs(t *testing.T, user, passphrase, name string) (*client.Client, *client.Key) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), lab.Patience)
	defer cancel()
	c, err := client.Connect(ctx, &client.Config{Tunnel: l.Tunnel(user)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.Unlock(ctx, name, []byte(passphrase)); err != nil {
		t.Fatal(err)
	}
	key, err := c.Key(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	return c, key
}

// signEach signs so many documents, some at a time. The library verifies each signature that it returns.
func signEach(t *testing.T, key *client.Key, what string, count int) {
	t.Helper()
	var callers sync.WaitGroup
	for i := range count {
		callers.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 2*lab.Patience)
			defer cancel()
			digest := documentDigest(what, i)
			if _, err := key.SignContext(ctx, digest[:], crypto.SHA256); err != nil {
				var told *client.Error
				t.Errorf("document %d: %v (%t)", i, err, errors.As(err, &told))
			}
		})
		time.Sleep(time.Millisecond) // so that they do not all leave in one record
	}
	callers.Wait()
}

func documentDigest(what string, i int) [sha256.Size]byte {
	return sha256.Sum256(fmt.Appendf(nil, "%s %d", what, i))
}

func digestName(key, what string, i int) string {
	return fmt.Sprintf("%s:%x", key, documentDigest(what, i))
}
