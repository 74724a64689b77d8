package e2e

import (
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chancery/client"
	"chancery/e2e/lab"
)

// persistent opens a client of the library's that goes through the cutter and does not give up soon.
func (s *scene) persistent(t testing.TB, c *cutter, key string) *client.Key {
	t.Helper()
	settings := &client.Config{Tunnel: s.Tunnel("alice"), Attempts: 1000, RetryMin: 10 * time.Millisecond, RetryMax: 200 * time.Millisecond}
	settings.Tunnel.Bridge = c.Address
	connected, err := client.Connect(t.Context(), settings)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { connected.Close() })
	if err := connected.Unlock(t.Context(), key, []byte(lab.AlicePassphrase)); err != nil {
		t.Fatal(err)
	}
	signer, err := connected.Key(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

// serveThrough starts the server with the cutter between it and the bridge.
func (s *scene) serveThrough(c *cutter) {
	s.Helper()
	s.Write("server.toml", strings.ReplaceAll(s.Read("server.toml"), s.Servers, c.Address))
	s.Serve()
}

// signing begins to sign a text that no other call signs, and returns its digest and the end.
func signing(ctx context.Context, key *client.Key, text string) (string, <-chan error) {
	sum := sha256.Sum256([]byte(text))
	ended := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(ctx, 2*lab.Patience)
		defer cancel()
		_, err := key.SignContext(ctx, sum[:], crypto.SHA256)
		ended <- err
	}()
	return hex.EncodeToString(sum[:]), ended
}

// recordsOf returns the records of one digest.
func (s *scene) recordsOf(digest string) []record {
	s.Helper()
	var found []record
	for _, r := range s.records("--kind", "sign") {
		if len(r.Digests) == 1 && r.Digests[0] == digest {
			found = append(found, r)
		}
	}
	return found
}

// TestALostReply lets the server sign while nothing comes back, and then breaks the connection.
func TestALostReply(t *testing.T) {
	s := newLab(t, lab.Soft)
	s.CreateKey("release", "p256")
	c := newCutter(t, s.Clients)
	s.Serve()
	key := s.persistent(t, c, "release")
	lose := func(text string, meanwhile func()) []record {
		c.holding.Store(true)
		digest, ended := signing(t.Context(), key, text)
		s.Eventually(func() bool { return len(s.recordsOf(digest)) > 0 }, "nothing is signed")
		meanwhile()
		c.holding.Store(false)
		c.cut()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		return s.recordsOf(digest)
	}
	found := lose("while the server runs", func() {})
	if len(found) != 1 || found[0].Repeats == "" {
		t.Errorf("recorded as %+v", found)
	}
	s.Server.WaitLog(`answered a repetition`)
	// A restart forgets, and the log tells.
	found = lose("before a restart", func() { s.Server.Kill(); s.Serve() })
	if len(found) != 2 || found[0].Repeats == "" || found[0].Repeats != found[1].Repeats {
		t.Errorf("recorded as %+v", found)
	}
}

// TestCutConnectionsSignNothingTwice breaks connections anywhere, in the handshakes, the
// requests and the replies, on either side of the bridge. Each call succeeds and has one record.
func TestCutConnectionsSignNothingTwice(t *testing.T) {
	for _, side := range []string{"client", "server"} {
		t.Run(side, func(t *testing.T) {
			s := newLab(t, lab.Soft)
			s.CreateKey("release", "p256")
			front, back := newCutter(t, s.Clients), newCutter(t, s.Servers)
			s.serveThrough(back)
			key := s.persistent(t, front, "release")
			cutting := front
			if side == "server" {
				cutting = back
			}
			cutting.budget.Store(24 << 10)
			cutting.cut() // those from before have no budget
			released := s.signWhile(t, key, func() bool { return cutting.cuts.Load() < 20 })
			cutting.budget.Store(0)
			keys, digests := make(map[string]int), make(map[string]int)
			for _, r := range s.records("--kind", "sign") {
				keys[r.Repeats]++
				digests[r.Digests[0]]++
			}
			for digest := range released {
				if digests[digest] != 1 {
					t.Errorf("a signature was released and has %d records", digests[digest])
				}
			}
			if len(keys) != len(released) || len(digests) != len(released) || keys[""] != 0 {
				t.Errorf("%d signatures were released; the records have %d idempotency keys and %d digests", len(released), len(keys), len(digests))
			}
			repeated := strings.Count(s.Server.Log.String(), "answered a repetition")
			t.Logf("%d signatures, %d cuts, %d repetitions answered", len(released), cutting.cuts.Load(), repeated)
		})
	}
}

// signWhile has some callers sign, and returns the digests of all signatures that they got.
func (s *scene) signWhile(t *testing.T, key *client.Key, goOn func() bool) map[string]bool {
	t.Helper()
	released := make(map[string]bool)
	var mu sync.Mutex
	var number atomic.Int64
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			for goOn() && t.Context().Err() == nil {
				digest, ended := signing(t.Context(), key, fmt.Sprint(number.Add(1)))
				if err := <-ended; err != nil {
					t.Errorf("a caller is told %v", err)
					return
				}
				mu.Lock()
				released[digest] = true
				mu.Unlock()
			}
		})
	}
	callers.Wait()
	return released
}
