package e2e

import (
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/client"
	"chancery/e2e/lab"
	"chancery/tunnel/wire"
)

// A network as bad as a working one gets.
const (
	badDelay  = 50 * time.Millisecond
	badJitter = 30 * time.Millisecond
	badRate   = 64 << 10
)

// underWeather serves through a network of its own. The server keeps this many legs waiting.
func (s *scene) underWeather(t *testing.T, legs string, delay, jitter time.Duration, rate int) (clients, servers *weather) {
	t.Helper()
	clients = newWeather(t, s.Clients, delay, jitter, rate)
	servers = newWeather(t, s.Servers, delay, jitter, rate)
	configuration := strings.ReplaceAll(s.Read("server.toml"), s.Servers, servers.Address)
	s.Write("server.toml", strings.Replace(configuration, "[bridge]\n", "[bridge]\nidle_connections = "+legs+"\n", 1))
	s.Write("alice.toml", strings.ReplaceAll(s.Read("alice.toml"), s.Clients, clients.Address))
	s.Serve()
	return clients, servers
}

// impatient is a client of alice's that waits as long as a test can.
func (s *scene) impatient(t *testing.T, bridge string, attempts int) (*client.Client, error) {
	t.Helper()
	settings := s.Tunnel("alice")
	settings.Bridge, settings.Handshake = bridge, 2*time.Second
	c, err := client.Connect(t.Context(), &client.Config{Tunnel: settings, RequestTimeout: 2 * time.Second, Attempts: attempts, RetryMin: 50 * time.Millisecond, RetryMax: 200 * time.Millisecond})
	if err == nil {
		t.Cleanup(func() { c.Close() })
	}
	return c, err
}

// TestSigningThroughABadNetwork wants everything to work, only slower.
func TestSigningThroughABadNetwork(t *testing.T) {
	l := newLab(t, lab.Soft)
	l.CreateKey("release", "p256")
	l.makeUnlocksCheap("release")
	clients, _ := l.underWeather(t, "4", badDelay, badJitter, badRate)
	var users sync.WaitGroup
	for range 3 {
		users.Go(func() {
			c, err := l.impatientlyUnlocked(t, clients.Address)
			if err != nil {
				t.Error(err)
				return
			}
			key, err := c.Key(t.Context(), "release")
			if err != nil {
				t.Error(err)
				return
			}
			signEach(t, key, "bad network", 32)
		})
	}
	users.Wait()
	var digests []client.Digest
	for i := range 200 {
		sum := documentDigest("batch", i)
		digests = append(digests, client.Digest{Hash: crypto.SHA256, Sum: sum[:]})
	}
	c, err := l.impatientlyUnlocked(t, clients.Address)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.SignAll(t.Context(), "release", digests); err != nil {
		t.Errorf("a batch: %v", err)
	}
	l.Write("document", "x")
	l.Alice("sign", "raw", "release", "document", "--quiet")
	for digest, n := range l.recorded() {
		if n > 3 || n > 1 && strings.Contains(digest, "batch") {
			t.Errorf("%s is recorded %d times", digest, n)
		}
	}
}

func (s *scene) impatientlyUnlocked(t *testing.T, bridge string) (*client.Client, error) {
	c, err := s.impatient(t, bridge, 4)
	if err != nil {
		return nil, err
	}
	return c, c.Unlock(t.Context(), "release", []byte(lab.AlicePassphrase))
}

// TestSilentConnections lets connections die without a word while a client signs. Each request must end in time,
// with a signature or with words that help; once the network is back, signing goes on by itself; and nothing is recorded twice.
func TestSilentConnections(t *testing.T) {
	l := newLab(t, lab.Soft)
	l.CreateKey("release", "p256")
	l.makeUnlocksCheap("release")
	clients, servers := l.underWeather(t, "4", time.Millisecond, 0, 0)
	c, err := l.impatientlyUnlocked(t, clients.Address)
	if err != nil {
		t.Fatal(err)
	}
	key, err := c.Key(t.Context(), "release")
	if err != nil {
		t.Fatal(err)
	}
	signEach(t, key, "fair", 4)

	t.Run("of the client", func(t *testing.T) {
		clients.silence(-1)
		signEach(t, key, "client", 8)
	})
	t.Run("of the server", func(t *testing.T) {
		servers.silence(-1)
		noticed := time.AfterFunc(time.Second, servers.notice)
		defer noticed.Stop()
		signEach(t, key, "server", 8)
	})
	t.Run("all", func(t *testing.T) {
		clients.goOut()
		servers.goOut()
		l.failsClearly(t, key)
		l.Write("document", "x")
		r := l.TryAs("alice", "sign", "raw", "release", "document", "--timeout", "3s", "-o", "none.sig")
		expectation{exit: 4}.check(t, r)
		if len(strings.Fields(r.Stderr)) < 6 {
			t.Errorf("a user is told only %q", r.Stderr)
		}
		clients.heal()
		servers.heal()
		servers.notice()
		l.Eventually(func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			digest := sha256.Sum256([]byte("healed"))
			_, err := key.SignContext(ctx, digest[:], crypto.SHA256)
			return err == nil
		}, "signing does not go on")
		signEach(t, key, "after", 8)
	})
	counts := l.recorded()
	for what, count := range map[string]int{"client": 8, "server": 8, "after": 8} {
		for i := range count {
			if n := counts[digestName("release", what, i)]; n != 1 {
				t.Errorf("document %d of %q is recorded %d times", i, what, n)
			}
		}
	}
}

// failsClearly signs while nothing gets through: each request ends well before patience does, and says why.
func (s *scene) failsClearly(t *testing.T, key *client.Key) {
	t.Helper()
	var callers sync.WaitGroup
	for i := range 4 {
		callers.Go(func() {
			began := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
			defer cancel()
			digest := documentDigest("lost", i)
			_, err := key.SignContext(ctx, digest[:], crypto.SHA256)
			var told *client.Error
			if !errors.As(err, &told) || !unreachable[told.Code] || goish.MatchString(told.Message) {
				t.Errorf("the caller is told %v", err)
			}
			if took := time.Since(began); took > lab.Patience/2 {
				t.Errorf("with a deadline of 4 s the request took %v", took)
			}
		})
	}
	callers.Wait()
}

// unreachable are what a caller is told of a network that carries nothing.
var unreachable = map[wire.Code]bool{
	client.CodeInterrupted: true, client.CodeTimeout: true, client.CodeConnectionLost: true,
	client.CodeBridgeUnreachable: true, client.CodeNoServer: true, client.CodeServerUnreachable: true,
}

// TestLegsThatDiedWaiting: the proxy answers TCP for legs that are dead, so that nothing tells the bridge. No client
// may notice more of it than that connecting takes longer.
func TestLegsThatDiedWaiting(t *testing.T) {
	l := newLab(t, lab.Soft)
	l.Bridge.Terminate()
	l.Environment = append(l.Environment, "CHANCERY_BRIDGE_TIMEOUTS_LEG_ANSWER=1s")
	l.StartBridge(l.Clients, l.Servers)
	_, servers := l.underWeather(t, "4", time.Millisecond, 0, 0)
	l.Eventually(func() bool { return servers.connections() == 4 }, "the legs do not come")
	time.Sleep(200 * time.Millisecond) // until the bridge knows the last, too
	servers.silence(2)
	const clients = 4
	for range clients { // the bridge takes the leg that waits longest, so that every old one has its turn
		c, err := client.Connect(t.Context(), &client.Config{Tunnel: l.Tunnel("alice"), Attempts: 1})
		if err != nil {
			t.Fatalf("the client's only attempt met a dead leg: %v", err)
		}
		if user, err := c.WhoAmI(t.Context()); err != nil || user != "alice" {
			t.Errorf("%q, %v", user, err)
		}
		c.Close()
	}
	log := l.Bridge.Log.String()
	if n := strings.Count(log, "msg=paired"); n != clients {
		t.Errorf("%d clients were paired %d times", clients, n)
	}
	if n := strings.Count(log, "dropped a waiting connection that does not answer"); n < 2 {
		t.Errorf("the bridge tells of %d dead legs", n)
	}
	// What the kernel's keepalive finds out later brings the server's legs back to their number.
	before := servers.connections()
	servers.notice()
	l.Eventually(func() bool { return servers.connections() >= before+2 }, "the dead legs are not replaced")
	if status := l.Operator("status"); !strings.Contains(status, "legs waiting, the oldest for ") {
		t.Errorf("status shows\n%s", status)
	}
}
