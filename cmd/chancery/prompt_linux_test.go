package main

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/creack/pty"

	"chancery/access"
	"chancery/internal/scripttest"
)

// TestPromptsShowNoPassphrase types as a person does: after the prompt.
func TestPromptsShowNoPassphrase(t *testing.T) {
	command := exec.Command(program, "enroll", "--user", "alice")
	command.Dir = t.TempDir()
	command.Env = append(command.Environ(), "HOME="+command.Dir)
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	file, err := pty.Start(command)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	terminal := &scripttest.Terminal{File: file}
	for _, prompt := range []string{"new passphrase: ", "new passphrase again: "} {
		terminal.Answer(t, prompt, passphrase)
	}
	if err := command.Wait(); err != nil {
		t.Fatalf("%v: %s", err, &stderr)
	}
	for shows, text := range map[string]string{"terminal": terminal.Shown.String(), "stdout": stdout.String(), "stderr": stderr.String()} {
		if strings.Contains(text, passphrase) {
			t.Errorf("the passphrase stands on %s", shows)
		}
	}
	e, err := access.ParseEnrolment(stdout.String())
	if err != nil || e.User != "alice" {
		t.Fatalf("%v, %q", err, e.User)
	}
	again, err := access.DeriveKey([]byte(passphrase), e.Key.Parameters)
	if err != nil || again.Public().Fingerprint() != e.Key.Fingerprint() {
		t.Errorf("what was typed is not what was enrolled: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(command.Dir, "*")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}
