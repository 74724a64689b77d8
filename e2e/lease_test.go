package e2e

import (
	"context"
	"crypto"
	"crypto/sha256"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/client"
	"chancery/e2e/lab"
)

// A client does not notice that its unlocks are leases: it unlocks again by itself, and asks for
// fewer signatures at once where an unlock is good for fewer than its batches have.
func TestAClientRenewsItsLeases(t *testing.T) {
	s := newLab(t, lab.Soft)
	s.Operator("key", "create", "counted", "--token", "vault", "--algorithm", "p256", "--passphrase-file", "olga.passphrase")
	s.Operator("key", "create", "timed", "--token", "vault", "--algorithm", "p256", "--passphrase-file", "olga.passphrase")
	s.Grant("counted", "--uses", "5")
	s.Grant("timed", "--lease", "1s")
	s.Serve()
	c, _ := s.unlocked(t, "counted")
	var digests []client.Digest
	for i := range 24 {
		sum := sha256.Sum256(fmt.Append(nil, "text ", i))
		digests = append(digests, client.Digest{Hash: crypto.SHA256, Sum: sum[:]})
	}
	if _, err := c.SignAll(t.Context(), "counted", digests); err != nil {
		t.Errorf("in batches: %v", err)
	}
	var group sync.WaitGroup
	for _, d := range digests {
		group.Go(func() {
			if _, err := c.SignAll(t.Context(), "counted", []client.Digest{d}); err != nil {
				t.Errorf("one by one: %v", err)
			}
		})
	}
	group.Wait()
	if n := len(s.records("--kind", "unlock", "--key", "counted")); n < 10 {
		t.Errorf("48 signatures took %d unlocks", n)
	}
	timed, _ := s.unlocked(t, "timed")
	ctx, cancel := context.WithTimeout(t.Context(), lab.Patience)
	defer cancel()
	for len(s.records("--kind", "unlock", "--key", "timed")) < 2 {
		if _, err := timed.SignAll(ctx, "timed", digests[:1]); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	if list := s.Operator("grant", "list", "--user", "alice"); !strings.Contains(list, "5 signatures") || !strings.Contains(list, "1s") {
		t.Errorf("the grants do not tell:\n%s", list)
	}
	s.Alice("sign", "raw", "counted", "server.toml", "-o", "signature")
}
