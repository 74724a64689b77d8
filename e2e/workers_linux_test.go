package e2e

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	cryptorand "crypto/rand"
	"crypto/sha256"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"chancery/e2e/lab"
	"chancery/internal/testtool"
	"chancery/softhsm/faulty"
	"chancery/tunnel/wire"
)

// custodians returns the processes in which a daemon keeps the tokens of that name: none, one, or two while one follows the other.
func custodians(t lab.TB, daemon int, name string) []int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var found []int
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		arguments, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // it may be gone
		words := strings.Split(strings.TrimRight(string(arguments), "\x00"), "\x00")
		if slices.Contains(words, "token-worker") && words[len(words)-1] == name && parentIs(pid, daemon) {
			found = append(found, pid)
		}
	}
	return found
}

// stat returns the parent and the state of a process, the two fields after its name in parentheses in reverse
// (proc_pid_stat(5)); 0 and "" when there is none of that number.
func stat(pid int) (parent int, state string) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, ""
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	parent, _ = strconv.Atoi(fields[1])
	return parent, fields[0]
}

func parentIs(pid, expected int) bool {
	parent, _ := stat(pid)
	return parent == expected
}

// isGone tells whether a process has ended, reaped or not.
func isGone(pid int) bool {
	_, state := stat(pid)
	return state == "" || state == "Z" || state == "X"
}

// custodian waits for the one process in which the daemon keeps the token "vault", other than before.
func (s *scene) custodian(before ...int) int {
	s.Helper()
	var pid int
	s.Eventually(func() bool {
		found := slices.DeleteFunc(custodians(s, s.Server.Command.Process.Pid, "vault"), func(pid int) bool { return slices.Contains(before, pid) || isGone(pid) })
		if len(found) == 1 {
			pid = found[0]
		}
		return len(found) == 1
	}, "the token has no process of its own")
	return pid
}

// newFaultyLab has a daemon serve one key of a token that may misbehave.
func newFaultyLab(t *testing.T, pin string) (*scene, faulty.Module) {
	t.Helper()
	m := faulty.Build(t)
	s := newLab(t, faultyDriver(t, m, pin))
	s.CreateKey("release", "p256")
	s.makeUnlocksCheap("release")
	return s, m
}

const (
	workerKills    = 100
	fewWorkerKills = 15 // with -short
)

// killerBusy is for how long clients ask again while processes are killed.
const killerBusy = 5 * time.Second

// TestTokenProcessKilledAtRandomMoments ends the token's process with SIGKILL, 100 times, while six clients of the
// library and two of the command line sign. Each request ends, each signature is valid and stands once in the record,
// and in the end all is signed.
func TestTokenProcessKilledAtRandomMoments(t *testing.T) {
	s, _ := newFaultyLab(t, lab.TokenPIN)
	s.Serve()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	c := s.gather(t, crowdConfig{Key: "release", Clients: 6, Callers: 1, Pause: 2 * time.Millisecond, Busy: killerBusy, Insist: true})
	commands := []*worker{{t: t, l: s, dir: t.TempDir()}, {t: t, l: s, dir: t.TempDir()}}
	var all sync.WaitGroup
	for _, w := range commands {
		all.Go(func() { w.work(ctx) })
	}
	blocked := s.killWorkers(t, c)
	stop()
	all.Wait()
	signed := c.disperse()
	checkCodes(t, signed, append(troubles, wire.CodeTokenPINRejected)...)
	s.checkRecord(t, signed)
	files := s.checkCommands(t, commands)
	t.Logf("%s by six clients, %d files signed by two; the PIN was blocked %d times", tally(signed), files, blocked)
}

// killWorkers ends the token's process again and again: half of the times at any moment of its life, the others while it signs. As an
// operator would it reloads a token that the daemon leaves alone for a while, and unblocks its PIN when too many logins in a row were killed.
func (s *scene) killWorkers(t *testing.T, c *crowd) (blocked int) {
	t.Helper()
	count, pid := workerKills, 0
	if testing.Short() {
		count = fewWorkerKills
	}
	for i := range count {
		pid = s.nextCustodian(pid)
		appeared := time.Now()
		if i%2 == 0 {
			time.Sleep(time.Duration(rand.IntN(400)) * time.Millisecond)
		} else {
			eventually(t, func() bool {
				if c.wasTold(appeared, wire.CodeTokenPINRejected) {
					blocked++
					s.Operator("token", "unblock", "vault")
					appeared = time.Now()
				}
				return c.allSigned(appeared, 1)
			}, "nobody gets a signature between two kills")
			time.Sleep(time.Duration(rand.IntN(100)) * time.Millisecond)
			pid = s.custodian()
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	return blocked
}

// nextCustodian waits for the process that follows a killed one, and spares the test the pauses before.
func (s *scene) nextCustodian(before int) int {
	s.Helper()
	daemon := s.Server.Command.Process
	for wait := 0; before != 0 && wait < 100; wait++ {
		if found := custodians(s, daemon.Pid, "vault"); len(found) > 0 && !slices.Contains(found, before) {
			break
		}
		if wait%20 == 10 {
			daemon.Signal(syscall.SIGHUP)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return s.custodian(before)
}

// checkCommands looks at what the command line's clients wrote: signatures of all files, by the key, that stand in the record.
func (s *scene) checkCommands(t *testing.T, commands []*worker) (signed int) {
	t.Helper()
	public, recorded := s.publicKey("release"), s.recorded()
	for _, w := range commands {
		for _, file := range w.files {
			signature, err := os.ReadFile(file + ".sig")
			if err != nil {
				t.Errorf("not signed in the end: %v", err)
				continue
			}
			signed++
			sum := sha256.Sum256([]byte(file))
			if !ecdsa.VerifyASN1(public, sum[:], signature) {
				t.Errorf("the signature of %s does not verify", file)
			}
			if recorded[fmt.Sprintf("release:%x", sum)] == 0 {
				t.Errorf("%s was signed, but the record does not say so", file)
			}
		}
	}
	return signed
}

// TestGroupsLoseNothing has two clients keep so many requests in flight that they are signed in groups, while some calls
// to the token fail and its process is killed now and then. Each request ends by itself, and each signature has one record.
func TestGroupsLoseNothing(t *testing.T) {
	s, m := newFaultyLab(t, lab.TokenPIN)
	s.Serve()
	c := s.gather(t, crowdConfig{Key: "release", Clients: 2, Callers: 48, Busy: killerBusy})
	for range 2 {
		time.Sleep(time.Second)
		m.Set(t, "return CKR_DEVICE_ERROR C_Sign 2")
		time.Sleep(time.Second)
		killed := s.custodian()
		if err := syscall.Kill(killed, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		s.custodian(killed)
	}
	m.Clear(t)
	since := time.Now()
	eventually(t, func() bool { return c.allSigned(since, 96) }, "signing does not go on")
	all := c.disperse()
	checkCodes(t, all, troubles...)
	s.checkRecord(t, all)
	t.Log(tally(all))
}

// TestAStoppedTokenProcessIsReplaced stops the token's process, so that it does not even notice how late it is.
func TestAStoppedTokenProcessIsReplaced(t *testing.T) {
	s, _ := newFaultyLab(t, lab.TokenPIN)
	s.Serve()
	c := s.gather(t, crowdConfig{Key: "release", Clients: 8, Callers: 1, Pause: 20 * time.Millisecond, Busy: faultsBusy})
	stopped := s.custodian()
	if err := syscall.Kill(stopped, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	since := time.Now()
	if next := s.custodian(stopped); next == stopped {
		t.Error("the same process again")
	}
	eventually(t, func() bool { return isGone(stopped) }, "the stopped process is still there")
	eventually(t, func() bool { return c.allSigned(since, 8) }, "signing does not go on")
	all := c.disperse()
	checkCodes(t, all, troubles...)
	s.checkRecord(t, all)
	t.Log(tally(all))
}

// TestTheDaemonEndsWhileItsTokenHangs ends the daemon by SIGTERM, which ends in order, and by SIGKILL, while all
// calls to its token hang. No process of the token outlives it.
func TestTheDaemonEndsWhileItsTokenHangs(t *testing.T) {
	s, m := newFaultyLab(t, lab.TokenPIN)
	// Nothing but the daemon's end may end the calls.
	s.Write("server.toml", strings.ReplaceAll(s.Read("server.toml"), fmt.Sprintf("call_timeout = %q", faultsCallTimeout), `call_timeout = "10m"`)+
		"[sessions]\ndrain_timeout = \"2s\"\n")
	s.Serve()
	c := s.gather(t, crowdConfig{Key: "release", Clients: 8, Callers: 1, Pause: 20 * time.Millisecond, Busy: faultsBusy})
	atOnce := min(8, runtime.NumCPU()) // SoftHSM is given few more
	for name, end := range map[string]func() int{
		"SIGTERM": func() int { return s.Server.Terminate() },
		"SIGKILL": func() int { s.Server.Kill(); return 0 },
	} {
		t.Run(name, func(t *testing.T) {
			custodian, calls := s.custodian(), m.Calls(t, "C_Sign")
			m.Set(t, "hang C_Sign")
			eventually(t, func() bool { return m.Calls(t, "C_Sign") >= calls+atOnce }, "nobody waits for the token")
			began := time.Now()
			if code := end(); code != 0 {
				t.Errorf("the daemon ends with %d:\n%s", code, s.Server.Log)
			}
			t.Logf("the daemon ended after %v", time.Since(began))
			eventually(t, func() bool { return isGone(custodian) }, "the token's process outlives the daemon")
			m.Clear(t)
			s.Serve()
			again := time.Now()
			eventually(t, func() bool { return c.allSigned(again, 8) }, "signing does not go on with the next daemon")
		})
	}
	all := c.disperse()
	checkCodes(t, all, slices.Concat(troubles, slices.Collect(maps.Keys(passing)))...)
	s.checkRecord(t, all)
	t.Log(tally(all))
}

// TestThePINIsInTheTokensProcessAlone reads the memory of both processes while a key is unlocked, and after the last session has ended.
// A soft token's PIN goes through a hash that leaves it to the garbage collector, so that it may still be there then, as its keys are.
func TestThePINIsInTheTokensProcessAlone(t *testing.T) {
	pin := cryptorand.Text() + cryptorand.Text()
	for _, d := range []struct {
		lab.Driver
		forgets bool
	}{{softDriver(pin), false}, {faultyDriver(t, faulty.Build(t), pin), true}} {
		t.Run(d.Name, func(t *testing.T) {
			s := newLab(t, d.Driver)
			s.CreateKey("release", "p256")
			s.Serve()
			c, key := s.unlocked(t, "release")
			sum := sha256.Sum256([]byte("x"))
			if _, err := key.SignContext(t.Context(), sum[:], crypto.SHA256); err != nil {
				t.Fatal(err)
			}
			daemon, custodian := s.Server.Command.Process.Pid, s.custodian()
			if !testtool.Remembers(t, daemon, s.Path("state")) {
				t.Fatal("not even what is known to be in the daemon's memory is found there")
			}
			if testtool.Remembers(t, daemon, pin) {
				t.Error("the daemon has the PIN in its memory")
			}
			if !testtool.Remembers(t, custodian, pin) {
				t.Error("the token's process does not have the PIN in its memory while a key is unlocked")
			}
			c.Close()
			s.Server.WaitLog("nobody has the token unlocked")
			if d.forgets && testtool.Remembers(t, custodian, pin) {
				t.Error("the token's process has the PIN in its memory when nobody has a key unlocked any more")
			}
			if testtool.Remembers(t, daemon, pin) {
				t.Error("the daemon has the PIN in its memory in the end")
			}
		})
	}
}

// softDriver keeps the keys of "vault" in files, under a PIN of the test's own.
func softDriver(pin string) lab.Driver {
	return lab.Driver{Name: "soft", Add: func(l *lab.Lab) {
		l.Write("pin", pin)
		lab.Soft.Add(l)
	}}
}
