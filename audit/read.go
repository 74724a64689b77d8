package audit

import (
	"context"
	"fmt"
	"io"
	"iter"
	"time"
)

// Filter chooses records. Its zero value chooses all.
type Filter struct {
	User    string
	Key     string
	Kind    Kind      // this kind and the family below it: admin finds admin.grant
	Outcome string    //
	Since   time.Time // at this time or later, by the records' clock
	Until   time.Time // before this time
	After   uint64    // sequence number; segments before it are not even read
}

func (f *Filter) chooses(e *Entry) bool {
	return e.Seq > f.After &&
		(f.User == "" || f.User == e.User) &&
		(f.Key == "" || f.Key == e.Key) &&
		(f.Kind == "" || e.Kind.in(f.Kind)) &&
		(f.Outcome == "" || f.Outcome == e.Outcome) &&
		(f.Since.IsZero() || !e.Time.Before(f.Since)) &&
		(f.Until.IsZero() || e.Time.Before(f.Until))
}

// ReadOptions says what Read gives and when it ends.
type ReadOptions struct {
	Filter Filter
	Follow bool          // wait for more records until the context ends
	Poll   time.Duration // how often to look for more; 250 ms
}

// Read gives the records of a log in their order, also while others append. A
// *Problem among them says that the chain is broken there, and reading goes on;
// any other error is the last thing that Read gives. The end of the context
// ends Read without an error.
func Read(ctx context.Context, directory string, options ReadOptions) iter.Seq2[Entry, error] {
	if options.Poll <= 0 {
		options.Poll = 250 * time.Millisecond
	}
	return func(yield func(Entry, error) bool) {
		r := &reader{ctx: ctx, directory: directory, filter: options.Filter, yield: yield}
		for r.pass() && options.Follow {
			select {
			case <-ctx.Done():
				return
			case <-time.After(options.Poll):
			}
		}
	}
}

type reader struct {
	ctx       context.Context
	directory string
	filter    Filter
	yield     func(Entry, error) bool

	begun   bool
	checker checker // its segment is the one being read
	offset  int64   // within it
}

// pass reads all that there is now. It returns false when reading is over.
func (r *reader) pass() bool {
	taken, err := takeSnapshot(r.directory)
	if err != nil {
		r.yield(Entry{}, err)
		return false
	}
	segments := taken.segments
	if !r.begun {
		segments = r.skip(segments)
	}
	for _, segment := range segments {
		if r.begun && segment.first < r.checker.segment.first {
			continue
		}
		if !r.segment(segment) {
			return false
		}
	}
	return true
}

// skip leaves out segments that hold nothing after Filter.After.
func (r *reader) skip(segments []extent) []extent {
	for len(segments) > 1 && segments[1].first <= r.filter.After+1 {
		segments = segments[1:]
	}
	if len(segments) > 0 {
		r.checker.begin(segments[0])
	}
	return segments
}

// segment reads what a segment has beyond what was read of it.
func (r *reader) segment(segment extent) bool {
	if !r.begun || segment.first != r.checker.segment.first {
		r.begun, r.offset = true, 0
		r.checker.enter(segment)
	}
	if segment.size < r.offset {
		r.yield(Entry{}, fmt.Errorf("%w: segment %s: record %d was read and is gone", ErrDamaged, segment.name, r.checker.last.Seq))
		return false
	}
	if segment.size == r.offset {
		return true
	}
	file, err := openForReading(r.directory, segment.name)
	if err != nil {
		r.yield(Entry{}, fmt.Errorf("audit: %w", err))
		return false
	}
	defer file.Close()
	lines := newLineReader(io.NewSectionReader(file, r.offset, segment.size-r.offset), r.offset)
	for r.ctx.Err() == nil {
		line, err := lines.next()
		switch {
		case err == io.EOF || err == errTorn: // what has no end is not a record yet
			return true
		case err != nil && err != errLong:
			r.yield(Entry{}, fmt.Errorf("audit: segment %s: %w", segment.name, err))
			return false
		}
		r.offset = lines.offset
		if !r.line(line, err) {
			return false
		}
	}
	return false
}

// line gives one record, and what is wrong with its place in the chain.
func (r *reader) line(line []byte, err error) bool {
	problem := r.checker.check(line, err)
	if problem != nil && !r.yield(Entry{}, problem) {
		return false
	}
	if r.checker.opaque {
		return true
	}
	entry, err := decodeEntry(line[:len(line)-1])
	if err != nil {
		return r.yield(Entry{}, r.checker.here(FaultMalformed, r.checker.last.Seq, "not a record: %v", err))
	}
	entry.Position = Position{Segment: r.checker.segment.name, Head: r.checker.last}
	entry.Line = r.checker.line
	if !r.filter.chooses(&entry) {
		return true
	}
	return r.yield(entry, nil)
}
