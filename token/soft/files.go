package soft

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

// maxFileSize is far above the largest file of this format, an RSA-4096 key's 6 KiB.
const maxFileSize = 64 << 10

// readLimited reads a whole regular file of at most maxFileSize bytes.
func readLimited(path string) ([]byte, error) {
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
	data, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFileSize {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxFileSize)
	}
	return data, nil
}

// publishNew writes a file that must not exist yet: it appears whole and
// durable under its name, or not at all. An existing one is fs.ErrExist.
func publishNew(path string, data []byte) error {
	return publish(path, data, os.Link)
}

// replaceFile writes a file in the place of an older one, which stays whole
// until the moment of the rename.
func replaceFile(path string, data []byte) error {
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
	return syncDir(filepath.Dir(path))
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

// removeFile removes a file durably.
func removeFile(path string) error {
	if err := os.Remove(path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes a rename, link or removal in dir survive a power cut.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// lockFile takes the lock across processes, trying again every pause until ctx
// ends (token.ErrBusy).
func lockFile(ctx context.Context, path string, pause time.Duration) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("directory is gone: %w", token.ErrTokenAbsent)
	}
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
			return nil, fmt.Errorf("another process is changing this token: %w: %w", token.ErrBusy, ctx.Err())
		case <-time.After(pause):
		}
	}
}
