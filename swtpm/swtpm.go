// Package swtpm runs throw-away TPMs for tests: one swtpm process with a state
// directory each, reached through a Unix socket.
//
// swtpm serves one connection at a time: a second one is accepted by the kernel
// and hangs until the first is closed. Whoever uses a TPM by two programs in
// turn closes the first one's connection before.
package swtpm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"chancery/internal/testtool"
)

const (
	startDeadline   = 20 * time.Second // the first start makes the TPM's seeds
	commandDeadline = 20 * time.Second
	pollInterval    = 5 * time.Millisecond
)

// TPM is one emulated TPM 2.0.
type TPM struct {
	// Socket is the path of the command socket (TPM commands as they are, no framing).
	Socket string
	// Directory is where the TPM keeps its state.
	Directory string
	// Store is an empty directory for tpm2-pkcs11's store.
	Store string

	tb      testing.TB
	program string
	process *process // nil while stopped
}

// Start makes a new TPM that ends with the test. Without swtpm the test ends as testtool.Need says.
func Start(tb testing.TB) *TPM {
	tb.Helper()
	program := testtool.Need(tb, "swtpm")
	// Not tb.TempDir(): the path of a Unix socket has at most 107 bytes, and test names are long.
	base, err := os.MkdirTemp("", "swtpm")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(base) })
	t := &TPM{
		Socket:    filepath.Join(base, "tpm.sock"),
		Directory: filepath.Join(base, "state"),
		Store:     filepath.Join(base, "pkcs11"),
		tb:        tb,
		program:   program,
	}
	for _, dir := range []string{t.Directory, t.Store} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			tb.Fatal(err)
		}
	}
	tb.Cleanup(t.Stop)
	t.start()
	return t
}

// Device returns the name under which chancery opens this TPM: "unix:" and the socket.
func (t *TPM) Device() string {
	return "unix:" + t.Socket
}

// Env returns what a child process needs in its environment to use this TPM
// through tpm2-tools or tpm2-pkcs11.
func (t *TPM) Env() []string {
	tcti := "swtpm:path=" + t.Socket
	return []string{
		"TPM2TOOLS_TCTI=" + tcti,
		"TPM2_PKCS11_TCTI=" + tcti,
		"TPM2_PKCS11_STORE=" + t.Store,
	}
}

// SetEnv sets Env for this process until the test ends.
func (t *TPM) SetEnv() {
	t.tb.Helper()
	for _, pair := range t.Env() {
		name, value, _ := bytes.Cut([]byte(pair), []byte("="))
		t.tb.Setenv(string(name), string(value))
	}
}

// Dial connects to the command socket. The connection's deadline is generous but there.
func (t *TPM) Dial() (net.Conn, error) {
	conn, err := net.DialTimeout("unix", t.Socket, commandDeadline)
	if err != nil {
		return nil, fmt.Errorf("swtpm: %w", err)
	}
	if err := conn.SetDeadline(time.Now().Add(commandDeadline)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// Transport connects to the TPM for go-tpm. Close it to let others have their turn.
func (t *TPM) Transport() transport.TPMCloser {
	t.tb.Helper()
	conn, err := t.Dial()
	if err != nil {
		t.tb.Fatal(err)
	}
	return transport.FromReadWriteCloser(conn)
}

// Use runs use with a connection of its own.
func (t *TPM) Use(use func(transport.TPM) error) {
	t.tb.Helper()
	tpm := t.Transport()
	err := use(tpm)
	if err = errors.Join(err, tpm.Close()); err != nil {
		t.tb.Fatalf("swtpm: %v", err)
	}
}

// Property reads one of the TPM's properties (TPM 2.0 library, part 2, section 6.13).
func (t *TPM) Property(property tpm2.TPMPT) int {
	t.tb.Helper()
	value := 0
	t.Use(func(tpm transport.TPM) error {
		rsp, err := tpm2.GetCapability{
			Capability:    tpm2.TPMCapTPMProperties,
			Property:      uint32(property),
			PropertyCount: 1,
		}.Execute(tpm)
		if err != nil {
			return err
		}
		list, err := rsp.CapabilityData.Data.TPMProperties()
		if err != nil {
			return err
		}
		if len(list.TPMProperty) != 1 || list.TPMProperty[0].Property != property {
			return fmt.Errorf("no property %#x", property)
		}
		value = int(list.TPMProperty[0].Value)
		return nil
	})
	return value
}

// LockoutCounter is the number of wrong authorisations that the TPM remembers.
func (t *TPM) LockoutCounter() int {
	t.tb.Helper()
	return t.Property(tpm2.TPMPTLockoutCounter)
}

// ClearLockout does what the owner of the lockout hierarchy can: it forgets the wrong authorisations.
func (t *TPM) ClearLockout() {
	t.tb.Helper()
	t.lockoutCommand(tpm2.TPMCCDictionaryAttackLockReset)
}

// SetLockout has the TPM lock after so many wrong authorisations, and forget one
// of them after each recovery. A new swtpm locks after 3, hardware after about 30.
func (t *TPM) SetLockout(tries int, recovery time.Duration) {
	t.tb.Helper()
	seconds := uint32(recovery / time.Second)
	t.lockoutCommand(tpm2.TPMCCDictionaryAttackParameters, uint32(tries), seconds, seconds)
}

const responseHeader = 10 // tag, size and response code

// lockoutCommand runs a command of part 3, section 25, which go-tpm has not,
// with the empty password of the lockout hierarchy.
func (t *TPM) lockoutCommand(code tpm2.TPMCC, parameters ...uint32) {
	t.tb.Helper()
	command := []byte{0x80, 0x02, 0, 0, 0, byte(27 + 4*len(parameters))} // TPM_ST_SESSIONS, size
	command = binary.BigEndian.AppendUint32(command, uint32(code))
	command = binary.BigEndian.AppendUint32(command, uint32(tpm2.TPMRHLockout))
	command = append(command, 0, 0, 0, 9, 0x40, 0, 0, 0x09, 0, 0, 0, 0, 0) // TPM_RS_PW: no nonce, no attributes, no password
	for _, p := range parameters {
		command = binary.BigEndian.AppendUint32(command, p)
	}
	t.Use(func(tpm transport.TPM) error {
		response, err := tpm.Send(command)
		if err != nil {
			return err
		}
		if len(response) < responseHeader {
			return fmt.Errorf("response of %d bytes", len(response))
		}
		if code := tpm2.TPMRC(binary.BigEndian.Uint32(response[6:])); code != tpm2.TPMRCSuccess {
			return code
		}
		return nil
	})
}

// Handles counts the transient objects and the loaded sessions.
func (t *TPM) Handles() (objects, sessions int) {
	t.tb.Helper()
	t.Use(func(tpm transport.TPM) (err error) {
		if objects, err = countHandles(tpm, tpm2.TPMHTTransient); err != nil {
			return err
		}
		sessions, err = countHandles(tpm, tpm2.TPMHTLoadedSession)
		return err
	})
	return objects, sessions
}

func countHandles(tpm transport.TPM, kind tpm2.TPMHT) (int, error) {
	rsp, err := tpm2.GetCapability{
		Capability:    tpm2.TPMCapHandles,
		Property:      uint32(kind) << 24,
		PropertyCount: 64,
	}.Execute(tpm)
	if err != nil {
		return 0, err
	}
	list, err := rsp.CapabilityData.Data.Handles()
	if err != nil {
		return 0, err
	}
	return len(list.Handle), nil
}

// Shutdown tells the TPM that its power goes away, as an operating system does
// before a reboot. Without it, a TPM whose protected objects were used counts
// the power cut as one wrong authorisation (part 1, section 19.8.6).
func (t *TPM) Shutdown() {
	t.tb.Helper()
	t.Use(func(tpm transport.TPM) error {
		_, err := tpm2.Shutdown{ShutdownType: tpm2.TPMSUClear}.Execute(tpm)
		return err
	})
}

// Stop cuts the TPM's power: the process ends, its connections break, the state
// stays. Stopping a stopped TPM does nothing.
func (t *TPM) Stop() {
	if t.process == nil {
		return
	}
	t.process.kill()
	t.process = nil
}

// Restart is a power cycle: a new process on the same state. Whatever was
// loaded is gone, whatever was persistent is there.
func (t *TPM) Restart() {
	t.tb.Helper()
	t.Stop()
	t.start()
}

func (t *TPM) start() {
	t.tb.Helper()
	control := t.Socket + ".ctrl"
	for _, path := range []string{t.Socket, control} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.tb.Fatal(err)
		}
	}
	started, err := launch(exec.Command(t.program, "socket", "--tpm2",
		"--tpmstate", "dir="+t.Directory,
		"--server", "type=unixio,path="+t.Socket,
		"--ctrl", "type=unixio,path="+control,
		"--flags", "not-need-init,startup-clear"))
	if err != nil {
		t.tb.Fatalf("swtpm: %v", err)
	}
	t.process = started
	t.await()
}

// await returns when the TPM answers.
func (t *TPM) await() {
	t.tb.Helper()
	for end := time.Now().Add(startDeadline); time.Now().Before(end); time.Sleep(pollInterval) {
		if output, ended := t.process.ended(); ended {
			t.tb.Fatalf("swtpm ended at once:\n%s", output)
		}
		conn, err := t.Dial()
		if err != nil {
			continue
		}
		tpm := transport.FromReadWriteCloser(conn)
		_, err = countHandles(tpm, tpm2.TPMHTTransient)
		if errors.Join(err, tpm.Close()) == nil {
			return
		}
	}
	t.tb.Fatalf("swtpm does not answer after %v", startDeadline)
}

// process is a running swtpm.
type process struct {
	command *exec.Cmd
	output  bytes.Buffer // only to be read after done
	done    chan struct{}
}

// launch starts the command from a thread that lives as long as the process
// does: the kernel ends a child with the thread that started it, where it does
// that at all (endWithParent), so that no killed test leaves a TPM behind.
func launch(command *exec.Cmd) (*process, error) {
	p := &process{command: command, done: make(chan struct{})}
	command.Stdout, command.Stderr = &p.output, &p.output
	endWithParent(command)
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := command.Start()
		started <- err
		if err == nil {
			_ = command.Wait() // killed: always an error
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// ended tells whether the process is over, and what it said.
func (p *process) ended() (output string, over bool) {
	select {
	case <-p.done:
		return p.output.String(), true
	default:
		return "", false
	}
}

func (p *process) kill() {
	_ = p.command.Process.Kill() // an error says that it has ended
	<-p.done
}
