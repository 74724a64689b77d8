package signer

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"chancery/access"
	"chancery/signer/queue"
	"chancery/token"
	"chancery/tunnel/wire"
	"chancery/users"
)

// slowToken lets one signature after the other be made, in the order of the queue, and notes whose each was.
type slowToken struct {
	w    *world
	step chan struct{}

	mu    sync.Mutex
	order []string          // users, as their signatures were made
	named map[string]string // users, by what they sign
}

// newSlowWorld has two users who may sign with the key "p256", bob with the given priority, at a token that makes one signature at once.
func newSlowWorld(t *testing.T, priority int) (*world, *slowToken) {
	t.Helper()
	w := newWorld(t, func(w *world, cfg *Config) {
		cfg.SessionRequests = 512
		grant := w.grantFor("bob", 2, w.keyID("p256"))
		grant.ID, grant.Priority = 100, priority
		w.store.grants = append(w.store.grants, grant)
	})
	w.awaitToken(StateReady)
	slow := &slowToken{w: w, step: make(chan struct{}), named: make(map[string]string)}
	w.server.tokens.slots[1].queue.Resize(1)
	w.keys[token.P256].before(slow.before)
	t.Cleanup(func() { close(slow.step) })
	return w, slow
}

// grantFor wraps the PIN for another user than alice, under the same passphrase.
func (w *world) grantFor(name string, userID, keyID int64) users.Grant {
	w.t.Helper()
	grant := w.grant(keyID, tokenPIN)
	binding := access.Binding{TokenSerial: "S1", KeyHandle: w.store.keys[keyID-1].Handle, User: name, Role: string(grant.Role)}
	wrapped, err := access.Wrap([]byte(tokenPIN), accessKey().Public(), binding)
	if err != nil {
		w.t.Fatal(err)
	}
	grant.UserID, grant.Wrapped = userID, wrapped
	return grant
}

func (s *slowToken) before(ctx context.Context, input []byte) error {
	select {
	case <-s.step:
	case <-ctx.Done():
		return ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.order = append(s.order, s.named[string(input)])
	return nil
}

// ask sends requests to sign without waiting for their answers, and returns once all of them wait.
func (s *slowToken) ask(c *client, user string, n int) {
	s.w.t.Helper()
	before := s.present()
	var frames []byte
	for i := range n {
		text := fmt.Sprint(user, i)
		sum := sha256.Sum256([]byte(text))
		s.mu.Lock()
		s.named[string(sum[:])] = user
		s.mu.Unlock()
		frames, _ = c.encode(frames, &wire.Sign{Key: "p256", Digest: digestOf(wire.SHA256, text)})
	}
	c.write(frames)
	s.w.eventually("the requests to wait", func() bool { return s.present() == before+n })
	s.w.t.Cleanup(func() { c.conn.Close() })
	go io.Copy(io.Discard, c.conn)
}

// present counts the requests that wait for the token or are at it.
func (s *slowToken) present() int {
	stats := s.w.server.tokens.slots[1].queue.Stats()
	all := stats.InUse
	for _, waiting := range stats.Waiting {
		all += waiting
	}
	return all
}

// sign lets n signatures be made and returns whose they were.
func (s *slowToken) sign(n int) []string {
	s.w.t.Helper()
	for range n {
		select {
		case s.step <- struct{}{}:
		case <-time.After(patience):
			s.w.t.Fatal("nobody signs")
		}
	}
	var made []string
	s.w.eventually("the signatures", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		made = slices.Clone(s.order)
		return len(made) == n
	})
	return made
}

func count(made []string, user string) int {
	return len(slices.DeleteFunc(slices.Clone(made), func(whose string) bool { return whose != user }))
}

func TestAMassRebuildStarvesNobody(t *testing.T) {
	w, slow := newSlowWorld(t, 0)
	alice, bob := w.unlockedClient("p256"), w.connect("bob", true)
	want[*wire.UnlockReply](bob, bob.call(unlockRequest("p256", passphrase)))
	slow.ask(alice, "alice", 300)
	slow.ask(bob, "bob", 1)
	if made := slow.sign(3); count(made, "bob") != 1 {
		t.Errorf("signatures were made for %v", made)
	}
}

func TestAHighPriorityOvertakes(t *testing.T) {
	if users.MaxPriority != queue.MaxPriority {
		t.Fatalf("grants have priorities to %d, queues to %d", users.MaxPriority, queue.MaxPriority)
	}
	const urgent = 64
	for priority, within := range map[int]int{0: 2*urgent + 2, 3: urgent + urgent/8 + 2, users.MaxPriority: urgent + 2} {
		w, slow := newSlowWorld(t, 0)
		alice, bob := w.unlockedClient("p256"), w.connect("bob", true)
		want[*wire.UnlockReply](bob, bob.call(unlockRequest("p256", passphrase)))
		if priority > 0 {
			w.change(func(s *fakeStore) {
				grant := &s.grants[len(s.grants)-1]
				grant.Priority, grant.Generation = priority, grant.Generation+1
			})
			bob.refused(signRequest("p256"), wire.CodeNotUnlocked)
			want[*wire.UnlockReply](bob, bob.call(unlockRequest("p256", passphrase)))
		}
		slow.ask(alice, "alice", 300)
		slow.ask(bob, "bob", urgent)
		if made := slow.sign(within); count(made, "bob") != urgent {
			t.Errorf("priority %d: of %d signatures %d were bob's", priority, within, count(made, "bob"))
		}
	}
}
