package main

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/creack/pty"

	"chancery/internal/scripttest"
)

// TestPromptsShowNoSecret types as a person does: when the prompt is there and the terminal is silent.
func TestPromptsShowNoSecret(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	prompted(t, state, nil, "user", "add", "alice")
	prompted(t, state, []answer{
		{`new PIN of token "desk": `, secrets["pin"]},
		{`new PIN of token "desk" again: `, secrets["pin"]},
		{`new passphrase of user "alice" for token "desk": `, secrets["alice"]},
		{`new passphrase of user "alice" for token "desk" again: `, secrets["alice"]},
	}, "token", "add", "desk", "--driver", "soft", "--create", "--manager", "alice")
	prompted(t, state, []answer{
		{`passphrase of token manager "alice" for token "desk": `, secrets["alice"]},
	}, "key", "create", "release", "--token", "desk", "--algorithm", "p256")
	prompted(t, state, []answer{
		{`passphrase of token manager "alice" for token "desk": `, secrets["alice"]},
		{`new PIN of token "desk": `, secrets["pin2"]},
		{`new PIN of token "desk" again: `, secrets["pin2"]},
	}, "token", "change-pin", "desk")
}

// answer is what is typed at a prompt.
type answer struct{ prompt, secret string }

// prompted runs the program on a terminal of its own; it has to succeed and to show nothing that was typed.
func prompted(t *testing.T, state string, answers []answer, args ...string) {
	t.Helper()
	command := exec.Command(program, args...)
	command.Env = append(command.Environ(), "CHANCERY_SERVER_STATE_DIRECTORY="+state, "GORACE=atexit_sleep_ms=0")
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	file, err := pty.Start(command)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	terminal := &scripttest.Terminal{File: file}
	for _, a := range answers {
		terminal.Answer(t, a.prompt, a.secret)
	}
	if err := command.Wait(); err != nil {
		t.Fatalf("%v: %v: %s", args, err, &stderr)
	}
	for _, a := range answers {
		if strings.Contains(terminal.Shown.String()+stdout.String()+stderr.String(), a.secret) {
			t.Errorf("%v: what was typed at %q is shown", args, a.prompt)
		}
	}
}
