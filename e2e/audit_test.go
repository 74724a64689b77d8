package e2e

import (
	"bufio"
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"chancery/client"
	"chancery/e2e/lab"
	"chancery/tunnel/wire"
)

// record is a line of the audit log, as other programs read it.
type record struct {
	Seq     uint64   `json:"seq"`
	Kind    string   `json:"kind"`
	User    string   `json:"user"`
	Key     string   `json:"key"`
	Scheme  string   `json:"scheme"`
	Hash    string   `json:"hash"`
	Digests []string `json:"digests"`
	Session string   `json:"session"`
	Outcome string   `json:"outcome"`
	Repeats string   `json:"idempotency_key"`
	Peer    struct {
		Serial string `json:"serial"`
	} `json:"peer"`
}

// records shows the audit log to its operator, who has it checked first.
func (s *scene) records(filter ...string) []record {
	s.Helper()
	s.Operator("audit", "verify")
	var all []record
	for line := range strings.Lines(s.Operator(append([]string{"audit", "show", "--json"}, filter...)...)) {
		var r record
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			s.Fatal(err)
		}
		all = append(all, r)
	}
	return all
}

// recorded tells how often each digest was signed, as key:digest.
func (s *scene) recorded() map[string]int {
	s.Helper()
	counts := make(map[string]int)
	for _, r := range s.records("--kind", "sign") {
		for _, digest := range r.Digests {
			counts[r.Key+":"+digest]++
		}
	}
	return counts
}

func TestEverySignatureThatAClientHasIsInTheLog(t *testing.T) {
	s := newLab(t, lab.Soft)
	s.CreateKey("release", "p256")
	s.CreateKey("nightly", "rsa2048")
	s.CreateKey("images", "ed25519")
	s.Serve()
	follower := s.Command("chancery-server", "--config", "server.toml", "audit", "show", "--follow", "--kind", "sign", "--json")
	out, err := follower.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := follower.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { follower.Process.Kill(); follower.Wait() })

	var group sync.WaitGroup
	var mu sync.Mutex
	got := make(map[string]int)
	for _, key := range []string{"release", "nightly", "images"} {
		group.Go(func() {
			for _, digest := range s.signMany(t, key, 40) {
				mu.Lock()
				got[key+":"+digest]++
				mu.Unlock()
			}
		})
	}
	group.Wait()
	logged := s.recorded()
	for signature := range got {
		if logged[signature] != got[signature] {
			t.Errorf("%s was signed %d times and is recorded %d times", signature, got[signature], logged[signature])
		}
	}
	if len(got) != 120 || len(logged) != 120 {
		t.Errorf("%d inputs were signed and %d are recorded", len(got), len(logged))
	}
	if r := s.records("--kind", "sign", "--key", "nightly")[0]; r.User != "alice" || r.Outcome != "ok" || r.Scheme != "pkcs1v15" || r.Session == "" || r.Peer.Serial == "" {
		t.Errorf("recorded %+v", r)
	}
	followed := 0
	lines := bufio.NewScanner(out)
	for followed < len(logged) && lines.Scan() {
		var r record
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil || r.Kind != "sign" {
			t.Errorf("followed %q: %v", lines.Text(), err)
		}
		followed += len(r.Digests)
	}
	if followed != len(logged) {
		t.Errorf("%d signatures came while following, of %d", followed, len(logged))
	}
}

// signMany signs n texts with alice's client, some alone and the others in batches, and
// returns what the log has to have of them.
func (s *scene) signMany(t *testing.T, key string, n int) []string {
	c, err := client.Connect(t.Context(), &client.Config{Tunnel: s.Tunnel("alice"), BatchSize: 7})
	if err != nil {
		t.Error(err)
		return nil
	}
	defer c.Close()
	if err := c.Unlock(t.Context(), key, []byte(lab.AlicePassphrase)); err != nil {
		t.Error(err)
		return nil
	}
	var digests []client.Digest
	var sums []string
	for i := range n {
		text := fmt.Appendf(nil, "%s %d", key, i)
		sum := sha256.Sum256(text)
		sums = append(sums, hex.EncodeToString(sum[:]))
		if key == "images" {
			digests = append(digests, client.Digest{Sum: text})
		} else {
			digests = append(digests, client.Digest{Hash: crypto.SHA256, Sum: sum[:]})
		}
	}
	if _, err := c.SignAll(t.Context(), key, digests[:n/2]); err != nil {
		t.Error(err)
	}
	for _, d := range digests[n/2:] {
		if _, err := c.SignAll(t.Context(), key, []client.Digest{d}); err != nil {
			t.Error(err)
		}
	}
	return sums
}

// signed returns alice's client's signature over text, or why there is none within the time.
func signed(ctx context.Context, c *client.Client, key, text string) error {
	sum := sha256.Sum256([]byte(text))
	_, err := c.SignAll(ctx, key, []client.Digest{{Hash: crypto.SHA256, Sum: sum[:]}})
	return err
}

// The daemon's files may not grow any more, as on a full disk. Nothing is signed until they may again,
// and then it is without anybody's help.
func TestAFullDiskStopsSigningUntilThereIsRoom(t *testing.T) {
	s := newLab(t, lab.Soft)
	s.CreateKey("release", "p256")
	// Writing beyond the limit is to fail with an error, not to kill.
	s.Server = lab.Start(s.TB, s.shell(`trap "" XFSZ; exec "$0" --config server.toml serve`, s.Program("chancery-server")))
	c, err := client.Connect(t.Context(), &client.Config{Tunnel: s.Tunnel("alice"), BusyTimeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Unlock(t.Context(), "release", []byte(lab.AlicePassphrase)); err != nil {
		t.Fatal(err)
	}
	s.limitFiles(s.auditSize() + 4000)
	had := 0
	for ; err == nil; had++ {
		if had > 100 {
			t.Fatal("the limit has no effect")
		}
		err = signed(t.Context(), c, "release", fmt.Sprint("text ", had))
	}
	had--
	if !errors.Is(err, &client.Error{Code: wire.CodeAuditUnavailable}) || !strings.Contains(err.Error(), "audit log") {
		t.Fatalf("with a full disk: %v", err)
	}
	sent := s.TryAs("alice", "sign", "raw", "release", "server.toml", "-o", "never.sig", "--timeout", "2s")
	if sent.Exit != 4 || !strings.Contains(sent.Stderr, "audit") {
		t.Errorf("the client ends with %d and %q", sent.Exit, sent.Stderr)
	}
	if status := s.Operator("status"); !strings.Contains(status, "NOT WRITABLE") {
		t.Errorf("status does not tell:\n%s", status)
	}
	if n := len(s.recorded()); n != had {
		t.Errorf("%d signatures are recorded, and the client has %d", n, had)
	}
	patient := s.unlockedAfter(t, func() { s.limitFiles(unix.RLIM_INFINITY) })
	if err := signed(t.Context(), patient, "release", "after"); err != nil {
		t.Errorf("with room again: %v", err)
	}
	sum := sha256.Sum256([]byte("after"))
	if logged := s.recorded(); logged["release:"+hex.EncodeToString(sum[:])] != 1 {
		t.Errorf("recorded %v", logged)
	}
	if len(s.records("--kind", "recovered")) == 0 {
		t.Error("the log does not tell of its outage")
	}
}

// unlockedAfter opens the key with a client that asks again while the server is in trouble,
// which ends meanwhile.
func (s *scene) unlockedAfter(t *testing.T, end func()) *client.Client {
	t.Helper()
	c := s.connect(t)
	timer := time.AfterFunc(500*time.Millisecond, end)
	defer timer.Stop()
	if err := c.Unlock(t.Context(), "release", []byte(lab.AlicePassphrase)); err != nil {
		t.Fatal(err)
	}
	return c
}

func (s *scene) shell(script string, args ...string) *exec.Cmd {
	command := exec.Command("/bin/sh", append([]string{"-c", script}, args...)...)
	command.Dir = s.Dir
	command.Env = append(os.Environ(), s.Environment...)
	return command
}

// limitFiles sets how long the daemon may make any file.
func (s *scene) limitFiles(size uint64) {
	s.Helper()
	limit := unix.Rlimit{Cur: size, Max: unix.RLIM_INFINITY}
	if err := unix.Prlimit(s.Server.Command.Process.Pid, unix.RLIMIT_FSIZE, &limit, nil); err != nil {
		s.Fatal(err)
	}
}

func (s *scene) auditSize() uint64 {
	s.Helper()
	info, err := os.Stat(s.Path("state/audit/audit-00000000000000000001.jsonl"))
	if err != nil {
		s.Fatal(err)
	}
	return uint64(info.Size())
}
