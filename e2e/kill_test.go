package e2e

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"chancery/access"
	"chancery/e2e/lab"
)

const (
	kills         = 300
	fewKills      = 30 // with -short
	killerClients = 8
	filesPerRound = 10
)

// worker is one user's machine: it calls the client again and again until all files of a round are signed.
type worker struct {
	t   *testing.T
	l   *scene
	dir string

	mu      sync.Mutex
	running *exec.Cmd
	files   []string // every file that has been given to the client
	killed  int
}

// TestKilledAtRandomMoments ends the three programs with SIGKILL, 300 times in all, while eight clients sign and an
// operator goes on working. Afterwards every file is signed, every released signature is in the record, the record's
// chain is whole, and everything that an operator's command acknowledged is there.
func TestKilledAtRandomMoments(t *testing.T) {
	l := newLab(t, lab.Soft)
	l.CreateKey("release", "p256")
	l.makeUnlocksCheap("release")
	l.Serve()
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	workers := make([]*worker, killerClients)
	for i := range workers {
		workers[i] = &worker{t: t, l: l, dir: t.TempDir()}
		all.Go(func() { workers[i].work(ctx) })
	}
	acknowledged := make(chan []string, 1)
	all.Go(func() { acknowledged <- operate(ctx, l) })

	killAtRandom(t, l, workers)
	stop()
	all.Wait()

	l.checkUsers(t, <-acknowledged)
	signed := l.checkFiles(t, workers)
	t.Logf("%d files signed", signed)
}

// makeUnlocksCheap grants the key anew to an access key with the least Argon2id that is accepted: between
// two kills eight clients have to find the time to unlock.
func (s *scene) makeUnlocksCheap(key string) {
	s.Helper()
	parameters := access.NewParameters()
	parameters.Time, parameters.MemoryKiB, parameters.Threads = access.MinTime, access.MinMemoryKiB, 1
	derived, err := access.DeriveKey([]byte(lab.AlicePassphrase), parameters)
	if err != nil {
		s.Fatal(err)
	}
	s.Write("alice.enrolment", access.Enrolment{User: "alice", Key: derived.Public()}.String())
	s.Operator("grant", "revoke", key, "alice", "--yes")
	s.Operator("grant", "add", key, "alice", "--enrolment", "alice.enrolment", "--by", "olga", "--passphrase-file", "olga.passphrase")
}

func killAtRandom(t *testing.T, l *scene, workers []*worker) {
	count := kills
	if testing.Short() {
		count = fewKills
	}
	for i := range count {
		time.Sleep(time.Duration(20+rand.IntN(460)) * time.Millisecond)
		switch i % 4 {
		case 0, 2: // there are eight of them
			workers[rand.IntN(len(workers))].kill()
		case 1:
			l.Server.Kill()
			l.Serve()
		case 3:
			l.Bridge.Kill()
			l.StartBridge(l.Clients, l.Servers)
		}
		if t.Failed() {
			return
		}
	}
}

// kill ends the client that runs at this moment, if one does.
func (w *worker) kill() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.running != nil {
		w.running.Process.Kill()
		w.killed++
	}
}

// work signs round after round. Once ctx ends it finishes the round: with nobody killing any more, that has to succeed.
func (w *worker) work(ctx context.Context) {
	for round := 0; ctx.Err() == nil; round++ {
		left := w.newFiles(round)
		for len(left) > 0 {
			calm := ctx.Err() != nil
			w.sign(left)
			left = unsigned(left)
			if calm && len(left) > 0 {
				w.t.Errorf("%d files could not be signed although nothing was killed any more", len(left))
				return
			}
		}
	}
}

func (w *worker) newFiles(round int) []string {
	files := make([]string, filesPerRound)
	for i := range files {
		files[i] = filepath.Join(w.dir, fmt.Sprintf("%d-%d", round, i))
		if err := os.WriteFile(files[i], []byte(files[i]), 0o600); err != nil {
			w.t.Error(err)
		}
	}
	w.files = append(w.files, files...)
	return files
}

// sign calls the client once. Its failure is normal here; only hanging is not.
func (w *worker) sign(files []string) {
	command := w.l.Command("chancery", append([]string{"--config", "alice.toml", "sign", "raw", "release", "--force", "--quiet"}, files...)...)
	w.mu.Lock()
	err := command.Start()
	w.running = command
	w.mu.Unlock()
	if err != nil {
		w.t.Error(err)
		return
	}
	timer := time.AfterFunc(4*lab.Patience, func() {
		w.t.Error("a client did not end within its deadlines")
		command.Process.Kill()
	})
	command.Wait()
	timer.Stop()
	w.mu.Lock()
	w.running = nil
	w.mu.Unlock()
}

func unsigned(files []string) []string {
	var left []string
	for _, file := range files {
		if _, err := os.Stat(file + ".sig"); err != nil {
			left = append(left, file)
		}
	}
	return left
}

// operate adds users until ctx ends and returns those whose command said that it was done.
func operate(ctx context.Context, l *scene) []string {
	var acknowledged []string
	for i := 0; ctx.Err() == nil; i++ {
		name := fmt.Sprintf("user-%d", i)
		if r := l.TryOperator("user", "add", name); r.Exit == 0 {
			acknowledged = append(acknowledged, name)
		}
		time.Sleep(200 * time.Millisecond)
	}
	return acknowledged
}

func (s *scene) checkUsers(t *testing.T, acknowledged []string) {
	t.Helper()
	if len(acknowledged) == 0 {
		t.Error("no operator's command was acknowledged in all that time")
	}
	for _, name := range acknowledged {
		if r := s.TryOperator("user", "show", name); r.Exit != 0 {
			t.Errorf("acknowledged user %q is gone: %s", name, r.Stderr)
		}
	}
	s.Operator("key", "show", "release")
	s.Operator("grant", "list", "--key", "release")
}

// checkFiles looks for each written signature in the record. The client has verified each before it wrote it.
func (s *scene) checkFiles(t *testing.T, workers []*worker) (signed int) {
	t.Helper()
	recorded := s.recorded()
	clientKills := 0
	for _, w := range workers {
		clientKills += w.killed
		for _, file := range w.files {
			if _, err := os.Stat(file + ".sig"); err != nil {
				t.Errorf("not signed in the end: %v", err)
				continue
			}
			signed++
			if recorded[fmt.Sprintf("release:%x", sha256.Sum256([]byte(file)))] == 0 {
				t.Errorf("%s was signed, but the record does not say so", file)
			}
		}
	}
	if clientKills == 0 {
		t.Error("no client was killed while it ran")
	}
	return signed
}
