package e2e

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait of these tests; nothing measures how long anything took.
const patience = 30 * time.Second

// process is one running program with what it has logged so far.
type process struct {
	t       testing.TB
	name    string
	command *exec.Cmd
	log     *logBuffer
	ended   chan struct{} // closed when the process has been waited for
}

// start runs a program until the test ends; its standard error is kept.
func start(t testing.TB, command *exec.Cmd) *process {
	t.Helper()
	p := &process{t: t, name: command.Args[0], command: command, log: &logBuffer{}, ended: make(chan struct{})}
	command.Stderr = p.log
	command.Stdout = p.log
	if err := command.Start(); err != nil {
		t.Fatalf("start %s: %v", p.name, err)
	}
	go func() {
		command.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("log of %s:\n%s", p.name, p.log)
		}
	})
	return p
}

// terminate asks the process to end and returns its exit code.
func (p *process) terminate() int {
	p.t.Helper()
	p.command.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(patience):
		p.t.Fatalf("%s did not end after SIGTERM; its log:\n%s", p.name, p.log)
	}
	return p.command.ProcessState.ExitCode()
}

// kill ends the process the hard way and waits until it is gone.
func (p *process) kill() {
	p.command.Process.Kill()
	<-p.ended
}

// waitLog waits until the log has a match and returns its submatches.
func (p *process) waitLog(pattern string) []string {
	p.t.Helper()
	expression := regexp.MustCompile(pattern)
	deadline := time.Now().Add(patience)
	for {
		if match := expression.FindStringSubmatch(p.log.String()); match != nil {
			return match
		}
		select {
		case <-p.ended:
			if match := expression.FindStringSubmatch(p.log.String()); match != nil {
				return match
			}
			p.t.Fatalf("%s ended without logging %q:\n%s", p.name, pattern, p.log)
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("%s did not log %q:\n%s", p.name, pattern, p.log)
		}
	}
}

// logBuffer collects what a process writes while the test reads it.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// result is what one finished call of a program left behind.
type result struct {
	exit           int
	stdout, stderr string
}

// run calls a program to its end, with nothing on standard input and no terminal.
func run(t testing.TB, dir string, environment []string, program string, args ...string) result {
	t.Helper()
	return runWith(t, dir, environment, nil, program, args...)
}

func runWith(t testing.TB, dir string, environment []string, stdin io.Reader, program string, args ...string) result {
	t.Helper()
	command := exec.Command(program, args...)
	command.Dir = dir
	command.Env = append(os.Environ(), environment...)
	command.Stdin = stdin
	// Without a session of its own a program could ask the developer's terminal for a passphrase.
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	timer := time.AfterFunc(2*patience, func() { command.Process.Kill() })
	defer timer.Stop()
	err := command.Run()
	if command.ProcessState == nil {
		t.Fatalf("%s: %v", program, err)
	}
	return result{exit: command.ProcessState.ExitCode(), stdout: stdout.String(), stderr: stderr.String()}
}

// must runs a program that has to succeed and returns its standard output.
func must(t testing.TB, dir string, environment []string, program string, args ...string) string {
	t.Helper()
	r := run(t, dir, environment, program, args...)
	if r.exit != 0 {
		t.Fatalf("%s %s: exit %d\n%s%s", program, strings.Join(args, " "), r.exit, r.stdout, r.stderr)
	}
	return r.stdout
}
