package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"chancery/seal"
	"chancery/seal/pkcs11"
	"chancery/seal/tpm"
)

func TestARejectedPINOfASealIsSentOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pin")
	write := func(pin string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(pin), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	rejected := newRejectedPINs()
	sent := 0
	login := func(serial string, answer error) error {
		p := &pinned{parameters: pkcs11.Parameters{Module: "/m.so", Serial: serial, PIN: seal.File{Path: path}}, rejected: rejected}
		return p.withPIN(func(seal.Keeper) error {
			sent++
			return answer
		})
	}
	for _, c := range []struct {
		what, pin, serial string
		answer, want      error
		sent              int
	}{
		{"a wrong PIN", "wrong", "1", seal.ErrPIN, seal.ErrPIN, 1},
		{"the same again", "wrong\n", "1", nil, seal.ErrPINRejected, 1},
		{"the same for another token", "wrong", "2", nil, nil, 2},
		{"another PIN", "right", "1", nil, nil, 3},
		{"a token that is away", "right", "1", seal.ErrAbsent, seal.ErrAbsent, 4},
		{"when it is back", "right", "1", nil, nil, 5},
		{"still the wrong one", "wrong", "1", nil, seal.ErrPINRejected, 5},
	} {
		write(c.pin)
		if err := login(c.serial, c.answer); !errors.Is(err, c.want) || sent != c.sent {
			t.Errorf("%s: sent %d times, %v", c.what, sent, err)
		}
	}
}

// TestTheDatabaseChoosesNoTPM: a row that names a TPM of its writer's own would open a database of their making.
func TestTheDatabaseChoosesNoTPM(t *testing.T) {
	const emulator = "unix:/run/tpm/socket"
	for _, c := range []struct {
		configured, device string
		want               error
	}{
		{"/dev/tpmrm0", "/dev/tpmrm0", nil},
		{"/dev/tpmrm0", emulator, seal.ErrUnsuitable},
		{"/dev/tpmrm0", "/dev/tpmrm1", seal.ErrUnsuitable},
		{"/dev/tpmrm0", "/dev/shm/tpm", seal.ErrUnsuitable},
		{"/dev/tpmrm1", "/dev/tpmrm1", nil},
		{emulator, emulator, nil},
		{emulator, "/dev/tpmrm0", nil},
		{emulator, emulator + "2", seal.ErrUnsuitable},
	} {
		k := &keepers{modules: tokensConfig{TPM: c.configured}, rejected: newRejectedPINs()}
		parameters, err := json.Marshal(tpm.Parameters{Device: c.device})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := k.keeper(seal.KindTPM, parameters); !errors.Is(err, c.want) {
			t.Errorf("%s where %s is configured: %v, want %v", c.device, c.configured, err, c.want)
		}
	}
}

func TestParametersOfSealsAreReadStrictly(t *testing.T) {
	k := &keepers{rejected: newRejectedPINs()}
	for name, c := range map[string]struct{ kind, parameters string }{
		"an unknown kind":      {"abacus", `{}`},
		"no JSON":              {seal.KindSecret, `file`},
		"an unknown parameter": {seal.KindSecret, `{"file":"/x","mode":"lax"}`},
		"a relative path":      {seal.KindSecret, `{"file":"x"}`},
		"no device":            {seal.KindTPM, `{}`},
		"PCRs out of order":    {seal.KindTPM, `{"device":"/dev/tpmrm0","pcrs":[11,7]}`},
		"no PIN":               {seal.KindPKCS11, `{"module":"/m.so","serial":"1","key_label":"k","pin":{}}`},
	} {
		if _, err := k.keeper(c.kind, []byte(c.parameters)); !errors.Is(err, seal.ErrUnsuitable) {
			t.Errorf("%s: %v", name, err)
		}
		if text := where(c.kind, []byte(c.parameters)); text == "" {
			t.Errorf("%s: nothing to show", name)
		}
	}
	planted := filepath.Join(t.TempDir(), "m.so")
	if err := os.WriteFile(planted, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(planted, 0o666); err != nil {
		t.Fatal(err)
	}
	_, err := k.keeper(seal.KindPKCS11, []byte(`{"module":"`+planted+`","serial":"1","key_label":"k","pin":{"file":"/p"}}`))
	if err == nil || outcomeOf(err) != "module_not_allowed" {
		t.Errorf("a module that anybody may write: %v", err)
	}
}
