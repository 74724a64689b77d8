package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// dirLock lets one process (and within it, one Log) at a time touch the log's end.
type dirLock struct {
	directory *os.File
	turn      *os.File // nil for a copy of a log that has no such file
}

// openLock opens the directory, and the file turn with the given flags.
func openLock(directory string, flag int) (*dirLock, error) {
	d, err := os.Open(directory)
	if err != nil {
		return nil, err
	}
	turn, err := openFile(filepath.Join(directory, turnName), flag, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return &dirLock{directory: d}, nil
	}
	if err != nil {
		d.Close()
		return nil, err
	}
	return &dirLock{directory: d, turn: turn}, nil
}

func (l *dirLock) close() {
	l.directory.Close()
	if l.turn != nil {
		l.turn.Close()
	}
}

// acquire waits for the lock. Whoever wants it holds turn while waiting, so that
// a process that has just let go of the lock comes after those already there.
func (l *dirLock) acquire(timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	if l.turn != nil {
		if err := flock(l.turn, deadline); err != nil {
			return err
		}
		defer unflock(l.turn)
	}
	return flock(l.directory, deadline)
}

func (l *dirLock) release() { unflock(l.directory) }

// flock polls, because a flock that blocks cannot be given up.
func flock(f *os.File, deadline time.Time) error {
	for pause := 50 * time.Microsecond; ; pause = min(2*pause, 2*time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case err != unix.EWOULDBLOCK && err != unix.EINTR:
			return fmt.Errorf("%w: flock %s: %w", ErrUnavailable, f.Name(), err)
		case time.Now().After(deadline):
			return fmt.Errorf("%w: another process does not let go of %s; look for one that is stopped or stuck", ErrUnavailable, f.Name())
		}
		time.Sleep(pause)
	}
}

func unflock(f *os.File) {
	_ = unix.Flock(int(f.Fd()), unix.LOCK_UN) // fails only for a closed file, which holds no lock
}
