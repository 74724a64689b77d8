package tpm_test

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/creack/pty"
	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"golang.org/x/term"

	"chancery/swtpm"
	"chancery/token"
	"chancery/token/tpm"
)

// TestDevice works through a character device: a pseudo-terminal in raw mode,
// behind which an emulator answers.
func TestDevice(t *testing.T) {
	path := asDevice(t, swtpm.Start(t))
	config := tpm.Config{Device: path, Directory: filepath.Join(t.TempDir(), "token")}
	if err := tpm.Create(config, "label", pin); err != nil {
		t.Fatal(err)
	}
	tok := open(t, config)
	login(t, tok)
	wantError(t, "sign", sign(t, generate(t, tok, "a", token.P256)), nil)
	info, err := tok.Info(t.Context())
	if err != nil || info.Hardware {
		t.Errorf("an emulator behind a device is hardware: %+v, %v", info, err)
	}
}

// asDevice returns the path of a character device that takes commands for the TPM.
func asDevice(t *testing.T, made *swtpm.TPM) string {
	t.Helper()
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := term.MakeRaw(int(slave.Fd())); err != nil {
		t.Fatal(err)
	}
	conn, err := made.Dial()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		relay(master, conn)
	}()
	t.Cleanup(func() {
		conn.Close()
		slave.Close()
		master.Close()
		<-done
	})
	return slave.Name()
}

// relay carries commands to the TPM and answers back until either ends.
func relay(device, tpm io.ReadWriter) {
	for {
		command, err := swtpm.ReadMessage(device)
		if err != nil {
			return
		}
		if _, err := tpm.Write(command); err != nil {
			return
		}
		answer, err := swtpm.ReadMessage(tpm)
		if err != nil {
			return
		}
		if _, err := device.Write(answer); err != nil {
			return
		}
	}
}

func TestOpenTransportRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, nil)
	for name, device := range map[string]string{
		"absent device": filepath.Join(t.TempDir(), "absent"),
		"absent socket": "unix:" + filepath.Join(t.TempDir(), "absent"),
		"a file":        file,
		"a directory":   t.TempDir(),
		"no socket":     "unix:" + file,
	} {
		_, err := tpm.OpenTransport(device, tpm.Timeouts{})
		wantError(t, name, err, token.ErrTokenAbsent)
	}
	null, err := tpm.OpenTransport(os.DevNull, tpm.Timeouts{})
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	_, err = tpm.CreateParent(null)
	wantError(t, "a device that is no TPM", err, token.ErrTokenAbsent)
}

// TestPersistentParent keeps keys under a storage key that was made persistent,
// on a TPM whose owner hierarchy has a password from then on.
func TestPersistentParent(t *testing.T) {
	const handle = 0x81000001
	made := swtpm.Start(t)
	made.Use(func(connection transport.TPM) error {
		parent, err := tpm.CreateParent(connection)
		if err != nil {
			return err
		}
		owner := tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
		_, err = tpm2.EvictControl{
			Auth:             owner,
			ObjectHandle:     tpm2.NamedHandle{Handle: parent.Handle, Name: parent.Name},
			PersistentHandle: handle,
		}.Execute(connection)
		if err != nil {
			return err
		}
		_, err = tpm2.HierarchyChangeAuth{AuthHandle: owner, NewAuth: tpm2.TPM2BAuth{Buffer: []byte("owner")}}.Execute(connection)
		return err
	})
	config := tpm.Config{Device: made.Device(), Directory: filepath.Join(t.TempDir(), "token")}
	wantError(t, "a storage key without the owner's password", tpm.Create(config, "label", pin), token.ErrUnsupported)
	config.Parent = handle + 1
	wantError(t, "a handle with nothing there", tpm.Create(config, "label", pin), token.ErrTokenAbsent)
	config.Parent = handle
	if err := tpm.Create(config, "label", pin); err != nil {
		t.Fatal(err)
	}
	config.Parent = 0 // the token knows it
	tok := open(t, config)
	login(t, tok)
	wantError(t, "sign", sign(t, generate(t, tok, "a", token.P256)), nil)
	_, err := tok.Attest(t.Context(), []byte("a"))
	wantError(t, "attest", err, token.ErrUnsupported)
}

// TestOrphans has a program die with all of the emulator's slots taken.
func TestOrphans(t *testing.T) {
	made := swtpm.Start(t)
	config := newToken(t, made)
	made.Use(func(connection transport.TPM) error {
		for range 3 {
			if _, err := tpm.CreateParent(connection); err != nil {
				return err
			}
		}
		return nil
	})
	tok := open(t, config)
	login(t, tok)
	wantError(t, "sign", sign(t, generate(t, tok, "a", token.P256)), nil)
}
