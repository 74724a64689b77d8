//go:build unix

package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestSecretsThatOthersCanReadAreWarnedAbout(t *testing.T) {
	open, own, granted := write(t, "s3cret\n"), write(t, "s3cret\n"), write(t, "s3cret\n")
	t.Setenv("CREDENTIALS_DIRECTORY", filepath.Dir(granted))
	for path, mode := range map[string]os.FileMode{open: 0o640, own: 0o600, granted: 0o644} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	if _, err := writer.WriteString("s3cret\n"); err != nil {
		t.Fatal(err)
	}
	writer.Close()
	for name, c := range map[string]struct {
		secret Secret
		warned bool
	}{
		"readable by the group":  {Secret{File: open, Descriptor: -1}, true},
		"private":                {Secret{File: own, Descriptor: -1}, false},
		"credential":             {Secret{Credential: filepath.Base(granted), Descriptor: -1}, false},
		"credential by its path": {Secret{File: granted, Descriptor: -1}, false},
		"pipe":                   {Secret{File: fmt.Sprintf("/dev/fd/%d", reader.Fd()), Descriptor: -1}, false},
		"descriptor":             {Secret{Descriptor: duplicate(t, open)}, false},
	} {
		c.secret.What = "PIN of token \"hsm\""
		var secret []byte
		text := stderrOf(t, func() { secret, err = c.secret.Read() })
		if err != nil || string(secret) != "s3cret" {
			t.Errorf("%s: %q, %v", name, secret, err)
		}
		warned := strings.Contains(text, open+" with the PIN of token \"hsm\" has mode 0640") && strings.Contains(text, "chmod 600 "+open)
		if warned != c.warned || !c.warned && text != "" || strings.Contains(text, "s3cret") {
			t.Errorf("%s: told %q", name, text)
		}
	}
}

func TestReadingASecretLeavesStandardInputOpen(t *testing.T) {
	saved := os.Stdin
	defer func() { os.Stdin = saved }()
	var err error
	if os.Stdin, err = os.Open(write(t, "s3cret\n")); err != nil {
		t.Fatal(err)
	}
	defer os.Stdin.Close()
	secret := Secret{What: "PIN", Descriptor: 0}
	if text, err := secret.Read(); err != nil || string(text) != "s3cret" {
		t.Fatalf("%q, %v", text, err)
	}
	if _, err := os.Stdin.Stat(); err != nil {
		t.Errorf("standard input was closed: %v", err)
	}
}

func TestSecretsKnowWhereTheyAreReadFrom(t *testing.T) {
	path := write(t, "s3cret\n")
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	descriptor := duplicate(t, path)
	defer syscall.Close(descriptor)
	for name, c := range map[string]struct {
		secret Secret
		same   bool
	}{
		"the file":            {Secret{File: path, Descriptor: -1}, true},
		"its descriptor":      {Secret{Descriptor: descriptor}, true},
		"another file":        {Secret{File: write(t, "s3cret\n"), Descriptor: -1}, false},
		"a missing file":      {Secret{File: path + "x", Descriptor: -1}, false},
		"another descriptor":  {Secret{Descriptor: 0}, false},
		"a closed descriptor": {Secret{Descriptor: 1 << 20}, false},
		"a prompt":            {Secret{Descriptor: -1}, false},
	} {
		if got := c.secret.ReadsFrom(info); got != c.same {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// duplicate opens a file under a number that is the reader's to close.
func duplicate(t *testing.T, path string) int {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	number, err := syscall.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	return number
}

func stderrOf(t *testing.T, act func()) string {
	t.Helper()
	file, err := os.CreateTemp(t.TempDir(), "stderr")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	saved := os.Stderr
	os.Stderr = file
	defer func() { os.Stderr = saved }()
	act()
	text, err := os.ReadFile(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
