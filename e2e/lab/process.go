package lab

import (
	"bytes"
	"os"
	"os/exec"
	"regexp"
	"syscall"
	"time"
)

// Process is one running program with what it has logged so far.
type Process struct {
	TB      TB
	Name    string
	Command *exec.Cmd
	Log     Log
	Ended   chan struct{} // closed when the process has been waited for
}

// Start runs a program until the end of t; its output is kept, and shown when t has failed.
func Start(t TB, command *exec.Cmd) *Process {
	t.Helper()
	log, err := os.CreateTemp(t.TempDir(), "log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	p := &Process{TB: t, Name: command.Args[0], Command: command, Log: Log(log.Name()), Ended: make(chan struct{})}
	command.Stderr, command.Stdout = log, log
	if err := command.Start(); err != nil {
		t.Fatalf("start %s: %v", p.Name, err)
	}
	go func() {
		command.Wait()
		close(p.Ended)
	}()
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("log of %s:\n%s", p.Name, p.Log)
		}
	})
	return p
}

// Terminate asks the process to end and returns its exit code.
func (p *Process) Terminate() int {
	p.TB.Helper()
	p.Command.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.Ended:
	case <-time.After(Patience):
		p.TB.Fatalf("%s did not end after SIGTERM; its log:\n%s", p.Name, p.Log)
	}
	return p.Command.ProcessState.ExitCode()
}

// Kill ends the process the hard way and waits until it is gone.
func (p *Process) Kill() {
	p.Command.Process.Kill()
	<-p.Ended
}

// WaitLog waits until the log has a match and returns its submatches.
func (p *Process) WaitLog(pattern string) []string {
	p.TB.Helper()
	expression := regexp.MustCompile(pattern)
	deadline := time.Now().Add(Patience)
	for {
		if match := expression.FindStringSubmatch(p.Log.String()); match != nil {
			return match
		}
		select {
		case <-p.Ended:
			if match := expression.FindStringSubmatch(p.Log.String()); match != nil {
				return match
			}
			p.TB.Fatalf("%s ended without logging %q:\n%s", p.Name, pattern, p.Log)
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			p.TB.Fatalf("%s did not log %q:\n%s", p.Name, pattern, p.Log)
		}
	}
}

// Log is the path of a file that a process writes to. A file, unlike a pipe,
// costs this process nothing while another one is being measured.
type Log string

// String returns everything written so far.
func (l Log) String() string {
	text, err := os.ReadFile(string(l))
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// Call is one call of a program, to its end.
type Call struct {
	Dir         string
	Environment []string // beside this process's own
	Program     string
	Args        []string
}

// Result is what one finished call of a program left behind.
type Result struct {
	Exit           int
	Stdout, Stderr string
}

// Run calls a program to its end, with nothing on standard input and no terminal.
func Run(t TB, call Call) Result {
	t.Helper()
	command := exec.Command(call.Program, call.Args...)
	command.Dir = call.Dir
	command.Env = append(os.Environ(), call.Environment...)
	// Without a session of its own a program could ask the developer's terminal for a passphrase.
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	timer := time.AfterFunc(2*Patience, func() { command.Process.Kill() })
	defer timer.Stop()
	err := command.Run()
	if command.ProcessState == nil {
		t.Fatalf("%s: %v", call.Program, err)
	}
	return Result{Exit: command.ProcessState.ExitCode(), Stdout: stdout.String(), Stderr: stderr.String()}
}
