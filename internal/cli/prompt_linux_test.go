package cli

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/creack/pty"

	"chancery/internal/scripttest"
)

const askInChild = "CHANCERY_TEST_ASK"

// TestMain lets the test program be the one that asks.
func TestMain(m *testing.M) {
	if os.Getenv(askInChild) == "" {
		os.Exit(m.Run())
	}
	secret, err := (&Secret{What: "passphrase", Descriptor: -1}).Read()
	fmt.Printf("got %d bytes, error %v\n", len(secret), err)
	var told *Error
	if errors.As(err, &told) && told.Code == "canceled" {
		os.Exit(int(told.Exit))
	}
}

func ask(t *testing.T) (terminal *os.File, child *exec.Cmd) {
	t.Helper()
	child = exec.Command(os.Args[0])
	child.Env = append(os.Environ(), askInChild+"=1", "GORACE=atexit_sleep_ms=0")
	terminal, err := pty.Start(child)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { child.Process.Kill(); child.Wait(); terminal.Close() })
	scripttest.AwaitSilence(t, terminal)
	return terminal, child
}

func TestPromptDoesNotEcho(t *testing.T) {
	terminal, child := ask(t)
	fmt.Fprintln(terminal, "very secret words")
	var shown strings.Builder
	for lines := bufio.NewScanner(terminal); lines.Scan(); {
		shown.WriteString(lines.Text() + "\n")
	}
	child.Wait()
	if strings.Contains(shown.String(), "secret") || !strings.Contains(shown.String(), "got 17 bytes") {
		t.Errorf("the terminal shows:\n%s", &shown)
	}
}

func TestInterruptAtAPromptGivesTheEchoBack(t *testing.T) {
	terminal, child := ask(t)
	child.Process.Signal(syscall.SIGINT)
	child.Wait()
	if code := child.ProcessState.ExitCode(); code != int(ExitFailed) {
		t.Errorf("exit code %d", code)
	}
	if !scripttest.Echoes(t, terminal) {
		t.Error("the terminal is left without echo")
	}
}
