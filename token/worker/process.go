package worker

import (
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

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"chancery/token"
)

// Config says how to start a token's process. Zero durations mean the defaults.
type Config struct {
	Path          string   // the program; empty: the running one
	Args          []string // which have it call Serve with the link at LinkFD
	Environment   []string // nil: that of the running program without what is for it alone
	Specification []byte   // what the Opener at the other end is given
	Log           *slog.Logger

	CallTimeout time.Duration // default 10 s: a call to the token that takes longer ends the process
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
	slots   *semaphore.Weighted // calls to sign that the worker takes at once
	number  int

	heard   atomic.Int64 // when the worker last said something, in Unix nanoseconds
	hung    atomic.Pointer[string]
	silent  atomic.Bool
	closing atomic.Bool
	done    chan struct{}

	mu      sync.Mutex
	last    uint64
	pending map[uint64]*pending
	ended   error // why, once done
}

// pending is one call that waits for its result.
type pending struct {
	result chan outcome
	ledger Ledger // nil for all but Unlock
}

type outcome struct {
	body []byte
	err  error
}

// Start starts a process and returns when it has opened its token. The error is why it could not, or wraps ErrGone.
func Start(ctx context.Context, cfg Config) (*Process, error) {
	cfg = cfg.withDefaults()
	near, far, err := socketpair()
	if err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	defer far.Close()
	command, err := cfg.command(far)
	if err == nil {
		err = command.Start()
	}
	if err != nil {
		near.Close()
		return nil, fmt.Errorf("worker: start the token's process: %w", err)
	}
	p := &Process{
		cfg: cfg, log: cfg.Log, link: newLink(near), command: command,
		done: make(chan struct{}), pending: make(map[uint64]*pending),
	}
	p.heard.Store(time.Now().UnixNano())
	go p.receive()
	if err := p.open(ctx); err != nil {
		p.kill()
		<-p.done
		return nil, err
	}
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

func (c *Config) command(link *os.File) (*exec.Cmd, error) {
	path := c.Path
	if path == "" {
		var err error
		if path, err = os.Executable(); err != nil {
			return nil, err
		}
	}
	command := exec.Command(path, c.Args...)
	command.Env = c.Environment
	if command.Env == nil {
		command.Env = inherited(os.Environ())
	}
	command.Stderr = os.Stderr
	command.ExtraFiles = []*os.File{link} // becomes LinkFD
	return command, nil
}

// inherited leaves out what systemd tells the daemon alone, and the daemon's own settings.
func inherited(environment []string) []string {
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
	text, err := json.Marshal(opening{CallTimeout: p.cfg.CallTimeout, Specification: p.cfg.Specification})
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
	p.slots = semaphore.NewWeighted(int64(max(result.Slots, 1)))
	p.number = max(result.Slots, 1)
	return nil
}

// Slots is how many calls to Sign the worker takes at once; further ones wait.
func (p *Process) Slots() int { return p.number }

// PID is the process' number.
func (p *Process) PID() int { return p.command.Process.Pid }

// receive hands out what the worker says, until it ends.
func (p *Process) receive() {
	for {
		f, err := p.link.read()
		if err != nil {
			break
		}
		p.heard.Store(time.Now().UnixNano())
		switch f.kind {
		case kindResult:
			p.deliver(f.call, outcome{body: append([]byte(nil), f.body...)})
		case kindFailure:
			p.deliver(f.call, outcome{err: parseError(f.body)})
		case kindAsk:
			p.answer(f.call, append([]byte(nil), f.body...))
		case kindHung:
			what := string(f.body)
			p.hung.Store(&what)
		}
	}
	p.bury()
}

// bury waits for the process' end, which comes of itself or is brought about, and tells everybody who waits.
func (p *Process) bury() {
	patience := time.AfterFunc(lastWords, p.kill)
	err := p.command.Wait()
	patience.Stop()
	p.link.conn.Close()
	p.mu.Lock()
	p.ended = fmt.Errorf("%w: %s", ErrGone, p.cause(err))
	calls := p.pending
	p.pending = nil
	p.mu.Unlock()
	close(p.done)
	for _, waiting := range calls {
		waiting.result <- outcome{err: p.ended}
	}
	if p.closing.Load() {
		return
	}
	p.log.Error("the token's process ended", "pid", p.PID(), "cause", p.cause(err), "calls", len(calls))
}

// cause says for people why the process ended.
func (p *Process) cause(err error) string {
	if what := p.hung.Load(); what != nil {
		return fmt.Sprintf("%s took longer than %v", *what, p.cfg.CallTimeout)
	}
	if p.silent.Load() {
		return "it did not answer any more"
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

func (p *Process) kill() { _ = p.command.Process.Kill() }

// watch ends a process that does not answer.
func (p *Process) watch() {
	ticker := time.NewTicker(p.cfg.PingEvery)
	defer ticker.Stop()
	for {
		select {
		case <-p.done:
			return
		case <-ticker.C:
		}
		silence := time.Since(time.Unix(0, p.heard.Load()))
		if silence > 3*p.cfg.PingEvery {
			p.silent.Store(true)
			p.kill()
			return
		}
		if silence >= p.cfg.PingEvery/2 {
			go func() { _ = p.link.write(kindPing, 0, nil) }()
		}
	}
}

func (p *Process) register(ledger Ledger) (uint64, *pending, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pending == nil {
		return 0, nil, p.ended
	}
	p.last++
	waiting := &pending{result: make(chan outcome, 1), ledger: ledger}
	p.pending[p.last] = waiting
	return p.last, waiting, nil
}

func (p *Process) take(number uint64) *pending {
	p.mu.Lock()
	defer p.mu.Unlock()
	waiting := p.pending[number]
	delete(p.pending, number)
	return waiting
}

func (p *Process) deliver(number uint64, o outcome) {
	if waiting := p.take(number); waiting != nil {
		waiting.result <- o
	}
}

// await returns the result. When ctx ends first the call is given up, and what it brings later is dropped.
func (p *Process) await(ctx context.Context, number uint64, waiting *pending) ([]byte, error) {
	select {
	case o := <-waiting.result:
		return o.body, o.err
	case <-ctx.Done():
		p.take(number)
		return nil, fmt.Errorf("the token has not answered yet: %w", context.Cause(ctx))
	}
}

// ask makes a call whose body and result are JSON.
func (p *Process) ask(ctx context.Context, kind byte, body []byte, result any) error {
	number, waiting, err := p.register(nil)
	if err != nil {
		return err
	}
	if err := p.link.write(kind, number, func(b []byte) []byte { return append(b, body...) }); err != nil {
		p.take(number)
		return fmt.Errorf("%w: %w", ErrGone, err)
	}
	reply, err := p.await(ctx, number, waiting)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(reply, result); err != nil {
		return fmt.Errorf("%w: %w", errFrame, err)
	}
	return nil
}

// Info implements Handler.
func (p *Process) Info(ctx context.Context) (info token.Info, err error) {
	err = p.ask(ctx, kindInfo, nil, &info)
	return info, err
}

// Keys implements Handler.
func (p *Process) Keys(ctx context.Context) ([]token.KeyInfo, error) {
	var listed []listedKey
	if err := p.ask(ctx, kindKeys, nil, &listed); err != nil {
		return nil, err
	}
	return unlistKeys(listed)
}

// Unlock implements Handler. When ctx ends first, the worker goes on: what it finds out of a PIN still reaches the ledger.
func (p *Process) Unlock(ctx context.Context, unlock Unlock, ledger Ledger) (Capability, error) {
	text, err := json.Marshal(unlock)
	if err != nil {
		return Capability{}, err
	}
	number, waiting, err := p.register(ledger)
	if err != nil {
		return Capability{}, err
	}
	if err := p.link.write(kindUnlock, number, func(b []byte) []byte { return appendUnlock(b, text, unlock.Passphrase) }); err != nil {
		p.take(number)
		return Capability{}, fmt.Errorf("%w: %w", ErrGone, err)
	}
	select {
	case o := <-waiting.result:
		return capabilityOf(o)
	case <-ctx.Done():
		go func() {
			if late, err := capabilityOf(<-waiting.result); err == nil {
				p.Lock(late)
			}
		}()
		return Capability{}, fmt.Errorf("the token has not answered yet: %w", context.Cause(ctx))
	}
}

func capabilityOf(o outcome) (Capability, error) {
	if o.err != nil {
		return Capability{}, o.err
	}
	return parseCapability(o.body)
}

// answer has the ledger of a call answer the worker's question.
func (p *Process) answer(number uint64, body []byte) {
	p.mu.Lock()
	waiting := p.pending[number]
	p.mu.Unlock()
	go func() {
		var a answer
		var q question
		err := json.Unmarshal(body, &q)
		switch {
		case err != nil:
		case waiting == nil || waiting.ledger == nil:
			err = errFrame
		default:
			a, err = consult(waiting.ledger, q)
		}
		if err != nil {
			a = answer{Error: appendError(nil, err)}
		}
		text, err := json.Marshal(a)
		if err != nil {
			text = nil // a malformed answer is a failure there
		}
		_ = p.link.write(kindAnswer, number, func(b []byte) []byte { return append(b, text...) })
	}()
}

// consultTimeout bounds a question to the ledger.
const consultTimeout = 30 * time.Second

func consult(ledger Ledger, q question) (answer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), consultTimeout)
	defer cancel()
	switch q.About {
	case askDerived:
		ledger.Derived()
		return answer{}, nil
	case askCommit:
		return answer{}, ledger.CommitPIN(ctx, q.TokenID, q.Version)
	case askReject:
		return answer{}, ledger.RejectPIN(ctx, q.TokenID, q.Version, q.Staged)
	case askToken:
		snapshot, err := ledger.Snapshot(ctx)
		if err != nil {
			return answer{}, err
		}
		if record, ok := snapshot.TokenByID(q.TokenID); ok {
			return answer{Token: record}, nil
		}
		return answer{}, nil
	}
	return answer{}, errFrame
}

// Sign implements Handler.
func (p *Process) Sign(ctx context.Context, order Order) ([][]byte, error) {
	if err := p.slots.Acquire(ctx, 1); err != nil {
		return nil, fmt.Errorf("%w: %w", token.ErrBusy, err)
	}
	defer p.slots.Release(1)
	number, waiting, err := p.register(nil)
	if err != nil {
		return nil, err
	}
	if err := p.link.write(kindSign, number, func(b []byte) []byte { return appendOrder(b, &order) }); err != nil {
		p.take(number)
		return nil, fmt.Errorf("%w: %w", ErrGone, err)
	}
	body, err := p.await(ctx, number, waiting)
	if err != nil {
		return nil, err
	}
	signatures, err := parseSignatures(body)
	if err == nil && len(signatures) != len(order.Inputs) {
		err = errFrame
	}
	return signatures, err
}

// Lock implements Handler.
func (p *Process) Lock(capability Capability) {
	_ = p.link.write(kindLock, 0, func(b []byte) []byte { return appendCapability(b, capability) }) // a broken link has no capabilities left
}

// Close has the worker log out and end, and ends it when it does not.
func (p *Process) Close() error {
	p.closing.Store(true)
	_ = p.link.write(kindClose, 0, nil)
	select {
	case <-p.done:
		return nil
	case <-time.After(2 * lastWords):
	}
	p.kill()
	<-p.done
	return fmt.Errorf("worker: the token's process %d did not end by itself", p.PID())
}

// Done implements Handler.
func (p *Process) Done() <-chan struct{} { return p.done }
