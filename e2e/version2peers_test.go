package e2e

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chancery/e2e/lab"
)

// A bridge and a server of plain protocol version 2, written from its description alone. They are as simple
// as that protocol's own: a bridge that accepts one peer after the other, a server that serves one request
// after the other and knows one error.

// The two orders in which that protocol's headers and acks are on the wire, as a byte's place.
const (
	enumFirst       = "enum first"
	documentedOrder = "documented order"
)

const magic2 = "SIGULDRY\x00\x00\x00\x02"

// hello2 is a header. The role is 0 for a client and 1 for a server.
func hello2(order string, role byte) []byte {
	if order == enumFirst {
		return append([]byte{role}, magic2...)
	}
	return append([]byte(magic2), role)
}

// settings2 are the TLS settings of a peer of the lab: TLS 1.3 and no ALPN.
func settings2(t *testing.T, l *scene, name string) *tls.Config {
	t.Helper()
	certificate, err := tls.LoadX509KeyPair(l.Path("pki/"+name+".crt"), l.Path("pki/"+name+".key"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(l.Read("pki/ca.crt")))
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{certificate},
		RootCAs: roots, ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert,
	}
}

// bridge2 is a bridge of version 2.
type bridge2 struct {
	listeners []net.Listener
	mu        sync.Mutex
	ended     bool
	legs      map[net.Conn]bool
	stopped   chan struct{}
	all       sync.WaitGroup
}

type leg2 struct {
	conn  *tls.Conn
	order string
}

// startBridge2 takes the bridge's addresses, on which nobody may listen.
func startBridge2(t *testing.T, l *scene) *bridge2 {
	t.Helper()
	b := &bridge2{legs: make(map[net.Conn]bool), stopped: make(chan struct{})}
	settings := settings2(t, l, "bridge.lab")
	clients, servers := make(chan leg2, 128), make(chan leg2, 128)
	for role, port := range []struct {
		address string
		queue   chan leg2
	}{{l.Clients, clients}, {l.Servers, servers}} {
		listener, err := net.Listen("tcp", port.address)
		if err != nil {
			t.Fatal(err)
		}
		b.listeners = append(b.listeners, listener)
		b.all.Go(func() { b.accept(listener, settings, byte(role), port.queue) })
	}
	b.all.Go(func() { b.pair(clients, servers) })
	t.Cleanup(b.stop)
	return b
}

func (b *bridge2) stop() {
	for _, listener := range b.listeners {
		listener.Close()
	}
	b.mu.Lock()
	if !b.ended {
		b.ended = true
		close(b.stopped)
	}
	for conn := range b.legs {
		conn.Close()
	}
	b.mu.Unlock()
	b.all.Wait()
}

// accept takes one peer at a time, its handshake and header included, however long that takes.
func (b *bridge2) accept(listener net.Listener, settings *tls.Config, role byte, queue chan<- leg2) {
	for {
		raw, err := listener.Accept()
		if err != nil {
			return
		}
		b.mu.Lock()
		b.legs[raw] = true
		if b.ended {
			raw.Close()
		}
		b.mu.Unlock()
		conn := tls.Server(raw, settings)
		header := make([]byte, 13)
		if _, err := io.ReadFull(conn, header); err != nil {
			raw.Close()
			continue
		}
		order := enumFirst
		if header[0] == 'S' {
			order = documentedOrder
		}
		if !bytes.Equal(header, hello2(order, role)) {
			raw.Close()
			continue
		}
		queue <- leg2{conn, order}
	}
}

// pair sends both acks once there are two to pair.
func (b *bridge2) pair(clients, servers <-chan leg2) {
	for {
		var two [2]leg2
		for i, queue := range []<-chan leg2{clients, servers} {
			select {
			case two[i] = <-queue:
			case <-b.stopped:
				return
			}
		}
		id := make([]byte, 16)
		rand.Read(id)
		id[0], id[6], id[8] = 0x01, 0x70|id[6]&15, 0x80|id[8]&63
		var failed error
		for _, leg := range two {
			ack := append([]byte{0}, id...)
			if leg.order == documentedOrder {
				ack = append(bytes.Clone(id), 0)
			}
			_, err := leg.conn.Write(ack)
			failed = errors.Join(failed, err)
		}
		if failed != nil {
			two[0].conn.NetConn().Close()
			two[1].conn.NetConn().Close()
			continue
		}
		b.all.Go(func() { copy2(two[0].conn, two[1].conn) })
		b.all.Go(func() { copy2(two[1].conn, two[0].conn) })
	}
}

// copy2 forwards an end only if it is orderly: after any other, the peer is left alone.
func copy2(to, from *tls.Conn) {
	buffer := make([]byte, 16<<10)
	for {
		n, err := from.Read(buffer)
		if _, writeErr := to.Write(buffer[:n]); writeErr != nil {
			return
		}
		if errors.Is(err, io.EOF) {
			to.Close()
		}
		if err != nil {
			return
		}
	}
}

// key2 is a key in the server's memory.
type key2 struct {
	Name, Algorithm string
	Private         crypto.Signer
}

// server2 is a server of version 2 with two keys that alice may use.
type server2 struct {
	t        *testing.T
	settings *tls.Config
	address  string
	order    string
	keys     []key2

	signs    atomic.Int64 // requests to sign that arrived, batches included
	batches  atomic.Int64
	breaking ending // under mu, as the next
	breaks   int    // how many more requests to sign it breaks off
	stopped  chan struct{}
	all      sync.WaitGroup
	mu       sync.Mutex
	legs     map[net.Conn]bool
}

// ending is how a server breaks off instead of answering a request to sign.
type ending struct {
	reply  func(frame []byte) []byte // how much of the reply leaves
	proper bool                      // the outer session is shut down in order
}

// startServer2 keeps some connections waiting at the bridge.
func startServer2(t *testing.T, l *scene, order string) *server2 {
	t.Helper()
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsa2k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	s := &server2{
		t: t, settings: settings2(t, l, "server.lab"), address: l.Servers, order: order, stopped: make(chan struct{}),
		keys: []key2{{"release", "P256", p256}, {"kernel", "Rsa2K", rsa2k}}, legs: make(map[net.Conn]bool),
	}
	for range 3 {
		s.all.Go(s.keepLeg)
	}
	t.Cleanup(s.stop)
	return s
}

func (s *server2) stop() {
	s.mu.Lock()
	select {
	case <-s.stopped:
	default:
		close(s.stopped)
	}
	for conn := range s.legs {
		conn.Close()
	}
	s.mu.Unlock()
	s.all.Wait()
}

func (s *server2) keepLeg() {
	for {
		select {
		case <-s.stopped:
			return
		default:
		}
		if err := s.leg(); err != nil {
			time.Sleep(50 * time.Millisecond)
		}
	}
}

// track remembers a connection until it is closed.
func (s *server2) track(conn net.Conn) (forget func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.stopped:
		conn.Close()
		return nil, net.ErrClosed
	default:
	}
	s.legs[conn] = true
	return func() {
		conn.Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.legs, conn)
	}, nil
}

// leg waits at the bridge for one client and serves it.
func (s *server2) leg() error {
	raw, err := net.Dial("tcp", s.address)
	if err != nil {
		return err
	}
	forget, err := s.track(raw)
	if err != nil {
		return err
	}
	defer forget()
	settings := s.settings.Clone()
	settings.ServerName = "localhost"
	outer := tls.Client(raw, settings)
	if _, err := outer.Write(hello2(s.order, 1)); err != nil {
		return err
	}
	ack := make([]byte, 17)
	if _, err := io.ReadFull(outer, ack); err != nil {
		return err
	}
	status, id := ack[0], ack[1:]
	if s.order == documentedOrder {
		status, id = ack[16], ack[:16]
	}
	if status != 0 || id[6]>>4 != 7 {
		s.t.Errorf("ack % x", ack)
		return errors.New("refused")
	}
	inner := tls.Server(outer, s.settings)
	if err := inner.Handshake(); err != nil {
		return err
	}
	defer outer.Close()
	s.session(inner, inner.ConnectionState().PeerCertificates[0].Subject.CommonName)
	return nil
}

// breakOff lets the server break off so many requests to sign instead of answering.
func (s *server2) breakOff(times int, how ending) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.breaks, s.breaking = times, how
}

func (s *server2) breaksOff() (ending, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.breaks = max(0, s.breaks) - 1
	return s.breaking, s.breaks >= 0
}

// session answers one frame after the other.
func (s *server2) session(inner *tls.Conn, user string) {
	unlocked := make(map[string]bool)
	for {
		var length uint64
		if err := binary.Read(inner, binary.BigEndian, &length); err != nil || length > 32<<10 {
			return
		}
		if length == 0 {
			if rest, err := io.ReadAll(inner); len(rest) > 0 {
				s.t.Errorf("% x after the empty frame, %v", rest, err)
			}
			inner.Close()
			return
		}
		frame := make([]byte, length)
		if _, err := io.ReadFull(inner, frame); err != nil {
			return
		}
		reply, signs := s.answer(frame, user, unlocked)
		if signs {
			if end, breaks := s.breaksOff(); breaks {
				inner.Write(end.reply(reply))
				if !end.proper {
					inner.NetConn().(*tls.Conn).NetConn().Close()
				}
				return
			}
		}
		binary.Write(inner, binary.BigEndian, uint64(len(reply)))
		inner.Write(reply)
	}
}

// request2 has every field that version 2 knows, and no other.
type request2 struct {
	Session string `json:"session_id"`
	ID      uint64 `json:"request_id"`
	Request struct {
		WhoAmI   *struct{}                       `json:"who_am_i"`
		ListKeys *struct{}                       `json:"list_keys"`
		GetKey   *struct{ Key string }           `json:"get_key"`
		Unlock   *struct{ Key, Password string } `json:"unlock"`
		Sign     *sign2                          `json:"sign"`
		SignAll  *struct {
			Key     string
			Digests [][2]string
		} `json:"sign_all"`
	} `json:"request"`
}

type sign2 struct {
	Key       string `json:"key"`
	Algorithm string `json:"digest_algorithm"`
	Digest    string `json:"digest"`
}

var hashes2 = map[string]crypto.Hash{"Sha256": crypto.SHA256, "Sha512": crypto.SHA512, "Sha3_256": crypto.SHA3_256, "Sha3_512": crypto.SHA3_512}

type object map[string]any

// answer serves one request. What that protocol does not know is a failure of the test: the peer must not send it.
func (s *server2) answer(frame []byte, user string, unlocked map[string]bool) (reply []byte, signs bool) {
	decoder := json.NewDecoder(bytes.NewReader(frame))
	decoder.DisallowUnknownFields()
	var r request2
	var response any = "unsupported"
	if err := decoder.Decode(&r); err != nil {
		s.t.Errorf("version 2 cannot decode %s: %v", frame, err)
	} else {
		response, signs = s.serve(&r, user, unlocked)
	}
	if response == nil {
		response = object{"error": object{"reason": "internal"}}
	}
	reply, err := json.Marshal(object{"session_id": r.Session, "request_id": r.ID, "response": response})
	if err != nil {
		s.t.Error(err)
	}
	return reply, signs
}

// serve returns nil for every failure.
func (s *server2) serve(r *request2, user string, unlocked map[string]bool) (response any, signs bool) {
	q := &r.Request
	switch {
	case q.WhoAmI != nil:
		return object{"who_am_i": object{"user": user}}, false
	case q.ListKeys != nil:
		return object{"list_keys": object{"keys": []any{s.keys[0].describe(s.t), s.keys[1].describe(s.t)}}}, false
	case q.GetKey != nil:
		if k := s.key(q.GetKey.Key); k != nil {
			return object{"get_key": object{"key": k.describe(s.t)}}, false
		}
	case q.Unlock != nil:
		if s.key(q.Unlock.Key) != nil && q.Unlock.Password == lab.AlicePassphrase {
			unlocked[q.Unlock.Key] = true
			return object{"unlock": object{}}, false
		}
	case q.Sign != nil:
		s.signs.Add(1)
		if g := s.sign(q.Sign, unlocked); g != nil {
			return object{"sign": object{"signature": g}}, true
		}
	case q.SignAll != nil:
		s.signs.Add(1)
		s.batches.Add(1)
		all := []any{}
		for _, d := range q.SignAll.Digests {
			g := s.sign(&sign2{q.SignAll.Key, d[0], d[1]}, unlocked)
			if g == nil {
				return nil, false
			}
			all = append(all, g)
		}
		return object{"sign_prehashed": object{"signatures": all}}, true
	}
	return nil, false
}

func (s *server2) key(name string) *key2 {
	for i := range s.keys {
		if s.keys[i].Name == name {
			return &s.keys[i]
		}
	}
	return nil
}

func (s *server2) sign(r *sign2, unlocked map[string]bool) any {
	key, hash := s.key(r.Key), hashes2[r.Algorithm]
	digest, err := hex.DecodeString(r.Digest)
	if hash == 0 {
		s.t.Errorf("version 2 has no digest algorithm %q", r.Algorithm)
		return nil
	}
	if err != nil || key == nil || !unlocked[r.Key] || len(digest) != hash.Size() {
		return nil
	}
	signature, err := key.Private.Sign(rand.Reader, digest, hash)
	if err != nil {
		s.t.Error(err)
		return nil
	}
	tag := map[string]string{"P256": "P256", "Rsa2K": "RSA"}[key.Algorithm]
	return object{"signature": object{tag: base64.StdEncoding.EncodeToString(signature)}, "digest": r.Algorithm, "hash": r.Digest}
}

func (k *key2) describe(t *testing.T) any {
	der, err := x509.MarshalPKIXPublicKey(k.Private.Public())
	if err != nil {
		t.Error(err)
	}
	return object{
		"name": k.Name, "key_algorithm": k.Algorithm, "handle": fmt.Sprintf("%X", sha256.Sum256(der)),
		"public_key":   string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})),
		"certificates": []any{},
	}
}
