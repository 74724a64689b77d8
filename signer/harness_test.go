package signer

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"chancery/access"
	"chancery/token"
	"chancery/tunnel"
	"chancery/tunnel/wire"
	"chancery/users"
)

const (
	passphrase = "correct-horse-battery"
	tokenPIN   = "pin-987654"
	patience   = 20 * time.Second
)

// accessKey is derived once: Argon2id is slow on purpose.
var accessKey = sync.OnceValue(func() *access.Key {
	key, err := access.DeriveKey([]byte(passphrase), cheapParameters())
	if err != nil {
		panic(err)
	}
	return key
})

func cheapParameters() access.Parameters {
	p := access.NewParameters()
	p.Time, p.MemoryKiB, p.Threads = access.MinTime, access.MinMemoryKiB, 1
	return p
}

// world is a server with one token and a key of each algorithm, named after it,
// all granted to alice; bob has no grant, mallory is disabled.
type world struct {
	t      testing.TB
	token  *fakeToken
	keys   map[token.Algorithm]*fakeKey
	store  *fakeStore
	audit  *fakeAudit
	server *Server
	logs   *lockedBuffer
	conns  chan Conn
	ctx    context.Context
	stop   context.CancelFunc
	served chan error
}

// newWorld starts a server, after adjust has altered what the defaults are here.
// When the test ends, the server must end too, leave no goroutine behind, and
// have written no secret to its log.
func newWorld(t *testing.T, adjust ...func(*world, *Config)) *world {
	t.Helper()
	privateKeys()
	accessKey()
	before := runtime.NumGoroutine()
	w := &world{
		t: t, token: &fakeToken{serial: "S1", pin: tokenPIN}, keys: map[token.Algorithm]*fakeKey{},
		store: &fakeStore{revision: 1}, audit: &fakeAudit{}, logs: &lockedBuffer{}, conns: make(chan Conn), served: make(chan error, 1),
	}
	w.populate()
	cfg := Config{
		Store: w.store, Open: w.token.open, Audit: w.audit, Log: slog.New(slog.NewTextHandler(w.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
		PollEvery: 2 * time.Millisecond, FailurePause: time.Millisecond, ReopenMin: 2 * time.Millisecond, ReopenMax: 10 * time.Millisecond,
	}
	for _, change := range adjust {
		change(w, &cfg)
	}
	server, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	server.decoy = cheapParameters()
	w.server = server
	w.ctx, w.stop = context.WithCancel(context.Background())
	go func() { w.served <- server.Serve(w.ctx, w.accept) }()
	t.Cleanup(func() { w.end(before) })
	return w
}

func (w *world) populate() {
	now := time.Now()
	w.store.users = []users.User{{ID: 1, Name: "alice"}, {ID: 2, Name: "bob"}, {ID: 3, Name: "mallory", Disabled: true}}
	w.store.tokens = []users.Token{{ID: 1, Name: "hsm", Serial: "S1", Hardware: true, PINVersion: 1, CreatedAt: now}}
	for i, a := range token.Algorithms() {
		id := int64(i + 1)
		k := &fakeKey{id: []byte{byte(id)}, algorithm: a, private: privateKeys()[a]}
		w.keys[a] = k
		w.token.keys = append(w.token.keys, k)
		der := spki(k.Public())
		w.store.keys = append(w.store.keys, users.Key{
			ID: id, Name: string(a), TokenID: 1, TokenKeyID: k.id, Algorithm: a, Public: der, Handle: wire.Handle(der),
			Certificates: []users.Certificate{{ID: id, KeyID: id, Kind: users.CertificateX509, Name: string(a) + "-x509", Fingerprint: "AB", Armored: "PEM\n"}},
		})
		w.store.grants = append(w.store.grants, w.grant(id, tokenPIN))
	}
}

// grant wraps a PIN for alice and the key with this ID.
func (w *world) grant(keyID int64, pin string) users.Grant {
	g := users.Grant{ID: keyID, UserID: 1, TokenID: 1, KeyID: keyID, Role: users.RoleSigner, Generation: 1, PINVersion: 1, Access: accessKey().Public()}
	g.Wrapped = w.wrap(g, pin)
	return g
}

func (w *world) wrap(g users.Grant, pin string) []byte {
	w.t.Helper()
	return wrapFor(w.t, "S1", w.store.keys[g.KeyID-1].Handle, string(g.Role), pin)
}

func (w *world) accept(ctx context.Context) (Conn, error) {
	select {
	case conn := <-w.conns:
		return conn, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// change alters the store and waits until the server has seen it.
func (w *world) change(how func(*fakeStore)) {
	w.t.Helper()
	w.store.mu.Lock()
	how(w.store)
	w.store.revision++
	want := w.store.revision
	w.store.mu.Unlock()
	w.eventually("the change to be seen", func() bool { return w.server.Status().Revision >= want })
}

func (w *world) eventually(what string, done func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(patience); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("waited in vain for %s; log:\n%s", what, w.logs)
		}
	}
}

func (w *world) awaitToken(state string) {
	w.t.Helper()
	w.eventually("the token to be "+state, func() bool {
		tokens := w.server.Status().Tokens
		return len(tokens) == 1 && tokens[0].State == state
	})
}

func (w *world) awaitLog(text string) {
	w.t.Helper()
	w.eventually("the log to say "+text, func() bool { return strings.Contains(w.logs.String(), text) })
}

func (w *world) end(goroutines int) {
	w.stop()
	select {
	case err := <-w.served:
		if err != nil {
			w.t.Errorf("Serve = %v", err)
		}
	case <-time.After(patience):
		w.t.Errorf("Serve did not return; log:\n%s", w.logs)
		return
	}
	for deadline := time.Now().Add(patience); runtime.NumGoroutine() > goroutines; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<16)
			w.t.Fatalf("goroutines were left behind:\n%s", stacks[:runtime.Stack(stacks, true)])
		}
	}
	for _, secret := range []string{passphrase, tokenPIN, "wrong-passphrase"} {
		if strings.Contains(w.logs.String(), secret) {
			w.t.Errorf("the log holds the secret %q:\n%s", secret, w.logs)
		}
		if strings.Contains(w.audit.text(), secret) {
			w.t.Errorf("the audit log holds the secret %q:\n%s", secret, w.audit.text())
		}
	}
}

// fakeConn is one end of a pipe with a name on it.
type fakeConn struct {
	net.Conn
	name     string
	session  tunnel.SessionID
	extended bool
}

func (c *fakeConn) PeerName() string { return c.name }

func (c *fakeConn) Session() tunnel.SessionID { return c.session }

func (c *fakeConn) PeerCertificate() *x509.Certificate { return clientCertificate() }

func (c *fakeConn) Extended() bool { return c.extended }

// client is the other end.
type client struct {
	t       testing.TB
	conn    net.Conn
	frames  *wire.Reader
	session uuid.UUID
	nextID  uint64
}

func (w *world) connect(name string, extended bool) *client {
	w.t.Helper()
	near, far := net.Pipe()
	id := tunnel.NewSessionID()
	select {
	case w.conns <- &fakeConn{Conn: far, name: name, session: id, extended: extended}:
	case <-time.After(patience):
		w.t.Fatal("the server accepts no client")
	}
	_ = near.SetDeadline(time.Now().Add(patience))
	w.t.Cleanup(func() { near.Close() })
	return &client{t: w.t, conn: near, frames: wire.NewReader(near, wire.MaxResponse), session: uuid.UUID(id)}
}

// unlockedClient returns alice's chancery/1 connection with the named keys open.
func (w *world) unlockedClient(keys ...string) *client {
	w.t.Helper()
	w.awaitToken(StateReady)
	c := w.connect("alice", true)
	for _, key := range keys {
		want[*wire.UnlockReply](c, c.call(unlockRequest(key, passphrase)))
	}
	return c
}

func unlockRequest(key, password string) *wire.Unlock {
	return &wire.Unlock{Key: key, Password: wire.NewSecret([]byte(password))}
}

// encode appends a request as a frame and returns its id.
func (c *client) encode(dst []byte, body wire.RequestBody) ([]byte, uint64) {
	id := c.nextID
	c.nextID++
	return wire.AppendFrame(dst, wire.AppendRequest(nil, &wire.Request{Session: c.session, ID: id, Body: body})), id
}

func (c *client) send(body wire.RequestBody) uint64 {
	c.t.Helper()
	frame, id := c.encode(nil, body)
	c.write(frame)
	return id
}

func (c *client) write(b []byte) {
	c.t.Helper()
	if _, err := c.conn.Write(b); err != nil {
		c.t.Fatalf("write: %v", err)
	}
}

func (c *client) receive() *wire.Response {
	c.t.Helper()
	frame, err := c.frames.Next()
	if err != nil {
		c.t.Fatalf("receive: %v", err)
	}
	response, err := wire.DecodeResponse(frame)
	if err != nil {
		c.t.Fatal(err)
	}
	return response
}

func (c *client) call(body wire.RequestBody) wire.ResponseBody {
	c.t.Helper()
	id := c.send(body)
	response := c.receive()
	if response.ID != id || response.Session != c.session {
		c.t.Fatalf("answer %d of session %s to request %d of %s", response.ID, response.Session, id, c.session)
	}
	return response.Body
}

// want asserts the kind of an answer.
func want[T wire.ResponseBody](c *client, body wire.ResponseBody) T {
	c.t.Helper()
	got, ok := body.(T)
	if !ok {
		c.t.Fatalf("answer %T %v, want %T", body, body, got)
	}
	return got
}

func (c *client) refused(body wire.RequestBody, code wire.Code) *wire.Error {
	c.t.Helper()
	got := want[*wire.Error](c, c.call(body))
	if got.Code != code {
		c.t.Fatalf("refused with %s (%s), want %s", got.Code, got.Message, code)
	}
	return got
}

// closed asserts that the server ends the connection without another byte.
func (c *client) closed() {
	c.t.Helper()
	rest, err := io.ReadAll(c.conn)
	if len(rest) > 0 || err != nil && !errors.Is(err, io.ErrClosedPipe) {
		c.t.Fatalf("got %q and %v, want the end", rest, err)
	}
}

// cut ends the session at once, as a connection that breaks does: by a frame that is too large.
func (c *client) cut() { c.write([]byte("\xff\xff\xff\xff\xff\xff\xff\xff")) }

func digestOf(a wire.DigestAlgorithm, text string) wire.Digest {
	hash := a.Hash().New()
	fmt.Fprint(hash, text)
	return wire.NewDigest(a, hash.Sum(nil))
}

func signRequest(key string) *wire.Sign {
	return &wire.Sign{Key: key, Digest: digestOf(wire.SHA256, "text")}
}

type lockedBuffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}

// wrapFor wraps a PIN for alice under any token and key.
func wrapFor(t testing.TB, serial, handle, role, pin string) []byte {
	t.Helper()
	wrapped, err := access.Wrap([]byte(pin), accessKey().Public(), access.Binding{TokenSerial: serial, KeyHandle: handle, User: "alice", Role: role})
	if err != nil {
		t.Fatal(err)
	}
	return wrapped
}
