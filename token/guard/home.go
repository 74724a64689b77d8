package guard

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

const (
	recordName = "record"
	lockName   = "lock"
	// movingSuffix is of a directory that is to take the place of an earlier version's file.
	movingSuffix = ".moving"
)

// furnish makes the token's directory, unless it is there.
//
// Earlier versions had the record in a file in the place of the directory. It moves inside, under their lock. Should one of them still run, or
// run again, it finds a directory where it expects a file, and sends no PIN.
func (f *file) furnish(ctx context.Context) error {
	if there, err := isDirectory(f.home); there || err != nil {
		return err
	}
	if err := makeDirectory(filepath.Dir(f.home)); err != nil {
		return unusable(err)
	}
	theirs := f.home + ".lock"
	locked, err := lock(ctx, theirs)
	if err != nil {
		return err
	}
	defer locked.Close()
	there, err := isDirectory(f.home) // by now another process may have made it
	if err == nil && !there {
		err = f.moveIn()
	}
	if err != nil {
		return err
	}
	for _, left := range []string{theirs, f.home + ".new"} {
		_ = os.Remove(left) // nobody looks at them beside a directory
	}
	return nil
}

// moveIn can be interrupted anywhere and begun again.
func (f *file) moveIn() error {
	moving := f.home + movingSuffix
	if err := makeDirectory(moving); err != nil {
		return unusable(err)
	}
	if err := moveRecord(f.home, filepath.Join(moving, recordName)); err != nil {
		return unusable(err)
	}
	if err := syncDirectory(moving); err != nil {
		return unusable(err)
	}
	if err := os.Rename(moving, f.home); err != nil {
		return unusable(err)
	}
	return f.syncAbove()
}

// moveRecord moves a file if there is one. It puts nothing in the place of a record that was moved before: then an earlier version has
// begun anew after an interruption, and neither record holds all that the token rejected.
func moveRecord(from, to string) error {
	if _, err := os.Lstat(from); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	if _, err := os.Lstat(to); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s and %s both tell what the token rejected: remove both if you are sure of its PIN", from, to)
	}
	return os.Rename(from, to)
}

// isDirectory is false where there is nothing.
func isDirectory(path string) (bool, error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, unusable(err)
	}
	return info.IsDir(), nil
}
