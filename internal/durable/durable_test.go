package durable_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"chancery/internal/durable"
)

func TestPublishAndReplace(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	if err := durable.PublishNew(path, []byte("one")); err != nil {
		t.Fatal(err)
	}
	if err := durable.PublishNew(path, []byte("two")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("published twice: %v", err)
	}
	wantContent(t, path, "one")
	if err := durable.Replace(path, []byte("three")); err != nil {
		t.Fatal(err)
	}
	wantContent(t, path, "three")
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if err := durable.Remove(path); err != nil {
		t.Error(err)
	}
	if err := durable.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("removed twice: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func wantContent(t *testing.T, path, want string) {
	t.Helper()
	if got, err := durable.ReadLimited(path, len(want)); err != nil || string(got) != want {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
}

// TestReadLimitedRefuses what could exhaust or block the reader.
func TestReadLimitedRefuses(t *testing.T) {
	dir := t.TempDir()
	file, link, fifo := filepath.Join(dir, "file"), filepath.Join(dir, "link"), filepath.Join(dir, "fifo")
	if err := errors.Join(os.WriteFile(file, make([]byte, 11), 0o600), os.Symlink(file, link), unix.Mkfifo(fifo, 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, link, fifo, dir, filepath.Join(dir, "absent")} {
		if _, err := durable.ReadLimited(path, 10); err == nil {
			t.Errorf("read %s", path)
		}
	}
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := durable.Lock(t.Context(), path, time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := durable.Lock(short, path, time.Millisecond); !errors.Is(err, durable.ErrLocked) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("locked twice: %v", err)
	}
	time.AfterFunc(20*time.Millisecond, unlock)
	again, err := durable.Lock(t.Context(), path, time.Millisecond)
	if err != nil {
		t.Fatalf("after the unlock: %v", err)
	}
	again()
	if _, err := durable.Lock(t.Context(), filepath.Join(path, "no directory"), time.Millisecond); err == nil {
		t.Error("locked where no file can be")
	}
}
