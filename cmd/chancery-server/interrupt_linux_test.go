package main

import (
	"bytes"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/creack/pty"

	"chancery/internal/scripttest"
)

// stopped runs the program on a terminal of its own, sends it a signal where the terminal shows the text, and returns
// its exit code with what it told.
func stopped(t *testing.T, state, at string, sent os.Signal, args ...string) (int, string) {
	t.Helper()
	command, stderr := operators(state, args...)
	terminal, err := pty.Start(command)
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	(&scripttest.Terminal{File: terminal}).Expect(t, at)
	return ended(t, command, sent), stderr.String()
}

// operators is a command that is not begun yet.
func operators(state string, args ...string) (*exec.Cmd, *bytes.Buffer) {
	command := exec.Command(program, args...)
	command.Env = append(command.Environ(), "CHANCERY_SERVER_STATE_DIRECTORY="+state, "GORACE=atexit_sleep_ms=0")
	stderr := new(bytes.Buffer)
	command.Stderr = stderr
	command.Stdout = stderr
	return command, stderr
}

func ended(t *testing.T, command *exec.Cmd, sent os.Signal) int {
	t.Helper()
	if err := command.Process.Signal(sent); err != nil {
		t.Fatal(err)
	}
	err := command.Wait()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return command.ProcessState.ExitCode()
}

func wantCanceled(t *testing.T, code int, told string) {
	t.Helper()
	if code != 1 || !strings.Contains(told, "[canceled]\n") || strings.Contains(told, "context canceled") {
		t.Errorf("exit %d: %s", code, told)
	}
}

func TestASignalAtAQuestionChangesNothing(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	prompted(t, state, nil, "user", "add", "alice")
	for _, sent := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		code, told := stopped(t, state, "Type yes to go on: ", sent, "user", "delete", "alice")
		wantCanceled(t, code, told)
		code, told = stopped(t, state, `new PIN of token "desk": `, sent, "token", "add", "desk", "--driver", "soft", "--create", "--manager", "alice")
		wantCanceled(t, code, told)
	}
	prompted(t, state, nil, "user", "show", "alice")
	if _, err := os.Stat(filepath.Join(state, "tokens", "desk")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a token was made: %v", err)
	}
}

// held is a daemon in name only: it lets every request to its control socket wait.
func held(t *testing.T, state string) (asked chan string, answer chan struct{}) {
	t.Helper()
	asked, answer = make(chan string, 1), make(chan struct{})
	listener, err := net.Listen("unix", filepath.Join(state, socketName))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.URL.Path
		select {
		case <-answer:
			w.WriteHeader(http.StatusNoContent)
		case <-r.Context().Done():
		}
	})}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	return asked, answer
}

func TestASignalEndsAWaitForTheDaemon(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	prompted(t, state, nil, "user", "add", "alice")
	asked, _ := held(t, state)
	command, told := operators(state, "status")
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	if path := <-asked; path != statusPath {
		t.Errorf("asked for %s", path)
	}
	code := ended(t, command, os.Interrupt)
	wantCanceled(t, code, told.String())
}

// TestAChangeThatIsMadeIsTakenUpInSpiteOfASignal: what was revoked has to be refused when the command ends.
func TestAChangeThatIsMadeIsTakenUpInSpiteOfASignal(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	prompted(t, state, nil, "user", "add", "alice")
	asked, answer := held(t, state)
	command, told := operators(state, "user", "disable", "alice")
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	if path := <-asked; path != refreshPath {
		t.Errorf("asked for %s", path)
	}
	if err := command.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	close(answer)
	if err := command.Wait(); err != nil || strings.Contains(told.String(), "warning") {
		t.Errorf("%v: %s", err, told)
	}
}
