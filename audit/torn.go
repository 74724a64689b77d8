package audit

import (
	"crypto/sha256"
	"io"
	"os"
	"strconv"
	"strings"
)

// setAside moves what stands behind a segment's last whole line to a file of its
// own, which the next batch names. Killed at any point, it is done again.
func (w *writer) setAside(file File, end mark, size int64) error {
	hash := sha256.New()
	if _, err := io.Copy(hash, io.NewSectionReader(file, end.Offset, size-end.Offset)); err != nil {
		return err
	}
	name := tornName(end.Seq+1, Hash(hash.Sum(nil))) + pendingSuffix
	if err := w.copyTorn(name, io.NewSectionReader(file, end.Offset, size-end.Offset)); err != nil {
		return err
	}
	if err := file.Truncate(end.Offset); err != nil {
		return err
	}
	if err := file.Sync(); err != nil {
		return err
	}
	for _, known := range w.pending {
		if known == name {
			return nil
		}
	}
	w.pending = append(w.pending, name)
	return nil
}

func (w *writer) copyTorn(name string, r io.Reader) error {
	file, err := w.cfg.FS.OpenFile(w.path(name), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := io.Copy(io.NewOffsetWriter(file, 0), r); err != nil {
		return err
	}
	if err := file.Sync(); err != nil {
		return err
	}
	return w.cfg.FS.SyncDir(w.cfg.Directory)
}

// tornRecords says which files hold what was cut off.
func (w *writer) tornRecords() ([]Record, error) {
	var records []Record
	for _, name := range w.pending {
		info, err := w.cfg.FS.Stat(w.path(name))
		if err != nil {
			return nil, err
		}
		records = append(records, Record{Kind: KindRecovered, Outcome: OutcomeOK, Details: map[string]string{
			"reason": "torn",
			"file":   strings.TrimSuffix(name, pendingSuffix),
			"bytes":  strconv.FormatInt(info.Size(), 10),
		}})
	}
	return records, nil
}

// settlePending gives the files that a record names now the names it says.
func (w *writer) settlePending() {
	for _, name := range w.pending {
		// Where this fails the file keeps its name, and the next start names it once more.
		_ = w.cfg.FS.Rename(w.path(name), w.path(strings.TrimSuffix(name, pendingSuffix)))
	}
	w.pending = nil
}
