package certfile_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/internal/certfile"
	"chancery/pki"
	"chancery/tunnel"
)

// journal is a tunnel.Logger that keeps what was logged.
type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) add(msg string, args []any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, arg := range args {
		if text, ok := arg.(string); ok {
			msg += " " + text
		}
	}
	j.lines = append(j.lines, msg)
}

func (j *journal) Debug(msg string, args ...any) { j.add(msg, args) }
func (j *journal) Info(msg string, args ...any)  { j.add(msg, args) }
func (j *journal) Warn(msg string, args ...any)  { j.add(msg, args) }
func (j *journal) Error(msg string, args ...any) { j.add(msg, args) }

func (j *journal) count(text string) (n int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, line := range j.lines {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

// watched is a Live that is being watched.
type watched struct {
	*certfile.Live
	t       *testing.T
	log     *journal
	changes chan struct{}
}

func watch(t *testing.T, files certfile.Files) *watched {
	t.Helper()
	log := &journal{}
	live, err := certfile.Open(files, log)
	if err != nil {
		t.Fatal(err)
	}
	w := &watched{Live: live, t: t, log: log, changes: make(chan struct{}, 100)}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		live.Watch(ctx, 5*time.Millisecond, func() { w.changes <- struct{}{} })
	}()
	t.Cleanup(func() { stop(); <-done })
	return w
}

func (w *watched) changed() {
	w.t.Helper()
	select {
	case <-w.changes:
	case <-time.After(10 * time.Second):
		w.t.Fatal("no change within 10 s")
	}
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if condition() {
			return
		}
	}
	t.Fatalf("waited in vain until %s", what)
}

// read returns a file's content.
func read(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func TestWatchRenewal(t *testing.T) {
	o := newOffice(t)
	files, renewed := o.client("alice"), o.client("renewed")
	w := watch(t, files)
	first := w.Identity().Leaf()
	write(t, files.Key, read(t, renewed.Key))
	eventually(t, "the mismatch is logged", func() bool { return w.log.count("does not belong to") == 1 })
	if !w.Identity().Leaf().Equal(first) {
		t.Fatal("a set that does not fit together came into use")
	}
	time.Sleep(50 * time.Millisecond)
	if n := w.log.count("does not belong to"); n != 1 {
		t.Errorf("the mismatch is logged %d times", n)
	}
	write(t, files.Certificate, read(t, renewed.Certificate))
	w.changed()
	if !w.Identity().Leaf().Equal(load(t, renewed).Leaf()) {
		t.Error("the new certificate is not in use")
	}
	if w.log.count("certificates loaded again name renewed serial") != 1 {
		t.Errorf("the change is not logged: %q", w.log.lines)
	}
}

// TestHalfWritten follows a CA file that is written piece by piece.
func TestHalfWritten(t *testing.T) {
	o, added := newOffice(t), newOffice(t)
	files := o.client("alice")
	w := watch(t, files)
	whole := append(o.ca.CertificatePEM(), added.ca.CertificatePEM()...)
	for _, end := range []int{0, 100, len(whole) - 200} {
		if err := os.WriteFile(files.CA, whole[:end], 0o600); err != nil {
			t.Fatal(err)
		}
		before := w.Identity()
		if err := w.Reload(); !errors.Is(err, certfile.ErrUnusable) || w.Identity() != before {
			t.Fatalf("%d bytes of %d came into use: %v", end, len(whole), err)
		}
	}
	if err := os.Remove(files.CA); err != nil {
		t.Fatal(err)
	}
	if err := w.Reload(); !errors.Is(err, certfile.ErrUnusable) {
		t.Fatalf("without a CA file: %v", err)
	}
	write(t, files.CA, whole)
	w.changed()
	stranger := load(t, added.client("stranger"))
	if accepted, _ := shake(t, w.Identity().BridgeServer(), stranger.OuterDialer("any")); accepted == nil || strings.Contains(accepted.Error(), "unknown authority") {
		t.Errorf("the added CA is not trusted: %v", accepted)
	}
}

// TestModeIsNoticed mends what a change of content does not show.
func TestModeIsNoticed(t *testing.T) {
	o := newOffice(t)
	files := o.client("alice")
	w := watch(t, files)
	if err := os.Chmod(files.Key, 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the mode is complained about", func() bool { return w.log.count("chmod 600") == 1 })
	if err := os.Chmod(files.Key, 0o600); err != nil {
		t.Fatal(err)
	}
	w.changed()
}

func TestWatchRevocation(t *testing.T) {
	o := newOffice(t)
	files, mallory := o.bridge(), load(t, o.client("mallory"))
	files.CRLs = []string{write(t, o.crl, o.list(nil))}
	w := watch(t, files)
	let := func() error {
		accepted, _ := shake(t, w.Identity().BridgeServer(), mallory.OuterDialer("bridge.test"))
		return accepted
	}
	if err := let(); err != nil {
		t.Fatal(err)
	}
	write(t, o.crl, toPEM(o.list(nil, mallory.Leaf())))
	w.changed()
	if err := let(); !errors.Is(err, tunnel.ErrRevoked) {
		t.Fatalf("after the revocation: %v", err)
	}
	write(t, o.crl, []byte("no list"))
	eventually(t, "the damage is logged", func() bool { return w.log.count("certificate revocation list in") == 1 })
	if err := let(); !errors.Is(err, tunnel.ErrRevoked) {
		t.Fatalf("with a damaged list: %v", err)
	}
}

// TestRevocationDespiteBadRenewal holds that a renewal that went wrong does not
// keep a new revocation list from its effect.
func TestRevocationDespiteBadRenewal(t *testing.T) {
	o := newOffice(t)
	files, mallory := o.bridge(), load(t, o.client("mallory"))
	files.CRLs = []string{write(t, o.crl, o.list(nil))}
	w := watch(t, files)
	write(t, files.Key, read(t, o.client("other").Key))
	eventually(t, "the mismatch is logged", func() bool { return w.log.count("does not belong to") == 1 })
	write(t, o.crl, o.list(nil, mallory.Leaf()))
	w.changed()
	if accepted, _ := shake(t, w.Identity().BridgeServer(), mallory.OuterDialer("bridge.test")); !errors.Is(accepted, tunnel.ErrRevoked) {
		t.Errorf("the bridge says %v", accepted)
	}
}

// TestTypedPassphrase renews the certificate of a key whose passphrase was
// typed: nobody may be asked again.
func TestTypedPassphrase(t *testing.T) {
	o := newOffice(t)
	files := o.client("alice")
	protected := files.Key + ".protected"
	openssl(t, "pkcs8", "-topk8", "-passout", "pass:open sesame", "-in", files.Key, "-out", protected)
	if err := os.Chmod(protected, 0o600); err != nil {
		t.Fatal(err)
	}
	asked := 0
	files.Key, files.Interactive = protected, true
	files.Passphrase = func() ([]byte, error) { asked++; return []byte("open sesame"), nil }
	live, err := certfile.Open(files, &journal{})
	if err != nil {
		t.Fatal(err)
	}
	if err := live.Reload(); err != nil || asked != 1 {
		t.Fatalf("%v, asked %d times", err, asked)
	}
	openssl(t, "pkcs8", "-topk8", "-passin", "pass:open sesame", "-passout", "pass:open sesame", "-in", protected, "-out", protected+"2")
	write(t, protected, read(t, protected+"2"))
	if err := live.Reload(); err == nil || !strings.Contains(err.Error(), "restart it to use the new key") || asked != 1 {
		t.Fatalf("%v, asked %d times", err, asked)
	}
}

func TestOpenWarns(t *testing.T) {
	o := newOffice(t)
	log := &journal{}
	if _, err := certfile.Open(o.issue(pki.Request{Kind: pki.Client, CommonName: "alice", Validity: 24 * time.Hour}), log); err != nil {
		t.Fatal(err)
	}
	if log.count("expires on") != 1 {
		t.Errorf("logged %q", log.lines)
	}
	if _, err := certfile.Open(certfile.Files{}, log); !errors.Is(err, certfile.ErrUnusable) {
		t.Errorf("without files: %v", err)
	}
}
