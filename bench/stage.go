package main

import (
	"cmp"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"chancery/e2e/lab"
)

// algorithms are those measured; each has a key of the same name on the token.
var algorithms = []string{"rsa2048", "rsa4096", "p256", "ed25519"}

// titles are their names for people.
var titles = map[string]string{"rsa2048": "RSA-2048", "rsa4096": "RSA-4096", "p256": "P-256", "ed25519": "Ed25519"}

// stage holds what a run needs: labs, workers, and how long to measure.
type stage struct {
	host
	options     options
	slice       time.Duration // how long one figure is measured before the next one's turn
	repetitions int           // how many slices a figure has
	chain       *lab.Lab      // bridge, server, SoftHSM
	client      *worker       // a client of the chain
	raw         *worker       // the token without anything of ours
	programs    string
}

// onStage builds the programs and runs act with a stage that is taken down afterwards.
func onStage(o options, act func(*stage) error) (err error) {
	s := &stage{options: o, slice: time.Second, repetitions: 5}
	if o.quick {
		s.slice, s.repetitions = 300*time.Millisecond, 3
	}
	defer s.end()
	defer func() {
		if failure, ok := recover().(stageFailure); ok {
			err = failure
		}
	}()
	s.programs = s.TempDir()
	s.say("building the programs")
	if err := lab.Build(s.programs); err != nil {
		return err
	}
	s.say("making certificates, a token and keys")
	s.chain = s.newChain(variant{})
	s.client = s.newClient(s.chain)
	s.asUnit(func() { // under the same conditions as the chain
		s.raw = startWorker(s, "raw", s.chain.Environment, s.rawSettings())
	})
	return act(s)
}

// rawSettings name the chain's token.
func (s *stage) rawSettings() rawSettings {
	hsm := s.chain.HSM
	return rawSettings{Module: hsm.Store.Module, Serial: hsm.Serial, PIN: string(hsm.PIN)}
}

// sliceOf is a slice for signatures with a key. Those that take milliseconds need longer: 64 in flight should go round more often
// than three times.
func (s *stage) sliceOf(key string) time.Duration {
	if key == "rsa4096" {
		return 3 * s.slice
	}
	return s.slice
}

// everyLab is the configuration that all labs share: logs as in production, and
// limits that a benchmark of one user needs. Everything else is the default.
var everyLab = []string{
	"CHANCERY_SERVER_LOG_LEVEL=info",
	"CHANCERY_SERVER_SESSIONS_MAXIMUM=2048",
	"CHANCERY_SERVER_SESSIONS_MAXIMUM_PER_USER=2048",
	"CHANCERY_BRIDGE_LIMITS_WAITING=8192",
	"CHANCERY_BRIDGE_LIMITS_SESSIONS=4096",
	"CHANCERY_BRIDGE_LIMITS_SESSIONS_PER_CLIENT=4096",
}

// newChain starts bridge and server with a SoftHSM token and a key of every
// algorithm.
func (s *stage) newChain(v variant) *lab.Lab {
	driver := lab.SoftHSM
	driver.Environment = slices.Concat(everyLab, v.configuration)
	var l *lab.Lab
	s.asUnit(func() {
		l = lab.New(s, cmp.Or(v.programs, s.programs), driver)
		for _, algorithm := range algorithms {
			l.CreateKey(algorithm, algorithm)
		}
		l.Serve()
	})
	return l
}

// unitFile is the server's unit, seen from the top of the repository, where the benchmark runs.
const unitFile = "packaging/systemd/chancery-server.service"

// unitSlack returns the unit's TimerSlackNSec (systemd.exec(5)).
func unitSlack() (time.Duration, error) {
	unit, err := os.ReadFile(unitFile)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(unit)) {
		if value, found := strings.CutPrefix(line, "TimerSlackNSec="); found {
			return time.ParseDuration(strings.TrimSpace(value))
		}
	}
	return 0, fmt.Errorf("%s sets no TimerSlackNSec", unitFile)
}

// asUnit has the processes that start begins with what their units set for them, as far as it bears on the measurements.
func (h *host) asUnit(start func()) {
	runtime.LockOSThread() // the slack is the thread's, and of the processes that it starts
	defer runtime.UnlockOSThread()
	slack, err := unitSlack()
	h.must(err)
	h.must(unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(slack), 0, 0, 0))
	defer unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0) // the default again
	start()
}

// newClient starts a client process for a lab.
func (s *stage) newClient(l *lab.Lab) *worker {
	return startWorker(s, "client", nil, settingsFor(l))
}

func settingsFor(l *lab.Lab) clientSettings {
	return clientSettings{
		Bridge: l.Clients, CA: l.Path("pki/ca.crt"), Certificate: l.Path("pki/alice.crt"), Key: l.Path("pki/alice.key"),
		Passphrase: lab.AlicePassphrase,
	}
}

// host is the lab.TB of a program that is no test.
type host struct {
	cleanups []func()
	failed   bool
}

// stageFailure ends a run from any depth; onStage turns it into an error.
type stageFailure struct{ text string }

func (f stageFailure) Error() string { return f.text }

func (h *host) Helper() {}

func (h *host) Fatal(args ...any) {
	h.failed = true
	panic(stageFailure{strings.TrimSuffix(fmt.Sprintln(args...), "\n")})
}

func (h *host) Fatalf(format string, args ...any) {
	h.failed = true
	panic(stageFailure{fmt.Sprintf(format, args...)})
}

func (h *host) Logf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
func (h *host) Failed() bool                    { return h.failed }
func (h *host) Cleanup(f func())                { h.cleanups = append(h.cleanups, f) }

func (h *host) TempDir() string {
	dir, err := os.MkdirTemp("", "chancery-bench-")
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// end takes down what was set up, last first.
func (h *host) end() {
	for i := len(h.cleanups) - 1; i >= 0; i-- {
		h.cleanups[i]()
	}
}

// say tells the person who waits what is being done.
func (h *host) say(format string, args ...any) { h.Logf("bench: "+format, args...) }

// must ends the run unless err is nil.
func (h *host) must(err error) {
	if err != nil {
		h.Fatal(err)
	}
}
