package scripttest

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Terminal is a person's side of a terminal, with all that it has shown.
type Terminal struct {
	*os.File
	Shown bytes.Buffer
}

// Answer types a secret as a person does: when the terminal shows the prompt and is silent.
func (term *Terminal) Answer(t testing.TB, prompt, secret string) {
	t.Helper()
	term.Expect(t, prompt)
	AwaitSilence(t, term.File)
	if _, err := term.WriteString(secret + "\n"); err != nil {
		t.Fatal(err)
	}
}

// Expect waits until the last that the terminal shows is the text.
func (term *Terminal) Expect(t testing.TB, text string) {
	t.Helper()
	buffer := make([]byte, 1024)
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		n, err := term.Read(buffer)
		term.Shown.Write(buffer[:n])
		if strings.HasSuffix(term.Shown.String(), text) {
			return
		}
		if err != nil {
			break
		}
	}
	t.Fatalf("the terminal shows %q, not %q", &term.Shown, text)
}

// AwaitSilence waits until the terminal no longer echoes what is typed.
func AwaitSilence(t testing.TB, terminal *os.File) {
	t.Helper()
	for deadline := time.Now().Add(patience); Echoes(t, terminal); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the terminal still echoes")
		}
	}
}

// Echoes tells whether the terminal shows what is typed.
func Echoes(t testing.TB, terminal *os.File) bool {
	t.Helper()
	settings, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return settings.Lflag&unix.ECHO != 0
}
