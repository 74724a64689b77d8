package tpm_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"chancery/swtpm"
	"chancery/token"
	"chancery/token/tpm"
)

// Environment of a child, which does one of these things to a token.
const (
	envAct       = "TPM_TEST_ACT"
	envDevice    = "TPM_TEST_DEVICE"
	envDirectory = "TPM_TEST_DIRECTORY"

	actChangePIN = "change the PIN for ever"
	actForgetPIN = "log in and out"
)

const (
	kills     = 12
	killsStep = 4 * time.Millisecond
)

// TestMain is a test's child when the environment says so.
func TestMain(m *testing.M) {
	switch os.Getenv(envAct) {
	case actChangePIN:
		changePINForever()
	case actForgetPIN:
		logInAndOut()
	default:
		os.Exit(m.Run())
	}
}

// child is this program again, to act on a token.
func child(config tpm.Config, act string) *exec.Cmd {
	command := exec.Command(os.Args[0])
	command.Env = append(os.Environ(), envAct+"="+act, envDevice+"="+config.Device, envDirectory+"="+config.Directory)
	return command
}

var bothPINs = [2][]byte{pin, []byte("another PIN")}

func changePINForever() {
	tok, err := tpm.Open(tpm.Config{Device: os.Getenv(envDevice), Directory: os.Getenv(envDirectory)})
	if err != nil {
		os.Exit(1)
	}
	os.Stdout.WriteString("ready\n")
	for n := 0; ; n++ {
		if err := tok.ChangePIN(context.Background(), bothPINs[n%2], bothPINs[(n+1)%2]); err != nil {
			os.Exit(1)
		}
	}
}

// TestKilledChangesOfPIN kills a process that changes the PIN, at one moment
// after the other, and wants one PIN to open the whole token each time.
func TestKilledChangesOfPIN(t *testing.T) {
	t.Parallel()
	made := swtpm.Start(t)
	made.SetLockout(1000, time.Hour)
	config := newToken(t, made)
	tok := open(t, config)
	login(t, tok)
	for _, id := range []string{"a", "b", "c"} {
		generate(t, tok, id, token.P256)
	}
	tok.Close()
	for n := range kills {
		killDuring(t, config, time.Duration(n)*killsStep)
		current := bothPINs[0]
		if err := tryPIN(t, config, current); err != nil {
			current = bothPINs[1]
		}
		wantWhole(t, config, current, "a", "b", "c")
		if string(current) != string(bothPINs[0]) {
			if err := open(t, config).ChangePIN(t.Context(), current, bothPINs[0]); err != nil {
				t.Fatal(err)
			}
		}
	}
	// The last kill may leave one that is not in force, and the next change removes it.
	if generations, err := filepath.Glob(filepath.Join(config.Directory, "keys-*")); err != nil || len(generations) > 2 {
		t.Errorf("generations are left: %v, %v", generations, err)
	}
}

func tryPIN(t *testing.T, config tpm.Config, pin []byte) error {
	t.Helper()
	tok := open(t, config)
	defer tok.Close()
	return tok.Login(t.Context(), pin)
}

// killDuring kills a child some time after it began.
func killDuring(t *testing.T, config tpm.Config, after time.Duration) {
	t.Helper()
	child := child(config, actChangePIN)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 16)); err != nil {
		t.Errorf("the child did not begin: %v", err)
	}
	time.Sleep(after)
	if err := child.Process.Kill(); err != nil {
		t.Errorf("the child ended by itself: %v", err)
	}
	_ = child.Wait() // killed
}
