package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// rotateFor begins a new segment where the records would make the present one too large.
func (w *writer) rotateFor(bodies [][]byte) error {
	first, _ := parseSegmentName(w.mark.Segment)
	if w.mark.Seq == first || w.mark.Offset+int64(lengthOf(bodies)) <= w.cfg.SegmentBytes {
		return nil // one that holds only its first line is never followed by another
	}
	return w.createSegment()
}

// createSegment begins the segment that follows mark, or the first one of all.
// It appears under its name when its first line is durable.
func (w *writer) createSegment() error {
	header := Record{Kind: KindSegment, Outcome: OutcomeOK}
	if w.mark.Segment != "" {
		header.Details = map[string]string{"predecessor": w.mark.Segment}
	}
	header.stamp(w.cfg.Clock(), w.cfg.Process)
	body, err := encodeBody(header)
	if err != nil {
		return err
	}
	line, head := appendLine(nil, w.mark.Head, w.mark.Seq+1, body)
	name := segmentName(head.Seq)
	file, err := w.publishSegment(name, line)
	if err != nil {
		return err
	}
	w.forget()
	if err := w.use(file); err != nil {
		return err
	}
	return w.advance(mark{Segment: name, Offset: int64(len(line)), Head: head})
}

func (w *writer) publishSegment(name string, line []byte) (File, error) {
	file, err := w.cfg.FS.OpenFile(w.path(newSegmentName), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	if err := w.fillSegment(file, name, line); err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

func (w *writer) fillSegment(file File, name string, line []byte) error {
	if err := writeWhole(file, line, 0); err != nil {
		return err
	}
	if err := file.Sync(); err != nil {
		return err
	}
	if err := w.cfg.FS.Rename(w.path(newSegmentName), w.path(name)); err != nil {
		return err
	}
	return w.cfg.FS.SyncDir(w.cfg.Directory)
}

// use makes an open file the one that is written to, and closes it where that fails.
func (w *writer) use(file File) error {
	info, err := file.Stat()
	if err != nil {
		file.Close()
		return err
	}
	w.file, w.opened = file, info
	return nil
}

// unchanged says whether the log still ends where this process left it: bytes
// before mark never change, so that length and successor tell everything.
func (w *writer) unchanged() (bool, error) {
	info, err := w.cfg.FS.Stat(w.path(w.mark.Segment))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if info.Size() != w.mark.Offset || !os.SameFile(info, w.opened) {
		return false, nil
	}
	followed, err := w.exists(segmentName(w.mark.Seq + 1))
	return !followed, err
}

func (w *writer) exists(name string) (bool, error) {
	_, err := w.cfg.FS.Stat(w.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func (w *writer) path(name string) string { return filepath.Join(w.cfg.Directory, name) }

func (w *writer) damaged(format string, args ...any) error {
	return fmt.Errorf("%w: "+format+`; verify the log to see all that is wrong, then restore the file from a backup, or move %q away to begin a new log`,
		append(append([]any{ErrDamaged}, args...), w.cfg.Directory)...)
}
