package audit

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"os"
)

// prepare makes sure that mark is the log's end and that file can be written to.
func (w *writer) prepare() error {
	if w.file != nil {
		same, err := w.unchanged()
		if err != nil || same {
			return err
		}
	}
	return w.load()
}

// load finds the log's end: it goes on from the last known mark, keeps whole
// lines behind it, and sets aside what is incomplete.
func (w *writer) load() error {
	w.forget()
	entries, err := w.cfg.FS.ReadDir(w.cfg.Directory)
	if err != nil {
		return err
	}
	found := newListing(entries)
	w.pending = found.pending
	known, err := w.lastKnown(found)
	if err != nil {
		return err
	}
	if known.Segment == "" {
		return w.createSegment()
	}
	end, err := w.follow(known)
	if err != nil {
		return err
	}
	if end.Segment != found.last() {
		return w.damaged("segment %s is there, but not the one that follows record %d", found.last(), end.Seq)
	}
	if end.Segment != known.Segment {
		if err := w.cfg.FS.SyncDir(w.cfg.Directory); err != nil {
			return err
		}
	}
	if err := w.advance(end); err != nil {
		return err
	}
	w.cut = false
	return nil
}

// lastKnown returns the newest mark: the file head's, or this process's own
// where that file is gone. Without any, it is the begin of the last segment, and
// nothing for a log without segments.
func (w *writer) lastKnown(found listing) (mark, error) {
	known := w.mark
	if m, ok := readMark(w.head); ok && m.Seq > known.Seq {
		known = m
	}
	if known.Segment != "" {
		if len(found.segments) == 0 {
			return mark{}, w.damaged("segment %s and all others are gone", known.Segment)
		}
		return known, nil
	}
	if len(found.segments) == 0 {
		return mark{}, nil
	}
	return w.beginOf(found.last())
}

// beginOf returns the mark before a segment's first line, as that line has it.
func (w *writer) beginOf(segment string) (mark, error) {
	file, err := w.cfg.FS.OpenFile(w.path(segment), os.O_RDONLY, 0)
	if err != nil {
		return mark{}, err
	}
	defer file.Close()
	line, err := newLineReader(io.NewSectionReader(file, 0, MaxLine), 0).next()
	if err != nil {
		return mark{}, w.damaged("segment %s, line 1: %w", segment, err)
	}
	l, err := decodeLink(line)
	if err != nil {
		return mark{}, w.damaged("segment %s, line 1: %w", segment, err)
	}
	return mark{Segment: segment, Head: Head{Seq: l.Seq - 1, Hash: *l.Prev}}, nil
}

// follow reads from a mark to the log's end over as many segments as there are,
// and leaves the last one open.
func (w *writer) follow(at mark) (mark, error) {
	for {
		file, err := w.cfg.FS.OpenFile(w.path(at.Segment), os.O_RDWR, 0)
		if errors.Is(err, os.ErrNotExist) {
			return mark{}, w.damaged("segment %s with record %d is gone", at.Segment, at.Seq)
		}
		if err != nil {
			return mark{}, err
		}
		end, followed, err := w.readTail(file, at)
		if err != nil {
			file.Close()
			return mark{}, err
		}
		if !followed {
			return end, w.use(file)
		}
		file.Close()
		at = mark{Segment: segmentName(end.Seq + 1), Head: end.Head}
	}
}

// readTail returns the end of the segment's whole lines. Another segment follows
// it, or nothing does any more.
func (w *writer) readTail(file File, at mark) (end mark, followed bool, err error) {
	size, err := w.cleanTail(file, at)
	if err != nil {
		return mark{}, false, err
	}
	if err := w.checkMark(file, at, size); err != nil {
		return mark{}, false, err
	}
	found, err := scan(io.NewSectionReader(file, at.Offset, size-at.Offset), at)
	if err != nil {
		return mark{}, false, err
	}
	if found.end.Offset == 0 { // segments appear with their first line
		return mark{}, false, w.damaged("segment %s, line 1: not the one that follows record %d", at.Segment, at.Seq)
	}
	followed, err = w.exists(segmentName(found.end.Seq + 1))
	if err != nil || found.end.Offset == size {
		return found.end, followed, err
	}
	if followed || found.acknowledged {
		return mark{}, false, w.damaged("segment %s: record %d is changed", at.Segment, found.end.Seq+1)
	}
	return found.end, false, w.setAside(file, found.end, size)
}

// cleanTail makes reading show what is on disk, and returns the segment's size.
func (w *writer) cleanTail(file File, at mark) (int64, error) {
	info, err := file.Stat()
	if err != nil || info.Size() == at.Offset && !w.cut {
		return at.Offset, err
	}
	size := info.Size()
	if w.cut && at == w.mark && size > at.Offset {
		followed, err := w.exists(segmentName(at.Seq + 1))
		if err != nil {
			return 0, err
		}
		if !followed { // they are ours, and everybody was told that they are not kept
			if err := file.Truncate(at.Offset); err != nil {
				return 0, err
			}
			size = at.Offset
		}
	}
	if err := file.Sync(); err != nil {
		return 0, err
	}
	return size, file.Forget()
}

// checkMark makes sure that the line before a mark is the one that the mark means.
func (w *writer) checkMark(file File, at mark, size int64) error {
	if size < at.Offset {
		return w.damaged("segment %s has %d bytes and had %d: records up to %d are gone", at.Segment, size, at.Offset, at.Seq)
	}
	if at.Offset == 0 {
		return nil
	}
	for _, length := range []int64{8 << 10, MaxLine + 1} {
		length = min(length, at.Offset)
		buffer := make([]byte, length)
		if _, err := file.ReadAt(buffer, at.Offset-length); err != nil {
			return err
		}
		begin := bytes.LastIndexByte(buffer[:length-1], '\n') + 1
		if sha256.Sum256(buffer[begin:]) == at.Hash {
			return nil
		}
	}
	return w.damaged("segment %s: record %d is changed", at.Segment, at.Seq)
}

// tail is what scan found.
type tail struct {
	end          mark // behind the last whole line that fits the chain
	acknowledged bool // a record behind it shows that what is there was durable once
}

// scan reads lines from a mark on until one does not fit.
func scan(r io.Reader, at mark) (tail, error) {
	lines := newLineReader(r, at.Offset)
	for {
		line, err := lines.next()
		if err == io.EOF {
			return tail{end: at}, nil
		}
		if err != nil && err != errLong && err != errTorn {
			return tail{}, err
		}
		l, ok := follows(at.Head, line, err)
		if !ok {
			acknowledged, err := isAcknowledged(lines, at.Seq+1, l)
			return tail{end: at, acknowledged: acknowledged}, err
		}
		at.Offset, at.Head = lines.offset, Head{Seq: l.Seq, Hash: sha256.Sum256(line)}
	}
}

// follows says whether a line is the next one in the chain.
func follows(head Head, line []byte, err error) (link, bool) {
	if err != nil {
		return link{}, false
	}
	l, err := decodeLink(line)
	return l, err == nil && l.Seq == head.Seq+1 && *l.Prev == head.Hash
}

// isAcknowledged looks for a record whose batch began after seq: a batch begins
// when the one before is durable, so that seq was.
func isAcknowledged(lines *lineReader, seq uint64, l link) (bool, error) {
	for {
		if l.Batch > seq {
			return true, nil
		}
		line, err := lines.next()
		switch err {
		case nil:
			l, _ = decodeLink(line)
		case errLong, errTorn:
			l = link{}
		case io.EOF:
			return false, nil
		default:
			return false, err
		}
	}
}
