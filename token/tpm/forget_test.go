package tpm_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"chancery/internal/testtool"
	"chancery/swtpm"
	"chancery/token/tpm"
)

// logInAndOut takes a PIN from its input, says that it has it, waits for a byte, logs in and out, says that it has forgotten it,
// and waits for its input's end.
func logInAndOut() {
	pin := make([]byte, tpm.MaxPINLength)
	n, err := os.Stdin.Read(pin)
	if err != nil {
		fatal(err)
	}
	fmt.Println("holding")
	if _, err := os.Stdin.Read(make([]byte, 1)); err != nil {
		fatal(err)
	}
	tok, err := tpm.Open(tpm.Config{Device: os.Getenv(envDevice), Directory: os.Getenv(envDirectory)})
	if err != nil {
		fatal(err)
	}
	if err := tok.Login(context.Background(), pin[:n]); err != nil {
		fatal(err)
	}
	clear(pin)
	if err := tok.Logout(context.Background()); err != nil {
		fatal(err)
	}
	fmt.Println("forgotten")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// TestThePINIsForgotten searches the memory of a process that has logged in and out, for PINs of which the last bytes end within
// a hash's block, at its end and after it.
func TestThePINIsForgotten(t *testing.T) {
	made := swtpm.Start(t)
	for _, length := range []int{16, 26, 63, 64, 65, 127, 128, tpm.MaxPINLength} {
		t.Run(fmt.Sprint(length), func(t *testing.T) {
			pin := strings.Repeat(rand.Text(), 10)[:length]
			config := tpm.Config{Device: made.Device(), Directory: filepath.Join(t.TempDir(), "token")}
			if err := tpm.Create(config, "test token", []byte(pin)); err != nil {
				t.Fatal(err)
			}
			child := child(config, actForgetPIN)
			stdin, err := child.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			stdout, err := child.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			var stderr bytes.Buffer
			child.Stderr = &stderr
			if err := child.Start(); err != nil {
				t.Fatal(err)
			}
			say := func(text, answer string) {
				t.Helper()
				if _, err := io.WriteString(stdin, text); err != nil {
					t.Fatal(err)
				}
				line := make([]byte, len(answer))
				if _, err := io.ReadFull(stdout, line); err != nil || string(line) != answer {
					t.Fatalf("the child says %q, %v", line, err)
				}
			}
			const tail = 12 // of the PIN; long enough to be there for no other reason
			say(pin, "holding\n")
			if !testtool.Remembers(t, child.Process.Pid, pin[length-tail:]) {
				t.Error("the PIN is not found where it is for certain")
			}
			say("x", "forgotten\n")
			if testtool.Remembers(t, child.Process.Pid, pin[length-tail:]) {
				t.Error("the PIN is in memory after the logout")
			}
			stdin.Close()
			if err := child.Wait(); err != nil {
				t.Errorf("%v: %s", err, &stderr)
			}
		})
	}
}
