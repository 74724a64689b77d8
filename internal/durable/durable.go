// Package durable keeps small files that must be whole: each appears complete
// and durable under its name or not at all, also when the power goes.
package durable

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// ErrLocked says that another process held the lock until the context ended. A retry helps.
var ErrLocked = errors.New("another process holds the lock")

// ReadLimited reads a whole regular file of at most limit bytes. Symbolic links
// are not followed.
func ReadLimited(path string, limit int) ([]byte, error) {
	// A FIFO planted in its place must not block us.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err != nil {
		return nil, err
	}
	if len(data) > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return data, nil
}

// PublishNew writes a file of mode 0600 that must not exist yet. An existing one is fs.ErrExist.
func PublishNew(path string, data []byte) error {
	return publish(path, data, os.Link)
}

// Replace writes a file of mode 0600 in the place of an older one, which stays
// whole until the moment of the rename.
func Replace(path string, data []byte) error {
	return publish(path, data, os.Rename)
}

func publish(path string, data []byte, place func(from, to string) error) error {
	temporary, err := writeTemporary(filepath.Dir(path), data)
	if err != nil {
		return err
	}
	defer os.Remove(temporary) // gone already after a rename
	if err := place(temporary, path); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

func writeTemporary(dir string, data []byte) (path string, err error) {
	f, err := os.CreateTemp(dir, ".new-*") // mode 0600
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if _, err := f.Write(data); err != nil {
		f.Close()
		return "", err
	}
	if err := f.Sync(); err != nil {
		f.Close()
		return "", err
	}
	return f.Name(), f.Close()
}

// Remove removes a file durably.
func Remove(path string) error {
	if err := os.Remove(path); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// SyncDir makes a rename, link or removal in dir survive a power cut.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Lock takes the lock that the file at path stands for, across processes,
// trying again every pause until ctx ends (ErrLocked). It makes the file, but
// not its directory (fs.ErrNotExist).
func Lock(ctx context.Context, path string, pause time.Duration) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil // closing gives the lock back
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("%w: %w", ErrLocked, ctx.Err())
		case <-time.After(pause):
		}
	}
}
