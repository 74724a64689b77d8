package e2e

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/client"
	"chancery/e2e/lab"
	"chancery/tunnel/wire"
)

// crowd is some clients of alice's that sign all the while.
type crowd struct {
	t      *testing.T
	name   string // of the key
	prefix string // of all texts that it signs
	public *ecdsa.PublicKey

	stop    context.CancelFunc
	callers sync.WaitGroup

	mu    sync.Mutex
	asked []asked
}

// asked is a request to sign that has come to an end.
type asked struct {
	digest       string
	caller       int
	begun, ended time.Time
	code         wire.Code // empty: signed
	err          error
}

// crowdConfig says how a crowd signs.
type crowdConfig struct {
	Key     string
	Clients int
	Callers int           // of each client
	Pause   time.Duration // of a caller, between its requests
	Busy    time.Duration // for how long a client asks a server in trouble again
	Insist  bool          // a text is signed again until there is a signature, and the last one before a caller ends
}

// requestTime bounds each request of a crowd. Clients give up much earlier by themselves.
const requestTime = lab.Patience

// failurePause is what a caller waits after an error before it asks for anything again.
const failurePause = 500 * time.Millisecond

// gather starts a crowd, which goes on until disperse. Its copy of the public key is fetched here, before anything goes wrong.
func (s *scene) gather(t *testing.T, cfg crowdConfig) *crowd {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	c := &crowd{t: t, name: cfg.Key, prefix: rand.Text(), public: s.publicKey(cfg.Key), stop: stop}
	for i := range cfg.Clients {
		connected, err := client.Connect(t.Context(), &client.Config{Tunnel: s.Tunnel("alice"), BusyTimeout: cfg.Busy})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { connected.Close() })
		if err := connected.Unlock(t.Context(), cfg.Key, []byte(lab.AlicePassphrase)); err != nil {
			t.Fatal(err)
		}
		for j := range cfg.Callers {
			c.callers.Go(func() { c.work(ctx, connected, cfg, i*cfg.Callers+j) })
		}
	}
	t.Cleanup(func() { c.disperse() })
	return c
}

// publicKey exports a key's public half.
func (s *scene) publicKey(name string) *ecdsa.PublicKey {
	s.Helper()
	block, _ := pem.Decode([]byte(s.Alice("key", "export", name, "-o", "-")))
	if block == nil {
		s.Fatalf("the public half of %q is no PEM", name)
	}
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		s.Fatal(err)
	}
	return public.(*ecdsa.PublicKey)
}

func (c *crowd) work(ctx context.Context, connected *client.Client, cfg crowdConfig, caller int) {
	for i := 0; ctx.Err() == nil; i++ {
		text := fmt.Sprintf("%s %d %d", c.prefix, caller, i)
		for {
			calm := ctx.Err() != nil
			err := c.ask(connected, caller, text)
			if err == nil || !cfg.Insist {
				break
			}
			if calm {
				c.t.Errorf("all is quiet, and %q is not signed: %v", text, err)
				break
			}
		}
		time.Sleep(cfg.Pause)
	}
}

// ask makes one request, whatever becomes of the crowd meanwhile, and notes what came of it.
func (c *crowd) ask(connected *client.Client, caller int, text string) error {
	ctx, cancel := context.WithTimeout(c.t.Context(), requestTime)
	defer cancel()
	sum := sha256.Sum256([]byte(text))
	a := asked{digest: hex.EncodeToString(sum[:]), caller: caller, begun: time.Now()}
	signatures, err := connected.SignAll(ctx, c.name, []client.Digest{{Hash: crypto.SHA256, Sum: sum[:]}})
	a.ended, a.err = time.Now(), err
	var told *client.Error
	switch {
	case err == nil && !ecdsa.VerifyASN1(c.public, sum[:], signatures[0]):
		c.t.Errorf("a client has a signature that does not verify: %x", signatures[0])
	case errors.As(err, &told):
		a.code = told.Code
	case err != nil:
		c.t.Errorf("an error without a code: %v", err)
	}
	c.mu.Lock()
	c.asked = append(c.asked, a)
	c.mu.Unlock()
	if err != nil {
		time.Sleep(failurePause)
	}
	return err
}

// disperse lets all callers end what they are at, and fails the test when one hangs. It may be called again.
func (c *crowd) disperse() []asked {
	c.t.Helper()
	c.stop()
	ended := make(chan struct{})
	go func() { c.callers.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(2*requestTime + lab.Patience):
		c.t.Fatalf("a request with key %q hangs", c.name)
	}
	return c.since(time.Time{})
}

// since returns the requests that ended after a moment.
func (c *crowd) since(moment time.Time) []asked {
	c.mu.Lock()
	defer c.mu.Unlock()
	var found []asked
	for _, a := range c.asked {
		if a.ended.After(moment) {
			found = append(found, a)
		}
	}
	return found
}

// allSigned tells whether n callers have got a signature that they asked for after a moment.
func (c *crowd) allSigned(moment time.Time, n int) bool {
	served := make(map[int]bool)
	for _, a := range c.since(moment) {
		if a.code == "" && a.begun.After(moment) {
			served[a.caller] = true
		}
	}
	return len(served) >= n
}

// wasTold tells whether a caller was told a code since a moment.
func (c *crowd) wasTold(moment time.Time, code wire.Code) bool {
	return slices.ContainsFunc(c.since(moment), func(a asked) bool { return a.code == code })
}

// eventually waits until the condition holds, as lab.Lab.Eventually does for the test that made the lab.
func eventually(t *testing.T, condition func() bool, otherwise string) {
	t.Helper()
	for deadline := time.Now().Add(lab.Patience); !condition(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(otherwise)
		}
	}
}

// checkRecord compares what all requests brought with the record: each signature that a client has stands there once, and
// for a request that failed there is none.
func (s *scene) checkRecord(t *testing.T, all []asked) {
	t.Helper()
	digests, keys := make(map[string]int), make(map[string]int)
	for _, r := range s.records("--kind", "sign") {
		if r.Outcome == "ok" {
			keys[r.Repeats]++
			for _, digest := range r.Digests {
				digests[digest]++
			}
		}
	}
	for key, n := range keys {
		if n != 1 || key == "" {
			t.Errorf("the idempotency key %q has %d records of signatures", key, n)
		}
	}
	released := make(map[string]bool)
	for _, a := range all {
		if a.code == "" {
			released[a.digest] = true
		}
	}
	for _, a := range all {
		if n := digests[a.digest]; a.code == "" && n != 1 {
			t.Errorf("a signature was released and has %d records", n)
		} else if !released[a.digest] && n != 0 {
			t.Errorf("a request failed with %v, and the record says that it was signed", a.err)
		}
	}
}

// checkCodes fails the test for each kind of failure that is none of those.
func checkCodes(t *testing.T, all []asked, allowed ...wire.Code) {
	t.Helper()
	known := make(map[wire.Code]bool)
	for _, code := range append(allowed, "") {
		known[code] = true
	}
	for _, a := range all {
		if !known[a.code] {
			t.Errorf("after %v a caller is told %v", a.ended.Sub(a.begun).Round(time.Millisecond), a.err)
			known[a.code] = true
		}
	}
}

// tally tells how often each code was told, for people.
func tally(all []asked) string {
	counts := make(map[wire.Code]int)
	for _, a := range all {
		counts[a.code]++
	}
	var words []string
	for code, n := range counts {
		words = append(words, fmt.Sprintf("%d %s", n, cmp.Or(code, "signed")))
	}
	return strings.Join(words, ", ")
}
