package audit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// appenderDirectory makes the test binary an appender to the log in that directory.
const appenderDirectory = "AUDIT_TEST_APPENDER"

func TestMain(m *testing.M) {
	if directory := os.Getenv(appenderDirectory); directory != "" {
		appendForEver(directory)
		return
	}
	os.Exit(m.Run())
}

func open(t testing.TB, cfg Config) *Log {
	t.Helper()
	l, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func directory(t testing.TB) string { return filepath.Join(t.TempDir(), "audit") }

// memoryDirectory is for tests that need hundreds of directories and no real disk.
func memoryDirectory(t testing.TB) string {
	t.Helper()
	const memory = "/dev/shm"
	if _, err := os.Stat(memory); err != nil {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp(memory, "audit-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func sign(user string) Record {
	return Record{
		Kind: KindSign, User: user, Key: "release", Handle: "0a1b", Scheme: "pss", DigestAlgorithm: "Sha256",
		Digests: []string{strings.Repeat("ab", 32)}, Session: "5f9c", Request: new(uint64(7)),
		Peer:    &Peer{Address: "192.0.2.7:4711", Serial: "01ff", Fingerprint: strings.Repeat("cd", 32)},
		Outcome: OutcomeOK, IdempotencyKey: "b2f7", Details: map[string]string{"note": "nightly"},
	}
}

func mustAppend(t testing.TB, l *Log, r Record) Position {
	t.Helper()
	p, err := l.Append(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func verify(t testing.TB, directory string, o VerifyOptions) Report {
	t.Helper()
	report, err := Verify(context.WithoutCancel(t.Context()), directory, o)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func mustVerify(t testing.TB, directory string, head Head) Report {
	t.Helper()
	report := verify(t, directory, VerifyOptions{Expect: &head})
	for _, problem := range report.Problems {
		t.Error(&problem)
	}
	return report
}

// entries reads a log that must be whole.
func entries(t testing.TB, directory string, f Filter) []Entry {
	t.Helper()
	var found []Entry
	for e, err := range Read(t.Context(), directory, ReadOptions{Filter: f}) {
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, e)
	}
	return found
}

// mustHold makes sure that each acknowledged record is where Append said.
func mustHold(t testing.TB, directory string, acknowledged map[string]Position) {
	t.Helper()
	found := make(map[string]Position)
	for _, e := range entries(t, directory, Filter{}) {
		if e.User != "" {
			found[e.User] = e.Position
		}
	}
	for user, want := range acknowledged {
		if got := found[user]; got != want {
			t.Errorf("record of %s: acknowledged at %v, found at %v", user, want, got)
		}
	}
}

// What a hook of faultyFS may return beside errors that end the operation before it began.
var (
	errHalf  = errors.New("half of it is written, then ENOSPC")
	errAfter = errors.New("all is done, then EIO")
)

// faultyFS asks its hook before each operation.
type faultyFS struct {
	FS
	hook func(operation, name string) error
}

type faultyFile struct {
	File
	fs   *faultyFS
	name string
}

// do runs an operation as the hook wants it.
func (f *faultyFS) do(operation, name string, run func() error) error {
	switch err := f.hook(operation, filepath.Base(name)); err {
	case nil:
		return run()
	case errAfter, errHalf:
		_ = run()
		return syscall.EIO
	default:
		return fmt.Errorf("%s %s: %w", operation, filepath.Base(name), err)
	}
}

func (f *faultyFS) OpenFile(name string, flag int, perm fs.FileMode) (file File, err error) {
	err = f.do("open", name, func() (err error) { file, err = f.FS.OpenFile(name, flag, perm); return err })
	if err != nil {
		if file != nil {
			file.Close()
		}
		return nil, err
	}
	return &faultyFile{file, f, name}, nil
}

func (f *faultyFS) Stat(name string) (info fs.FileInfo, err error) {
	err = f.do("stat", name, func() (err error) { info, err = f.FS.Stat(name); return err })
	return info, err
}

func (f *faultyFS) ReadDir(name string) (found []fs.DirEntry, err error) {
	err = f.do("readdir", name, func() (err error) { found, err = f.FS.ReadDir(name); return err })
	return found, err
}

func (f *faultyFS) Rename(from, to string) error {
	return f.do("rename", to, func() error { return f.FS.Rename(from, to) })
}

func (f *faultyFS) SyncDir(name string) error {
	return f.do("syncdir", name, func() error { return f.FS.SyncDir(name) })
}

func (f *faultyFile) ReadAt(p []byte, offset int64) (n int, err error) {
	err = f.fs.do("read", f.name, func() (err error) { n, err = f.File.ReadAt(p, offset); return err })
	return n, err
}

func (f *faultyFile) WriteAt(p []byte, offset int64) (int, error) {
	switch err := f.fs.hook("write", filepath.Base(f.name)); err {
	case nil:
		return f.File.WriteAt(p, offset)
	case errHalf:
		n, _ := f.File.WriteAt(p[:len(p)/2], offset)
		return n, syscall.ENOSPC
	case errAfter:
		n, _ := f.File.WriteAt(p, offset)
		return n, syscall.EIO
	default:
		return 0, err
	}
}

func (f *faultyFile) Truncate(size int64) error {
	return f.fs.do("truncate", f.name, func() error { return f.File.Truncate(size) })
}

func (f *faultyFile) Sync() error   { return f.fs.do("sync", f.name, f.File.Sync) }
func (f *faultyFile) Forget() error { return f.fs.do("forget", f.name, f.File.Forget) }

// quick makes retries wait for nothing.
const quick = time.Nanosecond
