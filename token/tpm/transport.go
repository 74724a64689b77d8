package tpm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/sys/unix"

	"chancery/token"
)

// DefaultDevice is the kernel's TPM with its own resource manager.
const DefaultDevice = "/dev/tpmrm0"

// socketPrefix marks a device that is a Unix socket.
const socketPrefix = "unix:"

// Defaults of Timeouts. Hardware makes an RSA-3072 key in anything up to two minutes.
const (
	DefaultCommandTimeout = 15 * time.Second
	DefaultMakeKeyTimeout = 3 * time.Minute
)

const (
	headerSize      = 10   // tag, size, and command or response code (part 1, section 18.2)
	maxResponseSize = 4096 // what the kernel's driver hands out at most
	retryPause      = 20 * time.Millisecond
)

// Timeouts bound how long a TPM may take. Zero means the default.
type Timeouts struct {
	Command time.Duration // any command but
	MakeKey time.Duration // TPM2_Create and TPM2_CreatePrimary
}

func (t Timeouts) of(command []byte) time.Duration {
	switch code := tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])); {
	case code != tpm2.TPMCCCreate && code != tpm2.TPMCCCreatePrimary:
		return orDefault(t.Command, DefaultCommandTimeout)
	default:
		return orDefault(t.MakeKey, DefaultMakeKeyTimeout)
	}
}

func orDefault(d, otherwise time.Duration) time.Duration {
	if d > 0 {
		return d
	}
	return otherwise
}

// Transport sends commands to a TPM, each under a deadline. It implements
// go-tpm's transport.TPMCloser. It serves one caller at a time.
//
// A Transport that failed once stays failed: what comes next on such a
// connection may be the answer to an earlier command. Close it and open another.
type Transport struct {
	channel  channel
	timeouts Timeouts
	failure  error
}

// channel carries one command and its answer.
type channel interface {
	// exchange sends command and reads an answer into response before deadline.
	exchange(command, response []byte, deadline time.Time) (int, error)
	Close() error
}

// OpenTransport opens a TPM: the path of a character device ("/dev/tpmrm0", or
// empty for it), or "unix:" and the path of a Unix socket on which a TPM
// emulator takes bare commands (swtpm's "--server type=unixio"). A TPM that is
// not there is token.ErrTokenAbsent.
//
// A device with a resource manager serves any number of programs. A swtpm
// serves one connection at a time, and the next one hangs until the first is
// closed.
func OpenTransport(device string, timeouts Timeouts) (*Transport, error) {
	opened, err := openChannel(device, timeouts)
	if err != nil {
		return nil, fmt.Errorf("tpm: open %s: %w", orDefaultDevice(device), err)
	}
	return &Transport{channel: opened, timeouts: timeouts}, nil
}

func orDefaultDevice(device string) string {
	if device == "" {
		return DefaultDevice
	}
	return device
}

func openChannel(device string, timeouts Timeouts) (channel, error) {
	if path, ok := strings.CutPrefix(device, socketPrefix); ok {
		conn, err := net.DialTimeout("unix", path, orDefault(timeouts.Command, DefaultCommandTimeout))
		if err != nil {
			return nil, fmt.Errorf("%w: %w", token.ErrTokenAbsent, err)
		}
		return socket{conn}, nil
	}
	return openDevice(orDefaultDevice(device))
}

// isSocket tells whether the device serves one connection at a time.
func isSocket(device string) bool {
	return strings.HasPrefix(device, socketPrefix)
}

// Send runs one command, and repeats it while the TPM asks for that (a TPM
// that is testing itself, or spares its flash memory: part 2, section 6.6.3).
// Errors are token.ErrTokenAbsent; codes in the answer are not looked at otherwise.
func (t *Transport) Send(command []byte) ([]byte, error) {
	if t.failure != nil {
		return nil, t.failure
	}
	if len(command) < headerSize {
		return nil, fmt.Errorf("tpm: command of %d bytes", len(command))
	}
	deadline := time.Now().Add(t.timeouts.of(command))
	for {
		response, err := t.exchange(command, deadline)
		if err != nil {
			t.failure = fmt.Errorf("tpm: %w: %w", token.ErrTokenAbsent, err)
			return nil, t.failure
		}
		if !wantsRetry(response) || time.Until(deadline) < retryPause {
			return response, nil
		}
		time.Sleep(retryPause)
	}
}

// Close closes the connection. What was loaded through a socket stays loaded.
func (t *Transport) Close() error {
	if t.failure == nil {
		t.failure = fmt.Errorf("tpm: connection closed: %w", token.ErrTokenAbsent)
	}
	return t.channel.Close()
}

func (t *Transport) exchange(command []byte, deadline time.Time) ([]byte, error) {
	response := make([]byte, maxResponseSize)
	n, err := t.channel.exchange(command, response, deadline)
	if err != nil {
		return nil, err
	}
	response = response[:n]
	if size, err := responseSize(response); err != nil || size != n {
		return nil, errors.New("the TPM's answer has the wrong length")
	}
	return response, nil
}

// responseSize reads how long an answer is, of which the header is there.
func responseSize(response []byte) (int, error) {
	if len(response) < headerSize {
		return 0, errors.New("the TPM's answer is cut off")
	}
	size := binary.BigEndian.Uint32(response[2:])
	if size < headerSize || size > maxResponseSize {
		return 0, errors.New("the TPM's answer has an impossible length")
	}
	return int(size), nil
}

func wantsRetry(response []byte) bool {
	code := tpm2.TPMRC(binary.BigEndian.Uint32(response[6:]))
	return slices.Contains([]tpm2.TPMRC{tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting, tpm2.TPMRCNVRate}, code)
}

// socket is a connection to an emulator: a stream of commands and answers.
type socket struct {
	net.Conn
}

func (s socket) exchange(command, response []byte, deadline time.Time) (int, error) {
	if err := s.SetDeadline(deadline); err != nil {
		return 0, err
	}
	if _, err := s.Write(command); err != nil {
		return 0, err
	}
	n, size := 0, headerSize
	for n < size {
		read, err := s.Read(response[n:])
		if err != nil {
			return 0, err
		}
		n += read
		if n < headerSize {
			continue
		}
		if size, err = responseSize(response[:n]); err != nil {
			return 0, err
		}
	}
	return n, nil
}

// device is the kernel's TPM, opened without blocking: write hands the command
// over, poll says when the answer is there, and one read takes it
// (drivers/char/tpm/tpm-dev-common.c). The file's own deadlines do not serve:
// before the answer is there, read gives zero bytes, which looks like an end.
type device struct {
	fd int
}

func openDevice(path string) (channel, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, deviceError(err)
	}
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil || stat.Mode&unix.S_IFMT != unix.S_IFCHR {
		unix.Close(fd)
		return nil, fmt.Errorf("%w: not a TPM device; a socket is named with %q before its path", token.ErrTokenAbsent, socketPrefix)
	}
	return device{fd}, nil
}

func deviceError(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: no TPM 2.0, or its driver is not loaded", token.ErrTokenAbsent)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: no permission; the device's group (tss) may open it", token.ErrTokenAbsent)
	}
	return fmt.Errorf("%w: %w", token.ErrTokenAbsent, err)
}

func (d device) exchange(command, response []byte, deadline time.Time) (int, error) {
	if n, err := unix.Write(d.fd, command); err != nil || n != len(command) {
		return 0, fmt.Errorf("the device did not take the command: %w", errors.Join(err))
	}
	if err := d.await(deadline); err != nil {
		return 0, err
	}
	return unix.Read(d.fd, response)
}

// await returns when an answer can be read.
func (d device) await(deadline time.Time) error {
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return errors.New("the TPM does not answer in time")
		}
		set := []unix.PollFd{{Fd: int32(d.fd), Events: unix.POLLIN}}
		n, err := unix.Poll(set, int(left.Milliseconds())+1)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case n > 0 && set[0].Revents&unix.POLLIN == 0:
			return errors.New("the TPM device is gone")
		case n > 0:
			return nil
		}
	}
}

func (d device) Close() error {
	return unix.Close(d.fd)
}
