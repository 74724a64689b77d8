package swtpm_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"chancery/internal/testtool"
	"chancery/swtpm"
)

// TestOtherProgramsUseTheTPM asks tpm2-tools.
func TestOtherProgramsUseTheTPM(t *testing.T) {
	tool := testtool.Need(t, "tpm2_getcap")
	made := swtpm.Start(t)
	command := exec.Command(tool, "properties-fixed")
	command.Env = append(os.Environ(), made.Env()...)
	out, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if !strings.Contains(string(out), "TPM2_PT_FAMILY_INDICATOR") {
		t.Errorf("tpm2_getcap says\n%s", out)
	}
}

// TestPowerCycle keeps what is persistent and loses what is loaded.
func TestPowerCycle(t *testing.T) {
	made := swtpm.Start(t)
	before := primaryName(t, made)
	if objects, sessions := made.Handles(); objects != 1 || sessions != 0 {
		t.Errorf("%d objects and %d sessions, want 1 and 0", objects, sessions)
	}
	made.Shutdown()
	made.Restart()
	if objects, _ := made.Handles(); objects != 0 {
		t.Errorf("%d objects after the power cycle", objects)
	}
	if primaryName(t, made) != before {
		t.Error("the power cycle changed the TPM's seeds")
	}
	made.Stop()
	made.Stop()
	if _, err := made.Dial(); err == nil {
		t.Error("a stopped TPM takes connections")
	}
}

func primaryName(t *testing.T, made *swtpm.TPM) (name string) {
	t.Helper()
	made.Use(func(tpm transport.TPM) error {
		rsp, err := tpm2.CreatePrimary{
			PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
			InPublic:      tpm2.New2B(tpm2.ECCSRKTemplate),
		}.Execute(tpm)
		if err == nil {
			name = string(rsp.Name.Buffer)
		}
		return err
	})
	return name
}

// TestTwoAreTwo has two TPMs side by side.
func TestTwoAreTwo(t *testing.T) {
	first, second := swtpm.Start(t), swtpm.Start(t)
	if primaryName(t, first) == primaryName(t, second) {
		t.Error("two TPMs have the same seeds")
	}
}

func TestLockoutCounter(t *testing.T) {
	made := swtpm.Start(t)
	if n := made.LockoutCounter(); n != 0 {
		t.Errorf("a new TPM counts %d", n)
	}
	if n := made.Property(tpm2.TPMPTMaxAuthFail); n < 1 {
		t.Errorf("it locks after %d", n)
	}
	made.ClearLockout()
	made.SetLockout(7, time.Hour)
	if n := made.Property(tpm2.TPMPTMaxAuthFail); n != 7 {
		t.Errorf("it locks after %d and not 7", n)
	}
}
