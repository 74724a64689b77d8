package canary_test

import (
	"context"
	"crypto"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"chancery/access"
	"chancery/admin"
	"chancery/audit"
	"chancery/internal/canary"
	"chancery/internal/observe"
	"chancery/signer"
	"chancery/token"
	"chancery/token/soft"
	"chancery/token/worker"
	"chancery/tunnel/wire"
	"chancery/users"
	"chancery/users/sqlite"
)

const (
	patience   = 20 * time.Second
	passphrase = "the canary sings alone"
	tokenPIN   = "mine-314159"
)

// mine is a running server with a soft token, and a key of each of some algorithms granted to the user canary.
type mine struct {
	store  *sqlite.Store
	server *signer.Server
	gate   *canary.Gate
	fault  fault
}

// fault is what the token does wrong.
type fault struct {
	hanging chan struct{} // signatures wait until it is closed; nil: none do
	lies    atomic.Bool   // signatures are altered
	begun   atomic.Int32  // signatures
	mu      sync.Mutex
}

func (f *fault) hang() (release func()) {
	until := make(chan struct{})
	f.mu.Lock()
	f.hanging = until
	f.mu.Unlock()
	return sync.OnceFunc(func() {
		f.mu.Lock()
		f.hanging = nil
		f.mu.Unlock()
		close(until)
	})
}

type faultyToken struct {
	token.Token
	fault *fault
}

func (t faultyToken) Key(ctx context.Context, id []byte) (token.Key, error) {
	key, err := t.Token.Key(ctx, id)
	return faultyKey{key, t.fault}, err
}

type faultyKey struct {
	token.Key
	fault *fault
}

func (k faultyKey) Sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	k.fault.begun.Add(1)
	k.fault.mu.Lock()
	hanging := k.fault.hanging
	k.fault.mu.Unlock()
	if hanging != nil {
		<-hanging // heeds no context, as C_Sign
	}
	signature, err := k.Key.Sign(ctx, digest, opts)
	if err == nil && k.fault.lies.Load() {
		signature[len(signature)-1] ^= 1
	}
	return signature, err
}

func newMine(t *testing.T, algorithms ...token.Algorithm) *mine {
	t.Helper()
	m := &mine{gate: canary.NewGate()}
	directory := t.TempDir()
	m.populate(t, directory, algorithms)
	records, err := audit.Open(audit.Config{Directory: filepath.Join(directory, "audit")})
	if err != nil {
		t.Fatal(err)
	}
	m.server, err = signer.New(signer.Config{
		Store: m.store, Audit: records, Log: slog.New(slog.DiscardHandler), PollEvery: 5 * time.Millisecond, FailurePause: time.Millisecond,
		Open: func(_ context.Context, record users.Token) (worker.Handler, error) {
			opened, err := soft.Open(record.Location)
			if err != nil {
				return nil, err
			}
			return worker.NewVault(faultyToken{opened, &m.fault}, slog.New(slog.DiscardHandler)), nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() {
		served <- m.server.Serve(ctx, func(ctx context.Context) (signer.Conn, error) {
			select {
			case conn := <-m.gate.Arriving():
				return conn, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		})
	}()
	t.Cleanup(func() {
		stop()
		if err := errors.Join(<-served, records.Close(), m.store.Close()); err != nil {
			t.Error(err)
		}
	})
	m.ready(t)
	return m
}

// populate registers the token, the user and a key named after each algorithm.
func (m *mine) populate(t *testing.T, directory string, algorithms []token.Algorithm) {
	t.Helper()
	ctx := t.Context()
	store, err := sqlite.Open(ctx, filepath.Join(directory, "chancery.db"))
	if err != nil {
		t.Fatal(err)
	}
	m.store = store
	if _, err := store.AddUser(ctx, "canary"); err != nil {
		t.Fatal(err)
	}
	location := filepath.Join(directory, "token")
	if err := soft.Create(location, "mine", []byte(tokenPIN)); err != nil {
		t.Fatal(err)
	}
	office := &admin.Office{
		Store: store, Parameters: cheap,
		Open: func(_ context.Context, record users.Token) (token.Token, error) { return soft.Open(record.Location) },
	}
	spec := admin.TokenSpec{Name: "mine", Driver: "soft", Location: location}
	if _, err := office.AddToken(ctx, spec, []byte(tokenPIN), admin.Grantee{User: "canary", Passphrase: []byte(passphrase)}); err != nil {
		t.Fatal(err)
	}
	for _, algorithm := range algorithms {
		actor := admin.Actor{User: "canary", Passphrase: []byte(passphrase)}
		if _, err := office.CreateKey(ctx, actor, admin.KeySpec{Name: string(algorithm), Token: "mine"}, algorithm); err != nil {
			t.Fatal(err)
		}
	}
}

func cheap() access.Parameters {
	p := access.NewParameters()
	p.Time, p.MemoryKiB, p.Threads = access.MinTime, access.MinMemoryKiB, 1
	return p
}

// ready waits until the token is open.
func (m *mine) ready(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if tokens := m.server.Status().Tokens; len(tokens) == 1 && tokens[0].State == signer.StateReady {
			return
		}
	}
	t.Fatal("the token did not open")
}

func (m *mine) canary(t *testing.T, key string, change ...func(*canary.Config)) *canary.Canary {
	t.Helper()
	cfg := canary.Config{
		User: "canary", Key: key, Accept: m.gate.Accept, Deadline: patience,
		Passphrase: func() ([]byte, error) { return []byte(passphrase), nil },
	}
	for _, c := range change {
		c(&cfg)
	}
	bird := canary.New(cfg)
	t.Cleanup(bird.Close)
	return bird
}

func sign(t *testing.T, c *canary.Canary) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return c.Sign(ctx)
}

func TestSignsWithEveryAlgorithm(t *testing.T) {
	algorithms := []token.Algorithm{token.P256, token.P384, token.P521, token.Ed25519, token.RSA2048}
	m := newMine(t, algorithms...)
	for _, algorithm := range algorithms {
		c := m.canary(t, string(algorithm))
		for range 2 {
			if err := sign(t, c); err != nil {
				t.Errorf("%s: %v", algorithm, err)
			}
		}
	}
	if n := m.server.Status().Sessions; n != len(algorithms) {
		t.Errorf("%d sessions for %d canaries: each keeps its own", n, len(algorithms))
	}
}

func TestUnlocksAgainAfterTheTokenWasOpenedAnew(t *testing.T) {
	m := newMine(t, token.P256)
	c := m.canary(t, "p256")
	for range 3 {
		if err := sign(t, c); err != nil {
			t.Fatal(err)
		}
		m.server.Reopen()
		m.ready(t)
	}
}

func TestNoticesLies(t *testing.T) {
	m := newMine(t, token.P256)
	c := m.canary(t, "p256")
	m.fault.lies.Store(true)
	if err := sign(t, c); err == nil {
		t.Error("a wrong signature was taken for a good one")
	}
	m.fault.lies.Store(false)
	if err := sign(t, c); err != nil {
		t.Error(err)
	}
}

func TestFailures(t *testing.T) {
	m := newMine(t, token.P256)
	wrong := func(c *canary.Config) {
		c.Passphrase = func() ([]byte, error) { return []byte("not the passphrase"), nil }
	}
	c := m.canary(t, "p256", wrong)
	err := sign(t, c)
	if !errors.Is(err, wire.NewError(wire.CodeWrongPassphrase)) {
		t.Errorf("a wrong passphrase: %v", err)
	} else if got := strings.Count(err.Error(), `key "p256": `); got != 1 {
		t.Errorf("it names the key %d times: %v", got, err)
	}
	if err := sign(t, c); !errors.Is(err, canary.ErrSilenced) {
		t.Errorf("right after it: %v", err)
	}
	if err := sign(t, m.canary(t, "nothing")); !errors.Is(err, wire.NewError(wire.CodeNoSuchKey)) {
		t.Errorf("an unknown key: %v", err)
	}
	if err := sign(t, m.canary(t, "p256", func(c *canary.Config) { c.User = "nobody" })); err == nil {
		t.Error("an unknown user was served")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	full := m.canary(t, "p256", func(c *canary.Config) { c.Accept = canary.NewGate().Accept }) // nobody accepts there
	if err := full.Sign(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a server that accepts nobody: %v", err)
	}
}

// TestHangingToken asks for readiness again and again while the token hangs: each question gets its answer in time, and
// the token has one signature of the canary's to make, not one for each question.
func TestHangingToken(t *testing.T) {
	m := newMine(t, token.P256)
	c := m.canary(t, "p256", func(c *canary.Config) { c.Deadline = 50 * time.Millisecond })
	page := observe.Page{
		Registry: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler),
		Ready: []observe.Check{{Name: "canary", Probe: c.Sign, Deadline: 500 * time.Millisecond}},
	}.Handler()
	ask := func() (int, string) {
		recorder := httptest.NewRecorder()
		page.ServeHTTP(recorder, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/readyz", http.NoBody))
		return recorder.Code, recorder.Body.String()
	}
	if err := sign(t, c); err != nil {
		t.Fatal(err)
	}
	release := m.fault.hang()
	defer release()
	for range 5 {
		if status, body := ask(); status != http.StatusServiceUnavailable || !strings.Contains(body, "canary: failed: no answer within 500ms") {
			t.Errorf("while the token hangs: %d %s", status, body)
		}
	}
	if n := m.fault.begun.Load(); n != 2 {
		t.Errorf("the token was asked for %d signatures beside the first", n-1)
	}
	release()
	status, body := 0, ""
	for deadline := time.Now().Add(patience); time.Now().Before(deadline) && status != http.StatusOK; time.Sleep(10 * time.Millisecond) {
		status, body = ask()
	}
	if status != http.StatusOK {
		t.Errorf("after the token came back: %d %s", status, body)
	}
}
