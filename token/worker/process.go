package worker

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Config says how to start a token's process. Zero durations mean the defaults.
type Config struct {
	Path          string   // the program; empty: the running one
	Args          []string // which have it call Serve with the link at LinkFD
	Environment   []string // nil: that of the running program without what is for it alone
	Specification []byte   // what the Opener at the other end is given
	Log           *slog.Logger
	// Unverified has signatures given out as the token makes them: for a token that verifies its own, as package
	// replica does, and for measuring what that costs.
	Unverified bool

	// Derivations is how many passphrases the process derives at once, each in access.MaxMemoryKiB at most; further ones wait. It is for
	// life, whatever comes over the link. Default DefaultDerivations. Not below what its caller has under way in all, or these wait here.
	Derivations int

	CallTimeout time.Duration // default 10 s: a call to the token that takes longer ends the process; waiting for others that end meanwhile, or for another process's login, does not count
	OpenTimeout time.Duration // default 30 s: from starting the process until the token is open
	PingEvery   time.Duration // default 5 s; a process that leaves a ping unanswered for twice as long is ended
}

func (c Config) withDefaults() Config {
	for _, d := range []struct {
		of    *time.Duration
		value time.Duration
	}{{&c.CallTimeout, 10 * time.Second}, {&c.OpenTimeout, 30 * time.Second}, {&c.PingEvery, 5 * time.Second}} {
		if *d.of <= 0 {
			*d.of = d.value
		}
	}
	if c.Derivations <= 0 {
		c.Derivations = DefaultDerivations
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return c
}

// Process is a token in a process of its own.
type Process struct {
	cfg     Config
	log     *slog.Logger
	link    *link
	command *exec.Cmd
	slots   chan struct{} // calls to sign that the worker takes at once

	heard     atomic.Uint64 // frames that the worker has sent
	hung      atomic.Pointer[string]
	silent    atomic.Bool
	malformed atomic.Bool
	started   atomic.Bool
	closing   atomic.Bool
	done      chan struct{}
	closed    error // what Close returns, once done

	mu      sync.Mutex
	last    uint64
	pending map[uint64]*pending
	ended   error // why, once done
}

// Start starts a process and returns when it has opened its token. The error is why it could not, or wraps ErrGone.
func Start(ctx context.Context, cfg Config) (*Process, error) {
	cfg = cfg.withDefaults()
	near, far, err := socketpair()
	if err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	command := cfg.command(far)
	err = command.Start()
	far.Close() // or else the end of the process would not be that of the link
	if err != nil {
		near.Close()
		return nil, fmt.Errorf("worker: start the token's process: %w", err)
	}
	p := &Process{
		cfg: cfg, log: cfg.Log, link: newLink(near), command: command,
		done: make(chan struct{}), pending: make(map[uint64]*pending),
	}
	go p.receive()
	if err := p.open(ctx); err != nil {
		p.kill()
		<-p.done
		return nil, err
	}
	p.started.Store(true)
	go p.watch()
	return p, nil
}

// socketpair returns both ends of a link; the far one is for the worker.
func socketpair() (near net.Conn, far *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	nearFile := os.NewFile(uintptr(fds[0]), "token worker")
	defer nearFile.Close()
	far = os.NewFile(uintptr(fds[1]), "token worker, far end")
	if near, err = net.FileConn(nearFile); err != nil {
		far.Close()
		return nil, nil, err
	}
	return near, far, nil
}

// ownProgram is the program that runs, even if another version was installed over it meanwhile: both ends speak the same (proc(5)).
const ownProgram = "/proc/self/exe"

func (c *Config) command(link *os.File) *exec.Cmd {
	command := exec.Command(cmp.Or(c.Path, ownProgram), c.Args...)
	if c.Path == "" {
		command.Args[0] = os.Args[0]
	}
	command.Env = c.Environment
	if command.Env == nil {
		command.Env = Inherited(os.Environ())
	}
	command.Stderr = os.Stderr
	command.ExtraFiles = []*os.File{link} // becomes LinkFD
	return command
}

// Inherited leaves out what systemd tells the daemon alone, and the daemon's own settings: what is left is for a process of the
// daemon's that loads somebody else's code.
func Inherited(environment []string) []string {
	var kept []string
	for _, entry := range environment {
		name, _, _ := strings.Cut(entry, "=")
		switch {
		case name == "NOTIFY_SOCKET", name == "CREDENTIALS_DIRECTORY", name == "INVOCATION_ID",
			strings.HasPrefix(name, "WATCHDOG_"), strings.HasPrefix(name, "LISTEN_"), strings.HasPrefix(name, "CHANCERY_"):
		default:
			kept = append(kept, entry)
		}
	}
	return kept
}

func (p *Process) open(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.OpenTimeout)
	defer cancel()
	text, err := json.Marshal(opening{CallTimeout: p.cfg.CallTimeout, Derivations: p.cfg.Derivations, Specification: p.cfg.Specification, Unverified: p.cfg.Unverified})
	if err != nil {
		return err
	}
	var result opened
	err = p.ask(ctx, kindOpen, text, &result)
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("worker: the token was not open after %v: %w", p.cfg.OpenTimeout, ErrGone)
	}
	if err != nil {
		return err
	}
	p.slots = make(chan struct{}, min(max(result.Slots, 1), maxSlots))
	return nil
}

// Slots is how many calls to Sign the worker takes at once; further ones wait.
func (p *Process) Slots() int { return cap(p.slots) }

// PID is the process' number.
func (p *Process) PID() int { return p.command.Process.Pid }

// receive hands out what the worker says, until it ends.
func (p *Process) receive() {
	for {
		f, err := p.link.read()
		if err == nil {
			p.heard.Add(1)
			err = p.handle(f)
		}
		if errors.Is(err, errFrame) {
			p.distrust()
		}
		if err != nil {
			p.bury()
			return
		}
	}
}

func (p *Process) handle(f frame) error {
	switch f.kind {
	case kindResult:
		if !p.awaited(f.call, len(f.body)) {
			return fmt.Errorf("%w: a result of %d bytes", errFrame, len(f.body))
		}
		p.deliver(f.call, outcome{body: bytes.Clone(f.body)})
	case kindFailure:
		failure, err := parseError(f.body)
		if err != nil {
			return err
		}
		p.deliver(f.call, outcome{err: failure})
	case kindAsk:
		return p.answer(f.call, f.body)
	case kindHung:
		what := string(f.body[:min(len(f.body), maxErrorText)])
		p.hung.Store(&what)
	default:
		return fmt.Errorf("%w: kind %d", errFrame, f.kind)
	}
	return nil
}

// distrust ends a process that sent what no worker sends.
func (p *Process) distrust() {
	p.malformed.Store(true)
	p.kill()
}

// bury waits for the process' end, which comes of itself or is brought about, and tells everybody who waits.
func (p *Process) bury() {
	err := p.reap()
	p.link.conn.Close()
	cause := p.cause(err)
	if p.closing.Load() && err != nil {
		p.closed = fmt.Errorf("worker: close the token's process %d: %s", p.PID(), cause)
	}
	p.mu.Lock()
	p.ended = fmt.Errorf("%w: %s", ErrGone, cause)
	calls := p.pending
	p.pending = nil
	p.mu.Unlock()
	// Before whoever learns of the end can close it.
	if p.started.Load() && !p.closing.Load() { // else Start or Close says it
		p.log.Error("the token's process ended", "pid", p.PID(), "cause", cause, "calls", len(calls))
	}
	close(p.done)
	for _, waiting := range calls {
		p.settle(waiting, outcome{err: p.ended})
	}
}

// reap waits for a process that has closed the link, or was killed. One that the kernel does not end, in a
// driver's call for instance, is left to itself.
func (p *Process) reap() error {
	exited := make(chan error, 1)
	go func() { exited <- p.command.Wait() }()
	for range 2 {
		select {
		case err := <-exited:
			return err
		case <-time.After(lastWords):
			p.kill()
		}
	}
	return errors.New("it does not end although it was killed")
}

// cause says for people why the process ended.
func (p *Process) cause(err error) string {
	if what := p.hung.Load(); what != nil {
		return fmt.Sprintf("%s took longer than %v", *what, p.cfg.CallTimeout)
	}
	if p.silent.Load() {
		return "it did not answer any more"
	}
	if p.malformed.Load() {
		return "it sent a malformed message"
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			return fmt.Sprintf("signal %d (%s)", status.Signal(), status.Signal())
		}
	}
	if err != nil {
		return err.Error()
	}
	return "it was closed"
}

// kill ends the process, and the reading of what it said last: the kernel may keep a process that was killed, and its end of
// the link, for as long as a driver likes.
func (p *Process) kill() {
	_ = p.command.Process.Kill()
	_ = p.link.conn.SetReadDeadline(time.Now().Add(lastWords))
}

// pingsMissed ends a process: it said nothing for so many times Config.PingEvery, the last two after a ping. Rounds are
// counted, and not time, which may pass while both processes are stopped.
const pingsMissed = 3

// watch ends a process that does not answer.
func (p *Process) watch() {
	ticker := time.NewTicker(p.cfg.PingEvery)
	defer ticker.Stop()
	var heard uint64
	for missed := 0; ; {
		select {
		case <-p.done:
			return
		case <-ticker.C:
		}
		if now := p.heard.Load(); now != heard {
			heard, missed = now, 0
			continue
		}
		if missed++; missed >= pingsMissed {
			p.silent.Store(true)
			p.kill()
			return
		}
		go func() { _ = p.link.write(kindPing, 0, 0, nil) }()
	}
}

// Close has the worker log out and end, and ends it when it does not. It may be called again, and returns the same then; a process
// that had ended before is no error.
func (p *Process) Close() error {
	p.closing.Store(true)
	go func() { _ = p.link.write(kindClose, 0, 0, nil) }() // a link that is full must not delay the end
	select {
	case <-p.done:
	case <-time.After(2 * lastWords):
		p.kill()
		<-p.done
	}
	return p.closed
}

// Done implements Handler.
func (p *Process) Done() <-chan struct{} { return p.done }
