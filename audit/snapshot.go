package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// snapshotTimeout is how long a reader waits for writers.
const snapshotTimeout = 5 * time.Second

// snapshot is a log at a moment at which nobody was writing.
type snapshot struct {
	segments []extent
	marked   mark // what the file head says; its Seq is 0 where that says nothing
}

// extent is how much of a segment there is to read.
type extent struct {
	name  string
	first uint64 // sequence number, by its name
	size  int64
}

// takeSnapshot looks at a log between two batches.
func takeSnapshot(directory string) (snapshot, error) {
	lock, err := openLock(directory, os.O_RDONLY)
	if err != nil {
		return snapshot{}, fmt.Errorf("audit: %w", err)
	}
	defer lock.close()
	if err := lock.acquire(snapshotTimeout); err != nil {
		return snapshot{}, err
	}
	defer lock.release()
	taken, err := readDirectory(directory)
	if err != nil {
		return snapshot{}, fmt.Errorf("audit: directory %q: %w", directory, err)
	}
	return taken, nil
}

func readDirectory(directory string) (snapshot, error) {
	entries, err := os.ReadDir(directory)
	if err != nil {
		return snapshot{}, err
	}
	var taken snapshot
	for _, name := range newListing(entries).segments {
		info, err := os.Lstat(filepath.Join(directory, name))
		if err != nil {
			return snapshot{}, err
		}
		first, _ := parseSegmentName(name)
		taken.segments = append(taken.segments, extent{name: name, first: first, size: info.Size()})
	}
	head, err := openForReading(directory, headName)
	if errors.Is(err, fs.ErrNotExist) {
		return taken, nil
	}
	if err != nil {
		return snapshot{}, err
	}
	defer head.Close()
	if m, ok := readMark(head); ok {
		taken.marked = m
	}
	return taken, nil
}

func openForReading(directory, name string) (*os.File, error) {
	return openFile(filepath.Join(directory, name), os.O_RDONLY, 0)
}
