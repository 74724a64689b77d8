package main

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"chancery/access"
)

// TestPromptsShowNoPassphrase types as a person does: after the prompt.
func TestPromptsShowNoPassphrase(t *testing.T) {
	command := exec.Command(program, "enroll", "--user", "alice")
	command.Dir = t.TempDir()
	command.Env = append(command.Environ(), "HOME="+command.Dir)
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	terminal, err := pty.Start(command)
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	var shown bytes.Buffer
	for _, prompt := range []string{"new passphrase: ", "new passphrase again: "} {
		expect(t, terminal.Read, &shown, prompt)
		awaitSilence(t, int(terminal.Fd()))
		if _, err := terminal.WriteString(passphrase + "\n"); err != nil {
			t.Fatal(err)
		}
	}
	if err := command.Wait(); err != nil {
		t.Fatalf("%v: %s", err, &stderr)
	}
	for shows, text := range map[string]string{"terminal": shown.String(), "stdout": stdout.String(), "stderr": stderr.String()} {
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

// awaitSilence waits until the terminal no longer echoes what is typed.
func awaitSilence(t *testing.T, terminal int) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		settings, err := unix.IoctlGetTermios(terminal, unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		if settings.Lflag&unix.ECHO == 0 {
			return
		}
	}
	t.Fatal("the terminal still echoes")
}

// expect reads until the terminal shows the text.
func expect(t *testing.T, read func([]byte) (int, error), shown *bytes.Buffer, text string) {
	t.Helper()
	buffer := make([]byte, 1024)
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		n, err := read(buffer)
		shown.Write(buffer[:n])
		if strings.HasSuffix(shown.String(), text) {
			return
		}
		if err != nil {
			break
		}
	}
	t.Fatalf("the terminal shows %q, not %q", shown, text)
}
