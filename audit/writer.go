package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// writer brings batches to disk. Only one goroutine uses it.
type writer struct {
	cfg  Config
	lock *dirLock
	head File // the file head

	mark    mark        // up to where this process knows the log to be durable
	file    File        // mark's segment, nil where its state must be looked at anew
	opened  fs.FileInfo // of file
	cut     bool        // bytes of ours may stand behind mark that nobody got acknowledged
	pending []string    // torn-… files that the next batch has to name
	outage  *outage     // nil while all is well
}

// outage is the time in which nothing could be written.
type outage struct {
	since   time.Time // as Config.Clock has it
	tried   time.Time
	cause   error
	refused int
}

func newWriter(cfg Config) (*writer, error) {
	if err := makeDirectory(cfg); err != nil {
		return nil, fmt.Errorf("audit: directory %q: %w", cfg.Directory, err)
	}
	lock, err := openLock(cfg.Directory, os.O_RDWR|os.O_CREATE)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	head, err := cfg.FS.OpenFile(filepath.Join(cfg.Directory, headName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		lock.close()
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return &writer{cfg: cfg, lock: lock, head: head}, nil
}

// makeDirectory makes the directory, or refuses one that others can write to.
func makeDirectory(cfg Config) error {
	err := os.Mkdir(cfg.Directory, 0o700)
	if err == nil {
		return cfg.FS.SyncDir(filepath.Dir(cfg.Directory))
	}
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := os.Stat(cfg.Directory)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return errors.New("not a directory")
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("others may write to it (mode %04o): chmod 0700 it, after a look at what is in it", info.Mode().Perm())
	}
	return nil
}

func (w *writer) close() {
	w.forget()
	w.head.Close()
	w.lock.close()
}

// forget makes the next batch look at the log's state anew.
func (w *writer) forget() {
	if w.file != nil {
		w.file.Close() // nothing is lost: what counts was synced
		w.file = nil
	}
}

// start prepares the log and names what a crash left behind.
func (w *writer) start() error {
	_, err := w.commit(func() []*pending { return nil })
	return err
}

// commit makes everybody durable who waits. It calls take exactly once, as late
// as it can, and returns whom it took.
func (w *writer) commit(take func() []*pending) ([]*pending, error) {
	if w.outage != nil && time.Since(w.outage.tried) < w.cfg.RetryDelay {
		batch := take()
		w.outage.refused += countOf(batch)
		return batch, w.outage.cause
	}
	err := w.lock.acquire(w.cfg.LockTimeout)
	if err == nil {
		defer w.lock.release()
		err = w.prepare()
	}
	batch := take()
	if err == nil {
		err = w.append(batch)
	}
	if err != nil {
		return batch, w.fail(err, countOf(batch))
	}
	w.outage = nil
	return batch, nil
}

// fail notes that nothing can be written.
func (w *writer) fail(err error, refused int) error {
	w.forget()
	if !errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrDamaged) {
		err = fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if w.outage == nil {
		w.outage = &outage{since: w.cfg.Clock()}
	}
	w.outage.tried, w.outage.cause = time.Now(), err
	w.outage.refused += refused
	return err
}

// append writes what the log itself has to say and then the batch.
func (w *writer) append(batch []*pending) error {
	bodies, err := w.ownRecords()
	if err != nil {
		return err
	}
	own := len(bodies)
	for _, p := range batch {
		bodies = append(bodies, p.bodies...)
	}
	if len(bodies) == 0 {
		return nil
	}
	heads, err := w.write(bodies)
	if err != nil {
		return err
	}
	last := own - 1
	for _, p := range batch {
		last += len(p.bodies)
		p.position = Position{Segment: w.mark.Segment, Head: heads[last]}
	}
	w.settlePending()
	return nil
}

// write chains the records, writes them and waits until they are durable.
func (w *writer) write(bodies [][]byte) ([]Head, error) {
	if err := w.rotateFor(bodies); err != nil {
		return nil, err
	}
	lines := make([]byte, 0, lengthOf(bodies))
	heads := make([]Head, 0, len(bodies))
	head := w.mark.Head
	for _, body := range bodies {
		lines, head = appendLine(lines, head, w.mark.Seq+1, body)
		heads = append(heads, head)
	}
	if err := w.writeDurably(lines); err != nil {
		w.undo()
		return nil, err
	}
	return heads, w.advance(mark{Segment: w.mark.Segment, Offset: w.mark.Offset + int64(len(lines)), Head: head})
}

func (w *writer) writeDurably(lines []byte) error {
	if err := writeWhole(w.file, lines, w.mark.Offset); err != nil {
		return err
	}
	return w.file.Sync()
}

// undo takes back what a failed write may have left, so that no other process
// takes it for acknowledged. Where it fails too, the next try does it first.
func (w *writer) undo() {
	w.cut = true
	if w.file.Truncate(w.mark.Offset) == nil {
		_ = w.file.Sync() // the next try syncs again and reads back
	}
}

// advance says that the log is durable up to here.
func (w *writer) advance(to mark) error {
	if err := writeMark(w.head, to); err != nil {
		return err
	}
	w.mark = to
	return nil
}

func lengthOf(bodies [][]byte) int {
	length := 0
	for _, body := range bodies {
		length += len(body) + prefixCapacity
	}
	return length
}

// ownRecords encodes what the log has to say of itself.
func (w *writer) ownRecords() ([][]byte, error) {
	records, err := w.tornRecords()
	if err != nil {
		return nil, err
	}
	if w.outage != nil {
		records = append(records, w.outage.record())
	}
	bodies := make([][]byte, 0, len(records))
	for _, r := range records {
		r.stamp(w.cfg.Clock(), w.cfg.Process)
		body, err := encodeBody(r)
		if err != nil {
			return nil, err
		}
		bodies = append(bodies, body)
	}
	return bodies, nil
}

func (o *outage) record() Record {
	return Record{Kind: KindRecovered, Outcome: OutcomeOK, Details: map[string]string{
		"reason":  "outage",
		"since":   o.since.UTC().Format(time.RFC3339Nano),
		"error":   o.cause.Error(),
		"refused": fmt.Sprint(o.refused),
	}}
}
