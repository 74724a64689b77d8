package swtpm

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// Interposer sits between a program and a TPM and does to each answer what its tamper says.
type Interposer struct {
	Device string // names the interposer as TPM.Device names the TPM

	mu     sync.Mutex
	tamper func(command, answer []byte) []byte // nil: nothing; a nil answer ends the connection
	seen   bytes.Buffer                        // all that crossed
}

// Interpose listens on a socket of its own until the test ends.
func Interpose(t testing.TB, made *TPM) *Interposer {
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
	p := &Interposer{Device: "unix:" + path}
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

func (p *Interposer) serve(made *TPM, conn net.Conn) {
	defer conn.Close()
	real, err := made.Dial()
	if err != nil {
		return
	}
	defer real.Close()
	for {
		command, err := ReadMessage(conn)
		if err != nil {
			return
		}
		if _, err := real.Write(command); err != nil {
			return
		}
		answer, err := ReadMessage(real)
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

func (p *Interposer) pass(command, answer []byte) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen.Write(command)
	p.seen.Write(answer)
	if p.tamper == nil {
		return answer
	}
	return p.tamper(command, answer)
}

// With tampers while run runs.
func (p *Interposer) With(tamper func(command, answer []byte) []byte, run func()) {
	p.Set(tamper)
	run()
	p.Set(nil)
}

// Set tampers from now on. A nil tamper leaves all as it is; a nil answer of its ends the connection.
func (p *Interposer) Set(tamper func(command, answer []byte) []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tamper = tamper
}

// ReadMessage reads one command or answer, which both have their size behind a tag of two bytes (part 1, section 18).
func ReadMessage(r io.Reader) ([]byte, error) {
	message := make([]byte, 6)
	if _, err := io.ReadFull(r, message); err != nil {
		return nil, err
	}
	rest := make([]byte, binary.BigEndian.Uint32(message[2:])-6)
	_, err := io.ReadFull(r, rest)
	return append(message, rest...), err
}

// Seen returns all commands and answers that crossed.
func (p *Interposer) Seen() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return bytes.Clone(p.seen.Bytes())
}

// IsCommand tells whether a command has the code (part 2, section 6.5.2).
func IsCommand(command []byte, code uint32) bool {
	return binary.BigEndian.Uint32(command[6:]) == code
}
