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
	"chancery/e2e/lab"
	"chancery/tunnel/wire"
)

// connect opens a client of the library's for alice, inside this process.
func (l *scene) connect(t testing.TB) *client.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), lab.Patience)
	defer cancel()
	c, err := client.Connect(ctx, &client.Config{Tunnel: l.Tunnel("alice")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func (l *scene) unlocked(t testing.TB, name string) (*client.Client, *client.Key) {
	t.Helper()
	c := l.connect(t)
	if err := c.Unlock(t.Context(), name, []byte(lab.AlicePassphrase)); err != nil {
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
			l.CreateKey("release", "p256")
			l.Serve()
			_, key := l.unlocked(t, "release")
			if _, err := key.SignContext(t.Context(), digest[:], crypto.SHA256); err != nil {
				t.Fatal(err)
			}
			l.Operator(c.command...)
			_, err := key.SignContext(t.Context(), digest[:], crypto.SHA256)
			var told *client.Error
			if !errors.As(err, &told) || told.Code != c.code && told.Code != wire.CodeNotUnlocked {
				t.Fatalf("after %v the live session answers %v", c.command, err)
			}
			if c.restores == nil {
				return
			}
			l.Operator(c.restores...)
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
	l.CreateKey("release", "p256")
	l.Serve()
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
		l.Eventually(func() bool { return signed.Load() >= target || t.Failed() }, "signing does not go on")
	}
	waitForMore()
	for range 2 {
		l.Server.Kill()
		l.Serve()
		waitForMore()
		l.Bridge.Kill()
		l.StartBridge(l.Clients, l.Servers)
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
		call, cancel := context.WithTimeout(ctx, lab.Patience)
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
	l.CreateKey("release", "rsa4096")
	l.Serve()
	_, key := l.unlocked(t, "release")
	digest := sha256.Sum256([]byte("x"))
	answered := make(chan error, 1)
	go func() {
		_, err := key.SignContext(t.Context(), digest[:], crypto.SHA256)
		answered <- err
	}()
	time.Sleep(2 * time.Millisecond)
	if code := l.Server.Terminate(); code != 0 {
		t.Errorf("the server ends with %d:\n%s", code, l.Server.Log)
	}
	var told *client.Error
	if err := <-answered; err != nil && !(errors.As(err, &told) && passing[told.Code]) {
		t.Errorf("the caller is told %v", err)
	}
	if code := l.Bridge.Terminate(); code != 0 {
		t.Errorf("the bridge ends with %d:\n%s", code, l.Bridge.Log)
	}
}
