package softhsm_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"chancery/internal/testtool"
	"chancery/softhsm"
	"chancery/token"
	"chancery/token/pkcs11"
)

// TestOtherProgramsSeeTheToken asks SoftHSM's own tool.
func TestOtherProgramsSeeTheToken(t *testing.T) {
	util := testtool.Need(t, "softhsm2-util")
	first := softhsm.ForTest(t)
	second, err := first.Store.AddToken("second token", []byte("another PIN"))
	if err != nil {
		t.Fatal(err)
	}
	command := exec.Command(util, "--show-slots")
	command.Env = append(os.Environ(), first.Env()...)
	out, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{first.Serial, first.Label, second.Serial, second.Label} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

func TestAddTokenRefuses(t *testing.T) {
	store := softhsm.ForTest(t).Store
	for name, c := range map[string]struct {
		label, pin string
		want       error
	}{
		"no label":   {"", "1234", nil},
		"long label": {strings.Repeat("x", 33), "1234", nil},
		"short PIN":  {"label", "123", token.ErrPINInvalid},
	} {
		_, err := store.AddToken(c.label, []byte(c.pin))
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestStoresInTurn uses one store after another in one process.
func TestStoresInTurn(t *testing.T) {
	for range 3 {
		made := softhsm.ForTest(t)
		infos, err := pkcs11.List(made.Store.Module)
		if err != nil || len(infos) != 1 || infos[0].Serial != made.Serial || infos[0].Hardware {
			t.Errorf("tokens of a new store: %+v, %v", infos, err)
		}
	}
}

func TestFindModule(t *testing.T) {
	absent := filepath.Join(t.TempDir(), "absent.so")
	t.Setenv("SOFTHSM2_MODULE", absent)
	if _, err := softhsm.FindModule(); err == nil || !strings.Contains(err.Error(), "SOFTHSM2_MODULE") {
		t.Errorf("a module that is not there: %v", err)
	}
	present := filepath.Join(t.TempDir(), "present.so")
	if err := os.WriteFile(present, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOFTHSM2_MODULE", present)
	if path, err := softhsm.FindModule(); err != nil || path != present {
		t.Errorf("%q, %v", path, err)
	}
}
