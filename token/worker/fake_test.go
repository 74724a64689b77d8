package worker

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"chancery/token"
)

// fakeConfig says how a fake token behaves. What it must remember stands in files, so that a test sees them.
type fakeConfig struct {
	Dir   string        // "pin": the PIN; "key": the key; "attempts": each PIN that it was sent
	Open  string        // "hang", "fail"
	Slots int           // default 8
	Login time.Duration // that a login takes
	Stuck bool          // Close does not return
	PINs  string        // directory of a guard around it
}

// fake is a token with one P-256 key that misbehaves as the beginning of a digest says: "hang", "panic", "abort", "lose" (the
// login), "corrupt", "slow", "once" (corrupt once).
type fake struct {
	cfg fakeConfig
	key *ecdsa.PrivateKey

	mu       sync.Mutex
	loggedIn bool
	onced    bool
	logins   atomic.Int32 // under way
}

const (
	fakeSerial = "fake-1"
	rightPIN   = "123456"
)

func newFakeHome(t testing.TB, cfg fakeConfig) (specification, home) {
	t.Helper()
	cfg.Dir = t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"key": der, "pin": []byte(rightPIN), "attempts": nil} {
		if err := os.WriteFile(filepath.Join(cfg.Dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h := home{serial: fakeSerial, pin: rightPIN, dir: cfg.Dir, keys: []token.KeyInfo{{ID: []byte{1}, Algorithm: token.P256, Public: &key.PublicKey}}}
	return specification{Driver: "fake", Fake: cfg}, h
}

func openFake(cfg fakeConfig) (*fake, error) {
	switch cfg.Open {
	case "hang":
		select {}
	case "fail":
		return nil, fmt.Errorf("fake: %w", token.ErrTokenAbsent)
	}
	der, err := os.ReadFile(filepath.Join(cfg.Dir, "key"))
	if err != nil {
		return nil, err
	}
	key, err := x509.ParseECPrivateKey(der)
	return &fake{cfg: cfg, key: key}, err
}

// attempts are the PINs that a fake was sent.
func (h home) attempts(t testing.TB) []string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(h.dir, "attempts"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(data))
}

func (h home) setPIN(t testing.TB, pin string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(h.dir, "pin"), []byte(pin), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (f *fake) Info(context.Context) (token.Info, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	slots := f.cfg.Slots
	if slots == 0 {
		slots = 8
	}
	return token.Info{Driver: "fake", Serial: fakeSerial, LoggedIn: f.loggedIn, MaxSessions: slots, Algorithms: []token.Algorithm{token.P256}}, nil
}

func (f *fake) Login(_ context.Context, pin []byte) error {
	if f.logins.Add(1) > 1 {
		panic("two logins at once")
	}
	defer f.logins.Add(-1)
	time.Sleep(f.cfg.Login)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.loggedIn {
		return nil
	}
	file, err := os.OpenFile(filepath.Join(f.cfg.Dir, "attempts"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	fmt.Fprintf(file, "%s\n", pin)
	right, err := os.ReadFile(filepath.Join(f.cfg.Dir, "pin"))
	if err != nil {
		return err
	}
	if !bytes.Equal(right, pin) {
		return fmt.Errorf("fake: %w", token.ErrPINIncorrect)
	}
	f.loggedIn = true
	return nil
}

func (f *fake) Logout(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.loggedIn = false
	return nil
}

func (f *fake) Keys(context.Context) ([]token.KeyInfo, error) {
	return []token.KeyInfo{{ID: []byte{1}, Label: "key", Algorithm: token.P256, Public: &f.key.PublicKey}}, nil
}

func (f *fake) Key(_ context.Context, id []byte) (token.Key, error) {
	if !bytes.Equal(id, []byte{1}) {
		return nil, token.ErrNoKey
	}
	return &fakeKey{f}, nil
}

func (f *fake) Generate(context.Context, token.KeySpec) (token.Key, error) {
	return nil, token.ErrUnsupported
}

func (f *fake) Import(context.Context, token.KeySpec, crypto.PrivateKey) (token.Key, error) {
	return nil, token.ErrUnsupported
}

func (f *fake) Destroy(context.Context, []byte) error           { return token.ErrUnsupported }
func (f *fake) ChangePIN(context.Context, []byte, []byte) error { return token.ErrUnsupported }

func (f *fake) Close() error {
	if f.cfg.Stuck {
		select {}
	}
	return nil
}

type fakeKey struct{ fake *fake }

func (k *fakeKey) ID() []byte                 { return []byte{1} }
func (k *fakeKey) Algorithm() token.Algorithm { return token.P256 }
func (k *fakeKey) Public() crypto.PublicKey   { return &k.fake.key.PublicKey }

func (k *fakeKey) Sign(_ context.Context, digest []byte, options crypto.SignerOpts) ([]byte, error) {
	f := k.fake
	command, _, _ := strings.Cut(string(digest), ":")
	corrupt := false
	f.mu.Lock()
	switch command {
	case "lose":
		if !f.onced {
			f.onced, f.loggedIn = true, false
		}
	case "once":
		corrupt = !f.onced
		f.onced = true
	}
	loggedIn := f.loggedIn
	f.mu.Unlock()
	switch command {
	case "hang":
		select {}
	case "panic":
		panic("as commanded")
	case "abort":
		_ = syscall.Kill(syscall.Getpid(), syscall.SIGABRT)
		select {}
	case "slow":
		time.Sleep(30 * time.Millisecond)
	case "corrupt":
		corrupt = true
	}
	if !loggedIn {
		return nil, fmt.Errorf("fake: %w", token.ErrLoginRequired)
	}
	signature, err := k.fake.key.Sign(rand.Reader, digest, options)
	if corrupt && err == nil {
		signature[len(signature)-1] ^= 1
	}
	return signature, err
}

// command is a digest that tells a fake to misbehave.
func command(name string) []byte {
	digest := make([]byte, crypto.SHA256.Size())
	copy(digest, name+":")
	return digest
}
