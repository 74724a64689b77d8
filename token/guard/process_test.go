package guard

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"chancery/internal/confine"
	"chancery/token"
)

// The environment of a child process: where the guard's directory and the token's are, and what to do.
const (
	childDirectory = "GUARD_TEST_DIRECTORY"
	childToken     = "GUARD_TEST_TOKEN"
	childTask      = "GUARD_TEST_TASK"

	taskHang    = "hang"    // log in with the right PIN, and never get an answer
	taskGuess   = "guess"   // log in with the wrong PIN, several times
	taskConfine = "confine" // the same where only the token's own directories can be written to, and then forget what another token rejected
)

func TestMain(m *testing.M) {
	directory := os.Getenv(childDirectory)
	if directory == "" {
		os.Exit(m.Run())
	}
	task := os.Getenv(childTask)
	guarded := sharedGuard(directory).Wrap(sharedCard{directory: os.Getenv(childToken), hangs: task == taskHang})
	if task == taskHang {
		fmt.Println(login(guarded, "right"))
		return
	}
	if task == taskConfine {
		confineTo(directory, os.Getenv(childToken))
		defer forgetAnother(directory)
	}
	for range 5 {
		if err := login(guarded, "wrong"); !errors.Is(err, token.ErrPINIncorrect) && !errors.Is(err, token.ErrPINRejected) {
			fmt.Println(err)
		}
	}
}

// confineTo leaves the process what a token's has.
func confineTo(directory, home string) {
	own, err := sharedGuard(directory).Prepare(context.Background(), serial)
	if err != nil {
		fmt.Println(err)
	}
	for _, notice := range confine.Apply(confine.Rules{Write: []string{own, home}}) {
		fmt.Println(unconfined, notice)
	}
}

// unconfined begins what a child says where the kernel does not restrict it.
const unconfined = "goes without:"

// forgetAnother tries what a module could.
func forgetAnother(directory string) {
	if _, err := sharedGuard(directory).Clear(anotherSerial); err == nil {
		fmt.Println("forgot what another token rejected")
	}
	another := sharedGuard(directory).file(anotherSerial)
	for _, path := range []string{another.home, another.path} {
		if os.Rename(path, path+".away") == nil || os.RemoveAll(path) == nil {
			fmt.Println("removed", path)
		}
	}
}

const anotherSerial = "another"

// sharedGuard hashes cheaply, and alike in every process.
func sharedGuard(directory string) *Guard {
	return &Guard{directory: directory, derive: func(pin, salt []byte) tag {
		sum := sha256.Sum256(append(bytes.Clone(salt), pin...))
		return tag(sum[:2])
	}}
}

// sharedCard is a token that several processes use. It notes in a file of its directory what it was sent.
type sharedCard struct {
	token.Token
	directory string
	hangs     bool
	low       bool
}

func (c sharedCard) Info(context.Context) (token.Info, error) {
	return token.Info{Serial: serial, PIN: token.PINState{CountLow: c.low}}, nil
}

func (c sharedCard) Login(_ context.Context, pin []byte) error {
	file, err := os.OpenFile(filepath.Join(c.directory, "sent"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := fmt.Fprintf(file, "%s\n", pin); err != nil {
		return err
	}
	if c.hangs {
		fmt.Println("sent")
		select {}
	}
	if string(pin) != "right" {
		return token.ErrPINIncorrect
	}
	return nil
}

// sent counts.
func (c sharedCard) sent(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(c.directory, "sent"))
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(text, []byte("\n"))
}

func child(directory, home, task string) *exec.Cmd {
	command := exec.Command(os.Args[0])
	command.Env = append(os.Environ(), childDirectory+"="+directory, childToken+"="+home, childTask+"="+task)
	command.Stderr = os.Stderr
	return command
}

// killWhileSending has a process killed while the token checks its PIN, and returns what it had said before.
func killWhileSending(t *testing.T, directory, home string) string {
	t.Helper()
	command := child(directory, home, taskHang)
	output, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(output).ReadString('\n')
	if err := command.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Error(err)
	}
	_ = command.Wait() // it was killed
	return line
}

func TestKilledWhileSending(t *testing.T) {
	t.Run("and the token has counted it", func(t *testing.T) {
		directory, c := newDirectory(t), sharedCard{directory: t.TempDir()}
		killWhileSending(t, directory, c.directory)
		c.low = true
		wantError(t, "the next", login(sharedGuard(directory).Wrap(c), "right"), token.ErrPINRejected)
		c.low = false
		wantError(t, "for ever", login(sharedGuard(directory).Wrap(c), "right"), token.ErrPINRejected)
		if n := c.sent(t); n != 1 {
			t.Errorf("sent %d times", n)
		}
	})
	t.Run("and the token has not", func(t *testing.T) {
		directory, c := newDirectory(t), sharedCard{directory: t.TempDir()}
		killWhileSending(t, directory, c.directory)
		wantError(t, "the next", login(sharedGuard(directory).Wrap(c), "right"), nil)
	})
	t.Run("again and again", func(t *testing.T) {
		directory, c := newDirectory(t), sharedCard{directory: t.TempDir()}
		for i := range maxUnfinished + 2 {
			said := killWhileSending(t, directory, c.directory)
			if (said == "sent\n") != (i < maxUnfinished) {
				t.Errorf("process %d said %q", i, said)
			}
		}
		wantError(t, "after them", login(sharedGuard(directory).Wrap(c), "right"), token.ErrPINRejected)
		if n := c.sent(t); n != maxUnfinished {
			t.Errorf("sent %d times", n)
		}
	})
}

func TestSeveralProcesses(t *testing.T) {
	directory, c := newDirectory(t), sharedCard{directory: t.TempDir()}
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if output, err := child(directory, c.directory, taskGuess).Output(); err != nil || len(output) > 0 {
				t.Errorf("a process ended with %v and said %q", err, output)
			}
		})
	}
	all.Wait()
	if n := c.sent(t); n != 1 {
		t.Errorf("four processes have sent the wrong PIN %d times", n)
	}
}

// TestAProcessAltersNothingOfAnotherTokens has one that may write to its own token's directory alone remember a PIN, and try the rest.
func TestAProcessAltersNothingOfAnotherTokens(t *testing.T) {
	directory, c := newDirectory(t), sharedCard{directory: t.TempDir()}
	another := newCard("right")
	another.serial = anotherSerial
	wantError(t, "another token", login(sharedGuard(directory).Wrap(another), "wrong"), token.ErrPINIncorrect)
	output, err := child(directory, c.directory, taskConfine).Output()
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(output, []byte(unconfined)) {
		t.Skipf("this kernel does not restrict files: %s", output)
	}
	if len(output) > 0 {
		t.Errorf("the process said %q", output)
	}
	if n := c.sent(t); n != 1 {
		t.Errorf("it has sent the wrong PIN %d times", n)
	}
	wantError(t, "its own token", login(sharedGuard(directory).Wrap(c), "wrong"), token.ErrPINRejected)
	wantError(t, "another token", login(sharedGuard(directory).Wrap(another), "wrong"), token.ErrPINRejected)
}

func TestWaitingForAnotherLoginEnds(t *testing.T) {
	guard, c := quickGuard(newDirectory(t)), newCard("right")
	f, err := guard.open(context.Background(), serial)
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	wantError(t, "login", guard.Wrap(c).Login(ctx, []byte("right")), token.ErrBusy)
	if len(c.sent) > 0 {
		t.Error("a PIN was sent")
	}
}
