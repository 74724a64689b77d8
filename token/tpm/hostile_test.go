package tpm_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"chancery/swtpm"
	"chancery/token"
	"chancery/token/tpm"
)

// interposer sits between a driver and a TPM and does to each answer what tamper says.
type interposer struct {
	device string

	mu     sync.Mutex
	tamper func(command, answer []byte) []byte // nil: nothing; a nil answer ends the connection
	seen   bytes.Buffer                        // all that crossed
}

// interpose listens on a socket of its own until the test ends.
func interpose(t testing.TB, made *swtpm.TPM) *interposer {
	t.Helper()
	dir, err := os.MkdirTemp("", "tpm") // a socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	p := &interposer{device: "unix:" + path}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			p.serve(made, conn)
		}
	}()
	t.Cleanup(func() {
		listener.Close()
		<-done
		os.RemoveAll(dir)
	})
	return p
}

func (p *interposer) serve(made *swtpm.TPM, conn net.Conn) {
	defer conn.Close()
	real, err := made.Dial()
	if err != nil {
		return
	}
	defer real.Close()
	for {
		command, err := readMessage(conn)
		if err != nil {
			return
		}
		if _, err := real.Write(command); err != nil {
			return
		}
		answer, err := readMessage(real)
		if err != nil {
			return
		}
		if answer = p.pass(command, answer); answer == nil {
			return
		}
		if _, err := conn.Write(answer); err != nil || cutOff(answer) {
			return
		}
	}
}

// cutOff tells whether the driver would wait for the rest of an answer.
func cutOff(answer []byte) bool {
	return len(answer) < 6 || int64(len(answer)) < int64(binary.BigEndian.Uint32(answer[2:]))
}

func (p *interposer) pass(command, answer []byte) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen.Write(command)
	p.seen.Write(answer)
	if p.tamper == nil {
		return answer
	}
	return p.tamper(command, answer)
}

// with tampers while run runs.
func (p *interposer) with(tamper func(command, answer []byte) []byte, run func()) {
	p.set(tamper)
	run()
	p.set(nil)
}

func (p *interposer) set(tamper func(command, answer []byte) []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tamper = tamper
}

func readMessage(r io.Reader) ([]byte, error) {
	message := make([]byte, 6)
	if _, err := io.ReadFull(r, message); err != nil {
		return nil, err
	}
	rest := make([]byte, binary.BigEndian.Uint32(message[2:])-6)
	_, err := io.ReadFull(r, rest)
	return append(message, rest...), err
}

func isCommand(command []byte, code uint32) bool {
	return binary.BigEndian.Uint32(command[6:]) == code
}

// Command codes (part 2, section 6.5.2).
const (
	ccCreatePrimary = 0x131
	ccSign          = 0x15d
	ccCreate        = 0x153
	ccGetCapability = 0x17a
)

// hostile makes a token behind an interposer, logged in, with one key.
func hostile(t *testing.T) (*interposer, *swtpm.TPM, *tpm.Token, token.Key, tpm.Config) {
	t.Helper()
	made := swtpm.Start(t)
	made.SetLockout(20, time.Hour)
	p := interpose(t, made)
	config := newToken(t, made)
	config.Device, config.Timeouts = p.device, tpm.Timeouts{Command: time.Second}
	tok := open(t, config)
	login(t, tok)
	return p, made, tok, generate(t, tok, "a", token.P256), config
}

// TestHostileAnswers damages every kind of answer in every way, and wants an error each time and no panic.
func TestHostileAnswers(t *testing.T) {
	t.Parallel()
	p, made, tok, key, _ := hostile(t)
	made.SetLockout(1000, time.Hour) // a session that was damaged fails, and that counts
	for name, damage := range map[string]func([]byte) []byte{
		"nothing":    func([]byte) []byte { return nil },
		"one byte":   func(b []byte) []byte { return b[:1] },
		"header":     func(b []byte) []byte { return resized(b[:10]) },
		"cut":        func(b []byte) []byte { return resized(b[:len(b)-1]) },
		"longer":     func(b []byte) []byte { return resized(append(b, 0)) },
		"huge size":  func(b []byte) []byte { return binary.BigEndian.AppendUint32(b[:2], 1<<31) },
		"zeros":      func(b []byte) []byte { clear(b[10:]); return b },
		"ones":       func(b []byte) []byte { fill(b[10:], 0xff); return b },
		"last bit":   func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"strange rc": func(b []byte) []byte { binary.BigEndian.PutUint32(b[6:], 0xdeadbeef); return b },
	} {
		for _, code := range []uint32{ccCreatePrimary, ccSign, ccCreate, 0x157 /* Load */, 0x176 /* StartAuthSession */, 0x15e /* Unseal */, ccGetCapability} {
			tamper := func(command, answer []byte) []byte {
				if isCommand(command, code) {
					return damage(bytes.Clone(answer))
				}
				return answer
			}
			p.with(tamper, func() {
				_ = tok.Logout(t.Context())
				_ = tok.Login(t.Context(), pin)
				_, _ = tok.Generate(t.Context(), token.KeySpec{ID: []byte(name), Algorithm: token.P256})
				if err := sign(t, key); errors.Is(err, errWrong) {
					t.Errorf("%s of %#x: %v", name, code, err)
				}
			})
		}
	}
	wantError(t, "logout", tok.Logout(t.Context()), nil)
	login(t, tok)
	wantError(t, "sign without damage", sign(t, key), nil)
}

func resized(b []byte) []byte {
	binary.BigEndian.PutUint32(b[2:], uint32(len(b)))
	return b
}

func fill(b []byte, value byte) {
	for i := range b {
		b[i] = value
	}
}

// TestForgedSignature alters the signature, which the session's HMAC covers.
func TestForgedSignature(t *testing.T) {
	p, _, _, key, _ := hostile(t)
	forge := func(command, answer []byte) []byte {
		if isCommand(command, ccSign) {
			answer[20] ^= 1 // within the parameters
		}
		return answer
	}
	p.with(forge, func() {
		wantError(t, "a forged signature", sign(t, key), token.ErrTokenAbsent)
	})
	wantError(t, "an honest one", sign(t, key), nil)
}

// pointX is where the public point begins in the answer to TPM2_CreatePrimary
// for an ECC storage key: after header, handle, two sizes and the parameters.
const pointX = 44

// TestSwappedStorageKey offers another storage key, to which an interposer
// could read what is encrypted.
func TestSwappedStorageKey(t *testing.T) {
	p, made, _, _, config := hostile(t)
	before := made.LockoutCounter()
	point, err := privateScalar(t).key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	swap := func(command, answer []byte) []byte {
		if isCommand(command, ccCreatePrimary) {
			copy(answer[pointX:], point[1:33])
			copy(answer[pointX+34:], point[33:])
		}
		return answer
	}
	p.with(swap, func() {
		wantError(t, "login", open(t, config).Login(t.Context(), pin), token.ErrTokenAbsent)
	})
	if after := made.LockoutCounter(); after != before {
		t.Errorf("it cost %d tries", after-before)
	}
}

// TestSilentTPM bounds how long a TPM may take.
func TestSilentTPM(t *testing.T) {
	t.Parallel()
	p, _, _, key, _ := hostile(t)
	release := make(chan struct{})
	hang := func(_, answer []byte) []byte {
		<-release
		return answer
	}
	p.set(hang)
	start := time.Now()
	wantError(t, "a TPM that hangs", sign(t, key), token.ErrTokenAbsent)
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("it took %v", took)
	}
	close(release)
	p.set(nil)
	wantError(t, "sign when it answers again", sign(t, key), nil)
}

// TestNothingSecretCrosses records all traffic of a token's life.
func TestNothingSecretCrosses(t *testing.T) {
	p, _, tok, key, config := hostile(t)
	first, err := tpm.Authorisation(config, pin)
	if err != nil {
		t.Fatal(err)
	}
	next := []byte("next PIN")
	private := privateScalar(t)
	if _, err := tok.Import(t.Context(), token.KeySpec{ID: []byte("i"), Algorithm: token.P256}, private.key); err != nil {
		t.Fatal(err)
	}
	wantError(t, "sign", sign(t, key), nil)
	wantError(t, "change", tok.ChangePIN(t.Context(), pin, next), nil)
	second, err := tpm.Authorisation(config, next)
	if err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for what, secret := range map[string][]byte{
		"PIN": pin, "new PIN": next, "authorisation": first, "new authorisation": second, "imported key": private.scalar,
	} {
		if bytes.Contains(p.seen.Bytes(), secret) {
			t.Errorf("the %s crossed the wire", what)
		}
	}
	if p.seen.Len() < 4096 {
		t.Errorf("only %d bytes were seen", p.seen.Len())
	}
}
