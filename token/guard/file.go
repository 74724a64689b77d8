package guard

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"chancery/token"
)

// lockPause is how long to wait before trying again for a lock that another process has.
const lockPause = 20 * time.Millisecond

// file is one token's record on the disk, locked. It has a directory of its own, so that the process of one token need not be able to write
// to another's.
type file struct {
	name   string // SHA-256 of the serial number
	home   string // the directory, of that name
	path   string
	locked *os.File
}

// lock takes a lock between processes. It is on a file of its own, because the record's is replaced.
func lock(ctx context.Context, path string) (*os.File, error) {
	locked, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, unusable(err)
	}
	for {
		err := unix.Flock(int(locked.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return locked, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			locked.Close()
			return nil, unusable(err)
		}
		select {
		case <-ctx.Done():
			locked.Close()
			return nil, fmt.Errorf("guard: another login of this token is under way: %w: %w", token.ErrBusy, context.Cause(ctx))
		case <-time.After(lockPause):
		}
	}
}

// close gives the lock back.
func (f *file) close() { f.locked.Close() }

// load reads the record, an empty one when there is no file.
func (f *file) load() (*record, error) {
	data, err := f.read()
	if errors.Is(err, fs.ErrNotExist) {
		return newRecord(f.name), nil
	}
	if err != nil {
		return nil, unusable(err)
	}
	r, err := decode(data)
	if err != nil || r.Token != f.name {
		return nil, fmt.Errorf("guard: %w: %s: %w: \"token unblock\" forgets what it held", token.ErrPINMemory, f.path, errDamaged)
	}
	return r, nil
}

func (f *file) read() ([]byte, error) {
	// A FIFO in its place must not block.
	file, err := os.OpenFile(f.path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, maxRecord+1))
}

// save puts the record in the place of the former one, durably. One that remembers nothing is no file.
func (f *file) save(r *record) error {
	if r.empty() {
		return f.remove()
	}
	if err := removeFile(f.temporary()); err != nil {
		return unusable(err)
	}
	if err := writeSynced(f.temporary(), r.encode()); err != nil {
		return unusable(err)
	}
	if err := os.Rename(f.temporary(), f.path); err != nil {
		return unusable(err)
	}
	return f.syncHome()
}

// temporary is where a record is written before it takes the former one's place.
func (f *file) temporary() string { return f.path + ".new" }

// remove makes the record go durably, and what an interrupted save has left.
func (f *file) remove() error {
	for _, path := range []string{f.path, f.temporary()} {
		if err := removeFile(path); err != nil {
			return unusable(err)
		}
	}
	return f.syncHome()
}

// removeFile is content where there is none.
func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (f *file) syncHome() error {
	if err := syncDirectory(f.home); err != nil {
		return unusable(err)
	}
	return nil
}

func (f *file) syncAbove() error {
	if err := syncDirectory(filepath.Dir(f.home)); err != nil {
		return unusable(err)
	}
	return nil
}

// writeSynced makes a new file. Whatever is there already is not opened: the token's module may write to this directory, and
// opening a FIFO of its would not return.
func writeSynced(path string, data []byte) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err := file.Write(data); err != nil {
		file.Close()
		return err
	}
	if err := file.Sync(); err != nil {
		file.Close()
		return err
	}
	return file.Close()
}

// makeDirectory makes it and its entry above durable.
func makeDirectory(path string) error {
	err := os.Mkdir(path, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return syncDirectory(filepath.Dir(path))
}

func syncDirectory(path string) error {
	directory, err := os.Open(path)
	if err != nil {
		return err
	}
	defer directory.Close()
	return directory.Sync()
}

// unusable says that nothing can be remembered; the cause names the file.
func unusable(err error) error {
	return fmt.Errorf("guard: %w: %w: see to the disk and to who may write there", token.ErrPINMemory, err)
}
