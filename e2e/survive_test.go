package e2e

import (
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/certfile"
	"chancery/tunnel"
	"chancery/tunnel/wire"
)

// connect opens a client of the library's for alice, inside this process.
func (l *lab) connect(t testing.TB) *client.Client {
	t.Helper()
	identity, _, err := certfile.Load(certfile.Files{CA: l.path("pki/ca.crt"), Certificate: l.path("pki/alice.crt"), Key: l.path("pki/alice.key")})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := client.Connect(ctx, &client.Config{Tunnel: &tunnel.Config{
		Bridge: l.clients, Outer: identity.OuterDialer("localhost"), Inner: identity.InnerDialer("server.lab"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func (l *lab) unlocked(t testing.TB, name string) (*client.Client, *client.Key) {
	t.Helper()
	c := l.connect(t)
	if err := c.Unlock(t.Context(), name, []byte(alicePassphrase)); err != nil {
		t.Fatal(err)
	}
	key, err := c.Key(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return c, key
}

// TestRevocationHoldsInALiveSession revokes in one process what another has unlocked:
// when the command ends, not one more signature is made.
func TestRevocationHoldsInALiveSession(t *testing.T) {
	digest := sha256.Sum256([]byte("x"))
	for _, c := range []struct {
		name     string
		command  []string
		code     wire.Code
		restores []string
	}{
		{"key disabled", []string{"key", "disable", "release"}, wire.CodeKeyDisabled, []string{"key", "enable", "release"}},
		{"user disabled", []string{"user", "disable", "alice"}, wire.CodeUserDisabled, []string{"user", "enable", "alice"}},
		{"grant revoked", []string{"grant", "revoke", "release", "alice", "--yes"}, wire.CodeNoSuchKey, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t, drivers()[0])
			l.createKey("release", "p256")
			l.serve()
			_, key := l.unlocked(t, "release")
			if _, err := key.SignContext(t.Context(), digest[:], crypto.SHA256); err != nil {
				t.Fatal(err)
			}
			l.operator(c.command...)
			_, err := key.SignContext(t.Context(), digest[:], crypto.SHA256)
			var told *client.Error
			if !errors.As(err, &told) || told.Code != c.code && told.Code != wire.CodeNotUnlocked {
				t.Fatalf("after %v the live session answers %v", c.command, err)
			}
			if c.restores == nil {
				return
			}
			l.operator(c.restores...)
			if _, err := key.SignContext(t.Context(), digest[:], crypto.SHA256); err != nil {
				t.Errorf("after %v: %v", c.restores, err)
			}
		})
	}
}

// TestBridgeAndServerRestartUnderLoad kills one program after the other while eight callers
// share one client. Each caller repeats what was interrupted, knowingly; nothing else may fail.
func TestBridgeAndServerRestartUnderLoad(t *testing.T) {
	l := newLab(t, drivers()[0])
	l.createKey("release", "p256")
	l.serve()
	_, key := l.unlocked(t, "release")
	var signed, interrupted atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() { signUntilDone(ctx, t, key, &signed, &interrupted) })
	}
	waitForMore := func() {
		t.Helper()
		target := signed.Load() + 200
		l.eventually(func() bool { return signed.Load() >= target || t.Failed() }, "signing does not go on")
	}
	waitForMore()
	for range 2 {
		l.server.kill()
		l.serve()
		waitForMore()
		l.bridge.kill()
		l.startBridge(l.clients, l.servers)
		waitForMore()
	}
	stop()
	callers.Wait()
	t.Logf("%d signatures, %d interruptions told to their callers", signed.Load(), interrupted.Load())
}

// signUntilDone signs until ctx ends. Every signature it gets was verified by the client library.
func signUntilDone(ctx context.Context, t *testing.T, key *client.Key, signed, interrupted *atomic.Int64) {
	digest := sha256.Sum256([]byte("load"))
	for ctx.Err() == nil {
		call, cancel := context.WithTimeout(ctx, patience)
		_, err := key.SignContext(call, digest[:], crypto.SHA256)
		cancel()
		var told *client.Error
		switch {
		case err == nil:
			signed.Add(1)
		case ctx.Err() != nil:
			return
		case errors.As(err, &told) && passing[told.Code]:
			interrupted.Add(1)
			time.Sleep(50 * time.Millisecond)
		default:
			t.Errorf("a caller is told %v", err)
			return
		}
	}
}

// passing are the failures that a restart may cause and after which repeating helps.
var passing = map[wire.Code]bool{
	client.CodeInterrupted: true, client.CodeConnectionLost: true, client.CodeNoServer: true,
	client.CodeBridgeUnreachable: true, client.CodeServerUnreachable: true,
	wire.CodeShuttingDown: true, wire.CodeTokenAbsent: true,
}

// TestServerDrains lets SIGTERM arrive while a signature is on its way: it is answered, and the server ends with 0.
func TestServerDrains(t *testing.T) {
	l := newLab(t, drivers()[0])
	l.createKey("release", "rsa4096")
	l.serve()
	_, key := l.unlocked(t, "release")
	digest := sha256.Sum256([]byte("x"))
	answered := make(chan error, 1)
	go func() {
		_, err := key.SignContext(t.Context(), digest[:], crypto.SHA256)
		answered <- err
	}()
	time.Sleep(2 * time.Millisecond)
	if code := l.server.terminate(); code != 0 {
		t.Errorf("the server ends with %d:\n%s", code, l.server.log)
	}
	var told *client.Error
	if err := <-answered; err != nil && !(errors.As(err, &told) && passing[told.Code]) {
		t.Errorf("the caller is told %v", err)
	}
	if code := l.bridge.terminate(); code != 0 {
		t.Errorf("the bridge ends with %d:\n%s", code, l.bridge.log)
	}
}
