package sqlite

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const lockPoll = 20 * time.Millisecond

// prepare makes the file where there is none, refuses one that others can read or replace, and holds a lock on
// its directory until release, so that two processes do not bring the tables up to date at once.
func prepare(ctx context.Context, path string) (release func(), err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("users/sqlite: directory of the database: %w", err)
	}
	if err := checkDirectory(dir); err != nil {
		return nil, err
	}
	held, err := lockDirectory(ctx, dir)
	if err != nil {
		return nil, err
	}
	if err := prepareFile(path, held); err != nil {
		held.Close()
		return nil, err
	}
	return func() { held.Close() }, nil
}

func checkDirectory(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("users/sqlite: directory of the database: %w", err)
	}
	if perm := info.Mode().Perm(); perm&0o022 != 0 {
		return fmt.Errorf("%w: directory %s has mode %04o, so others can replace the file: give the database a directory of its own, or run chmod 0700 %s", ErrPermissions, dir, perm, dir)
	}
	return nil
}

// lockDirectory takes an flock, which ends with the process however that ends.
func lockDirectory(ctx context.Context, dir string) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, BusyTimeout)
	defer cancel()
	held, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("users/sqlite: directory of the database: %w", err)
	}
	for {
		err := unix.Flock(int(held.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return held, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			held.Close()
			return nil, fmt.Errorf("users/sqlite: lock %s: %w", dir, err)
		}
		select {
		case <-ctx.Done():
			held.Close()
			return nil, fmt.Errorf("users/sqlite: another process is opening the database in %s; try again: %w", dir, ctx.Err())
		case <-time.After(lockPoll):
		}
	}
}

// prepareFile never opens a file that exists: closing it would drop the locks that SQLite
// holds on it elsewhere in this process (fcntl(2)).
func prepareFile(path string, dir *os.File) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return createFile(path, dir)
	}
	if err != nil {
		return fmt.Errorf("users/sqlite: %w", err)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("users/sqlite: %s is not a regular file", path)
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return fmt.Errorf("%w: %s has mode %04o: run chmod 0600 %s", ErrPermissions, path, perm, path)
	}
	return nil
}

func createFile(path string, dir *os.File) error {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("users/sqlite: %w", err)
	}
	if err := file.Close(); err != nil {
		return fmt.Errorf("users/sqlite: %w", err)
	}
	if err := dir.Sync(); err != nil { // the file's name has to be durable as well
		return fmt.Errorf("users/sqlite: %w", err)
	}
	return nil
}
