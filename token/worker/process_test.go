package worker

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"chancery/softhsm/faulty"
	"chancery/token"
	"chancery/token/guard"
)

func TestTokens(t *testing.T) {
	for name, furnished := range map[string]func(testing.TB, ...token.Algorithm) (specification, home){
		"soft":    softHome,
		"SoftHSM": func(t testing.TB, a ...token.Algorithm) (specification, home) { return softHSMHome(t, "", a...) },
	} {
		t.Run(name, func(t *testing.T) {
			algorithms := []token.Algorithm{token.P256, token.RSA2048, token.Ed25519}
			s, home := furnished(t, algorithms...)
			p := start(t, s, nil)
			keys, err := p.Keys(t.Context())
			if err != nil || len(keys) != len(algorithms) {
				t.Fatalf("%d keys, %v", len(keys), err)
			}
			for i, a := range algorithms {
				u := home.unlocking(t, i, byte(i))
				capability := mustUnlock(t, p, u)
				order := ordering(u, capability, digest(1), digest(2), digest(3))
				if a == token.Ed25519 {
					order.Inputs, order.Options = [][]byte{{}, []byte("a message"), make([]byte, 1<<20)}, noHash
				}
				if err := signing(p, order, home.keys[i].Public); err != nil {
					t.Errorf("%s: %v", a, err)
				}
			}
			if err := p.Close(); err != nil {
				t.Error(err)
			}
			if isRunning(p.PID()) {
				t.Error("the process is still there")
			}
		})
	}
}

func TestStartFails(t *testing.T) {
	gone := func(c *Config) { c.Path = "/nonexistent/program" }
	for name, test := range map[string]struct {
		fake   fakeConfig
		change func(*Config)
		want   error
	}{
		"no such program":     {fakeConfig{}, gone, os.ErrNotExist},
		"the token is absent": {fakeConfig{Open: "fail"}, nil, token.ErrTokenAbsent},
		"opening hangs":       {fakeConfig{Open: "hang"}, func(c *Config) { c.OpenTimeout = 200 * time.Millisecond }, ErrGone},
		"it ends at once":     {fakeConfig{}, func(c *Config) { c.Environment = []string{role + "=nonsense"} }, ErrGone},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := newFakeHome(t, test.fake)
			_, err := tryStart(t, s, test.change)
			want(t, name, err, test.want)
		})
	}
}

// ends begins a signature that ends the process, and others that must be told.
func ends(t *testing.T, fate string, change func(*Config), act func(p *Process)) *Process {
	t.Helper()
	s, home := newFakeHome(t, fakeConfig{})
	p := start(t, s, change)
	u := home.unlocking(t, 0, 1)
	capability := mustUnlock(t, p, u)
	var all sync.WaitGroup
	for range 20 { // more than slots
		all.Go(func() {
			want(t, fate, signing(p, ordering(u, capability, command(fate)), home.keys[0].Public), ErrGone)
		})
	}
	if act != nil {
		time.Sleep(100 * time.Millisecond)
		act(p)
	}
	all.Wait()
	<-p.Done()
	if isRunning(p.PID()) {
		t.Error("the process is still there")
	}
	_, err := p.Keys(t.Context())
	want(t, "afterwards", err, ErrGone)
	want(t, "as the signer sees it", err, token.ErrTokenAbsent)
	for range 2 {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	return p
}

func TestAProcessThatEnds(t *testing.T) {
	brief := func(c *Config) { c.CallTimeout = 400 * time.Millisecond }
	silent := func(c *Config) { c.CallTimeout, c.PingEvery = time.Hour, 100*time.Millisecond }
	for name, test := range map[string]struct {
		fate   string
		change func(*Config)
		act    func(p *Process)
		cause  string
	}{
		"panics":        {"panic", nil, nil, "exit status 2"},
		"aborts":        {"abort", nil, nil, "exit status 2"},
		"hangs":         {"hang", brief, nil, "signing took longer than 400ms"},
		"is killed":     {"hang", nil, func(p *Process) { _ = syscall.Kill(p.PID(), syscall.SIGKILL) }, "signal 9"},
		"is stopped":    {"hang", silent, func(p *Process) { _ = syscall.Kill(p.PID(), syscall.SIGSTOP) }, "did not answer"},
		"is terminated": {"hang", brief, func(p *Process) { _ = syscall.Kill(p.PID(), syscall.SIGTERM) }, "took longer"},
	} {
		t.Run(name, func(t *testing.T) {
			p := ends(t, test.fate, test.change, test.act)
			if text := p.ended.Error(); !strings.Contains(text, test.cause) {
				t.Errorf("cause: %s", text)
			}
			if code := p.command.ProcessState.ExitCode(); name == "hangs" && code != ExitHung {
				t.Errorf("exit code %d", code)
			}
		})
	}
}

func TestAWorkerThatIsBusyIsNotTakenForDead(t *testing.T) {
	s, home := newFakeHome(t, fakeConfig{Slots: 2})
	p := start(t, s, func(c *Config) { c.PingEvery = 200 * time.Millisecond })
	u := home.unlocking(t, 0, 1)
	capability := mustUnlock(t, p, u)
	batch := make([][]byte, 50)
	for i := range batch {
		batch[i] = command("slow")
	}
	// Callers that give up leave their batches behind, which hold their slots until they have ended.
	for range 6 {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		_, err := p.Sign(ctx, ordering(u, capability, batch...))
		want(t, "given up", err, context.DeadlineExceeded)
		cancel()
	}
	began := time.Now()
	if err := signing(p, ordering(u, capability, digest(1)), home.keys[0].Public); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("batches that nobody waits for went on for %v", took)
	}
	if err := signing(p, ordering(u, capability, batch...), home.keys[0].Public); err != nil {
		t.Errorf("a batch longer than some pings: %v", err)
	}
}

func TestAnUnlockThatNobodyWaitsForIsLocked(t *testing.T) {
	s, home := newFakeHome(t, fakeConfig{})
	p := start(t, s, nil)
	u := home.unlocking(t, 0, 1)
	ledger := notebookOf(u)
	ledger.block = make(chan struct{})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := p.Unlock(ctx, u, ledger)
	want(t, "unlock", err, context.DeadlineExceeded)
	close(ledger.block)
	eventually(t, "logged in and out again", func() bool { return len(home.attempts(t)) == 1 && !isLoggedIn(t, p) })
	if derived, _ := ledger.seen(); derived != 1 {
		t.Errorf("told %d times of a derivation", derived)
	}
}

func TestADerivationIsOverWhenItsProcessIs(t *testing.T) {
	s, home := newFakeHome(t, fakeConfig{})
	p := start(t, s, nil)
	u := home.unlocking(t, 0, 1)
	ledger := notebookOf(u)
	stop(t, p.PID())
	failed := make(chan error, 1)
	go func() {
		_, err := p.Unlock(context.Background(), u, ledger)
		failed <- err
	}()
	time.Sleep(50 * time.Millisecond)
	if err := syscall.Kill(p.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	want(t, "unlock", <-failed, ErrGone)
	if derived, _ := ledger.seen(); derived != 1 {
		t.Errorf("told %d times of a derivation", derived)
	}
}

// slowLogin is a token whose login takes as long as somebody likes.
type slowLogin struct {
	*fake
	begun, end chan struct{}
}

func (s slowLogin) Login(context.Context, []byte) error {
	close(s.begun)
	<-s.end
	return nil
}

// TestWaitingForAnotherProcessesLoginIsNoHang: an operator's command that is logging in to the token for longer than a call may take
// costs an unlock that time, and the process nothing.
func TestWaitingForAnotherProcessesLoginIsNoHang(t *testing.T) {
	const limit = 400 * time.Millisecond
	s, home := newFakeHome(t, fakeConfig{PINs: t.TempDir()})
	p := start(t, s, func(c *Config) { c.CallTimeout = limit })
	open, err := openFake(s.Fake)
	if err != nil {
		t.Fatal(err)
	}
	operator := slowLogin{open, make(chan struct{}), make(chan struct{})}
	var both sync.WaitGroup
	both.Go(func() {
		if err := guard.New(s.Fake.PINs).Wrap(operator).Login(t.Context(), []byte(rightPIN)); err != nil {
			t.Errorf("the operator's login: %v", err)
		}
	})
	<-operator.begun
	u := home.unlocking(t, 0, 1)
	both.Go(func() {
		if _, err := p.Unlock(t.Context(), u, notebookOf(u)); err != nil {
			t.Errorf("unlock: %v", err)
		}
	})
	select {
	case <-p.Done():
		t.Errorf("the process has ended: %v", p.ended)
	case <-time.After(3 * limit):
	}
	close(operator.end)
	both.Wait()
}

func TestAProcessThatIgnoresClose(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"after Serve":            func(c *Config) { c.Environment = append(c.Environment, "WORKER_TEST_IGNORES_CLOSE=1") },
		"since the token hangs":  nil,
		"since it is stopped":    nil,
		"since the link is full": nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, home := newFakeHome(t, fakeConfig{Stuck: strings.Contains(name, "hangs")})
			p := start(t, s, change)
			u := home.unlocking(t, 0, 1)
			capability := mustUnlock(t, p, u)
			if strings.Contains(name, "stopped") || strings.Contains(name, "full") {
				stop(t, p.PID())
			}
			var calls sync.WaitGroup
			if strings.Contains(name, "full") {
				calls.Go(func() { _, _ = p.Sign(context.Background(), ordering(u, capability, make([]byte, 4<<20))) })
				time.Sleep(50 * time.Millisecond)
			}
			var all sync.WaitGroup
			for range 3 {
				all.Go(func() {
					if p.Close() == nil {
						t.Error("Close says that it was in order")
					}
				})
			}
			all.Wait()
			calls.Wait()
			if isRunning(p.PID()) {
				t.Error("the process is still there")
			}
		})
	}
}

func TestTheEndOfTheParentEndsTheWorker(t *testing.T) {
	for name, cfg := range map[string]fakeConfig{"while a call hangs": {}, "while opening hangs": {Open: "hang"}} {
		t.Run(name, func(t *testing.T) {
			s, _ := newFakeHome(t, cfg)
			text, err := json.Marshal(s)
			if err != nil {
				t.Fatal(err)
			}
			parent := exec.Command(os.Args[0])
			parent.Env = append(os.Environ(), role+"=parent", "WORKER_TEST_SPECIFICATION="+string(text))
			output, err := parent.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := parent.Start(); err != nil {
				t.Fatal(err)
			}
			var child int
			if _, err := fmt.Fscan(bufio.NewReader(output), &child); err != nil || child == 0 {
				t.Errorf("no worker: %v", err)
			}
			if !isRunning(child) {
				t.Errorf("process %d is not there", child)
			}
			if err := parent.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = parent.Wait() // killed, as it should be
			eventually(t, "the worker ends", func() bool { return !isRunning(child) })
		})
	}
}

// What a terminal or systemd sends to all processes does not end a worker before the daemon is through with it.
func TestGroupSignalsAreIgnored(t *testing.T) {
	s, home := newFakeHome(t, fakeConfig{})
	p := start(t, s, nil)
	u := home.unlocking(t, 0, 1)
	capability := mustUnlock(t, p, u)
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		if err := syscall.Kill(p.PID(), signal); err != nil {
			t.Fatal(err)
		}
		if err := signing(p, ordering(u, capability, digest(1)), home.keys[0].Public); err != nil {
			t.Errorf("after %v: %v", signal, err)
		}
	}
}

func framed(kind byte, call uint64, body string) string {
	var b []byte
	b = append(b, 0, 0, 0, byte(9+len(body)), kind)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, byte(call))
	return hex.EncodeToString(append(b, body...))
}

func TestAWorkerThatLies(t *testing.T) {
	for name, lie := range map[string]string{
		"too short":           "00000001",
		"too long":            "ffffffff",
		"half a frame":        "00000020aa",
		"a kind for workers":  framed(kindSign, 2, ""),
		"an unknown kind":     framed(99, 2, ""),
		"a result in no form": framed(kindResult, 2, "{"),
		"an error in no form": framed(kindFailure, 2, "x"),
		"a question of none":  framed(kindAsk, 2, `{"About":"reject","TokenID":3,"Version":1}`),
		"to nobody":           framed(kindAsk, 77, `{}`),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := start(t, specification{}, func(c *Config) {
				c.Environment = append(c.Environment, lies+"="+lie)
				c.PingEvery = 200 * time.Millisecond
			})
			_, err := p.Keys(t.Context())
			want(t, name, err, ErrGone)
			<-p.Done()
		})
	}
}

// A module that answers much for each of many calls must not fill the daemon's memory.
func TestResultsAreBounded(t *testing.T) {
	p := &Process{pending: map[uint64]*pending{}, slots: make(chan struct{}, 1)}
	for name, test := range map[string]struct {
		most, size int
		good       bool
	}{
		"a signature": {4 + inputOverhead + maxSignature, 4 + inputOverhead + 512, true}, "the longest": {40, 40, true}, "longer": {40, 41, false},
	} {
		waiting := newPending()
		waiting.most = test.most
		p.pending[1] = waiting
		if err := p.handle(frame{kindResult, 1, make([]byte, test.size)}); errors.Is(err, errFrame) == test.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A module that has taken over its process learns or changes nothing about other tokens by the ledger.
func TestAWorkerAsksAboutItsOwnTokenOnly(t *testing.T) {
	_, home := newFakeHome(t, fakeConfig{})
	u := home.unlocking(t, 0, 1)
	ledger := notebookOf(u)
	a := newAdviser(ledger, u.Token)
	for _, q := range []question{
		{About: askToken, TokenID: 4}, {About: askReject, TokenID: 4, Version: 1}, {About: askCommit, TokenID: 3, Version: 2},
		{About: "more", TokenID: 3, Version: 1}, {About: askReject, Version: 1},
	} {
		if _, err := a.consult(q); !errors.Is(err, errFrame) {
			t.Errorf("%+v: %v", q, err)
		}
	}
	for range 2 {
		if _, err := a.consult(question{About: askDerived}); err != nil {
			t.Error(err)
		}
	}
	if derived, told := ledger.seen(); derived != 1 || len(told) > 0 {
		t.Errorf("derived %d times, told %q", derived, told)
	}
	asked := 0
	for ; asked < 1000 && a.begin(); asked++ {
		a.end()
	}
	if asked != maxQuestions {
		t.Errorf("%d questions were allowed", asked)
	}
}

func TestAModuleThatMisbehaves(t *testing.T) {
	module := faulty.Build(t)
	s, home := softHSMHome(t, module.Path, token.P256)
	for name, test := range map[string]struct{ command, cause string }{
		"crashes": {"crash C_Sign 1", "exit status 2"},
		"hangs":   {"hang C_Sign 1", "signing took longer"},
	} {
		t.Run(name, func(t *testing.T) {
			module.Clear(t)
			p := start(t, s, func(c *Config) { c.CallTimeout = 2 * time.Second })
			u := home.unlocking(t, 0, 1)
			capability := mustUnlock(t, p, u)
			module.Set(t, test.command)
			want(t, name, signing(p, ordering(u, capability, digest(1)), home.keys[0].Public), ErrGone)
			<-p.Done()
			if text := p.ended.Error(); !strings.Contains(text, test.cause) {
				t.Errorf("cause: %s", text)
			}
			again := start(t, s, nil)
			capability = mustUnlock(t, again, u)
			if err := signing(again, ordering(u, capability, digest(1)), home.keys[0].Public); err != nil {
				t.Error(err)
			}
		})
	}
}

// pool is a token whose process is started again whenever it has ended, as a daemon does.
type pool struct {
	t       testing.TB
	s       specification
	home    home
	current atomic.Pointer[running]
}

type running struct {
	p          *Process
	u          Unlock
	capability Capability
}

func (r *pool) restart() {
	p := start(r.t, r.s, nil)
	u := r.home.unlocking(r.t, 0, 1)
	r.current.Store(&running{p, u, mustUnlock(r.t, p, u)})
}

// Every call ends in a valid signature or in ErrGone, whenever the process is killed.
func TestKilledAHundredTimes(t *testing.T) {
	s, home := newFakeHome(t, fakeConfig{})
	r := &pool{t: t, s: s, home: home}
	r.restart()
	before := runtime.NumGoroutine()
	var stop atomic.Bool
	var good, gone atomic.Int64
	var callers sync.WaitGroup
	for i := range 16 {
		callers.Go(func() {
			for n := 0; !stop.Load(); n++ {
				now := r.current.Load()
				err := signing(now.p, ordering(now.u, now.capability, digest(i), digest(n)), home.keys[0].Public)
				switch {
				case err == nil:
					good.Add(1)
				case errors.Is(err, ErrGone):
					gone.Add(1)
					for r.current.Load() == now && !stop.Load() {
						time.Sleep(time.Millisecond)
					}
				default:
					t.Errorf("sign: %v", err)
				}
			}
		})
	}
	for range 100 {
		time.Sleep(time.Duration(rand.IntN(20_000)) * time.Microsecond)
		victim := r.current.Load().p
		if err := syscall.Kill(victim.PID(), syscall.SIGKILL); err != nil {
			t.Error(err)
		}
		<-victim.Done()
		r.restart()
	}
	stop.Store(true)
	callers.Wait()
	t.Logf("%d requests signed, %d told that the process is gone", good.Load(), gone.Load())
	if good.Load() == 0 || gone.Load() == 0 {
		t.Error("nothing was signed, or nobody was hit")
	}
	if err := r.current.Load().p.Close(); err != nil {
		t.Error(err)
	}
	eventually(t, "no goroutine is left over", func() bool { return runtime.NumGoroutine() <= before })
}
