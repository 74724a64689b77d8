package audit

import (
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// FS is what the log asks of a file system. Tests put one that fails in its place.
type FS interface {
	OpenFile(name string, flag int, perm fs.FileMode) (File, error)
	Stat(name string) (fs.FileInfo, error)
	ReadDir(name string) ([]fs.DirEntry, error)
	Rename(from, to string) error
	// SyncDir makes the names within a directory durable.
	SyncDir(name string) error
}

// File is an open file of an FS.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Stat() (fs.FileInfo, error)
	Truncate(size int64) error
	// Sync makes data and length durable, as fdatasync does.
	Sync() error
	// Forget asks the system to drop what it caches of the file, so that reading shows what is on disk.
	Forget() error
}

// disk is the real file system.
type disk struct{}

type diskFile struct{ *os.File }

func (disk) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	f, err := openFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return diskFile{f}, nil
}

// openFile opens a file of the log. Nobody else should be able to plant a link
// or a FIFO in its place; if somebody did, it must not lead or block us.
func openFile(name string, flag int, perm fs.FileMode) (*os.File, error) {
	f, err := os.OpenFile(name, flag|unix.O_NOFOLLOW|unix.O_NONBLOCK, perm)
	if err != nil || flag&os.O_CREATE == 0 {
		return f, err
	}
	if err := giveToOwner(f, filepath.Dir(name)); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// giveToOwner gives a file to its directory's owner where root made it: the
// daemon, which is somebody else, has to write to what an operator's command began.
func giveToOwner(f *os.File, directory string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	info, err := os.Stat(directory)
	if err != nil {
		return err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok || owner.Uid == 0 {
		return nil
	}
	return f.Chown(int(owner.Uid), int(owner.Gid))
}

func (disk) Stat(name string) (fs.FileInfo, error)      { return os.Lstat(name) }
func (disk) ReadDir(name string) ([]fs.DirEntry, error) { return os.ReadDir(name) }
func (disk) Rename(from, to string) error               { return os.Rename(from, to) }

func (disk) SyncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func (f diskFile) Sync() error   { return syncData(f.File) }
func (f diskFile) Forget() error { return dropCache(f.File) }
