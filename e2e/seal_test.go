package e2e

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"chancery/client"
	"chancery/e2e/lab"
	"chancery/internal/testtool"
	"chancery/softhsm"
	"chancery/softhsm/faulty"
	"chancery/swtpm"
	"chancery/tunnel/wire"
)

// TestASealedDatabaseOutlivesItsTPM: sealed by a TPM and a secret file, the TPM dies, and signing goes on.
func TestASealedDatabaseOutlivesItsTPM(t *testing.T) {
	machine := swtpm.Start(t)
	driver := lab.Soft
	driver.Environment = append(driver.Environment, "CHANCERY_SERVER_TOKENS_TPM="+machine.Device())
	s := newLab(t, driver)
	s.CreateKey("release", "p256")
	random := make([]byte, 32)
	rand.Read(random)
	s.Write("safe.key", string(random))
	if err := os.Chmod(s.Path("safe.key"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Serve()
	_, key := s.unlocked(t, "release")
	digest := sha256.Sum256([]byte("x"))
	sign := func() error {
		_, err := key.SignContext(t.Context(), digest[:], crypto.SHA256)
		return err
	}
	s.Operator("seal", "add", "tpm", "machine", "--device", machine.Device(), "--pcr", "16")
	s.Operator("seal", "add", "secret", "safe", "--file", s.Path("safe.key"))
	if err := sign(); err != nil {
		t.Fatalf("in a session that was unlocked before the sealing: %v", err)
	}
	hide := func(from, to string) {
		t.Helper()
		if err := os.Rename(s.Path(from), s.Path(to)); err != nil {
			t.Fatal(err)
		}
	}
	hide("safe.key", "in the safe")
	s.Server.Kill()
	s.Serve()
	if err := sign(); err != nil {
		t.Fatalf("by the TPM alone: %v", err)
	}

	extend(t, machine, 16)
	hide("in the safe", "safe.key")
	s.Server.Kill()
	s.Serve()
	if err := sign(); err != nil {
		t.Fatalf("by the secret, since a PCR has changed: %v", err)
	}
	if test := s.TryOperator("seal", "test"); !strings.Contains(test.Stdout, "PCRs have changed") || !strings.Contains(test.Stderr, "seal_partly_closed") {
		t.Errorf("seal test: %+v", test)
	}
	s.Operator("seal", "remove", "machine", "--yes")
	s.Operator("seal", "add", "tpm", "machine", "--device", machine.Device(), "--pcr", "16")
	s.Operator("seal", "rotate")
	hide("safe.key", "in the safe")

	machine.Stop()
	if err := sign(); err != nil {
		t.Fatalf("a daemon that has opened the seal needs no TPM any more: %v", err)
	}
	s.Server.Kill()
	s.Serve()
	if err := unlockWithin(t, s, 5*time.Second); !isClosed(err) {
		t.Fatalf("without TPM and secret: %v", err)
	}
	if status := s.Operator("status"); !strings.Contains(status, "CLOSED for the daemon") {
		t.Errorf("the status does not tell:\n%s", status)
	}
	hide("in the safe", "safe.key")
	s.Eventually(func() bool { return unlockWithin(t, s, 5*time.Second) == nil }, "the daemon does not take the secret up")
	if test := s.TryOperator("seal", "test"); !strings.Contains(test.Stderr, "seal_partly_closed") {
		t.Errorf("seal test: %+v", test)
	}
	s.Operator("user", "add", "somebody")
	s.Alice("sign", "raw", "release", "server.toml", "-o", "signature")
}

// TestASealsModuleWritesNoMoreThanItMay has the module of a PKCS#11 seal count its calls in a file that is not among what it may write,
// and then is.
func TestASealsModuleWritesNoMoreThanItMay(t *testing.T) {
	tool := testtool.Need(t, "pkcs11-tool")
	m := faulty.Build(t)
	s := newLab(t, lab.Soft)
	t.Setenv("SOFTHSM2_CONF", "") // softhsm sets it; this restores it after the test
	token, err := softhsm.New(t.TempDir(), "safe", []byte(lab.TokenPIN))
	if err != nil {
		t.Fatal(err)
	}
	s.Environment = append(s.Environment, token.Env()...)
	command := exec.Command(tool, "--module", token.Store.Module, "--token-label", "safe", "--login", "--pin", lab.TokenPIN, "--keygen", "--key-type", "AES:32", "--label", "seal", "--sensitive")
	if output, err := command.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	s.Write("seal.pin", lab.TokenPIN)
	if err := os.Chmod(s.Path("seal.pin"), 0o600); err != nil {
		t.Fatal(err)
	}
	configured := s.Read("server.toml")
	configure := func(writable string) {
		s.Write("server.toml", configured+fmt.Sprintf("[tokens]\nmodules = [%q]\nwritable = [%q]\n", m.Path, writable))
	}
	configure(s.Path("nothing"))
	s.Operator("seal", "add", "pkcs11", "safe", "--module", m.Path, "--serial", token.Serial, "--key-label", "seal", "--pin-file", s.Path("seal.pin"))
	if calls := m.Calls(t, "C_Login"); calls != 0 {
		t.Errorf("the module has written, of %d logins", calls)
	}
	configure(m.Control)
	s.Operator("seal", "test", "safe")
	if calls := m.Calls(t, "C_Login"); calls == 0 {
		t.Error("the module could not write what it may")
	}
}

func extend(t *testing.T, machine *swtpm.TPM, pcr uint) {
	t.Helper()
	machine.Use(func(tpm transport.TPM) error {
		_, err := tpm2.PCRExtend{
			PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
			Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: make([]byte, 32)}}},
		}.Execute(tpm)
		return err
	})
}

// unlockWithin unlocks on a connection of its own.
func unlockWithin(t *testing.T, s *scene, limit time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	c, err := client.Connect(ctx, &client.Config{Tunnel: s.Tunnel("alice")})
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Unlock(ctx, "release", []byte(lab.AlicePassphrase))
}

func isClosed(err error) bool {
	var told *client.Error
	return errors.As(err, &told) && told.Code == wire.CodeSealClosed
}
