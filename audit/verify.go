package audit

import (
	"context"
	"fmt"
	"io"
)

// maxProblems bounds a report on a log that is not one at all.
const maxProblems = 1000

// VerifyOptions says what Verify can hold the log against.
type VerifyOptions struct {
	Expect   *Head // a head that was kept elsewhere: the chain must lead through it
	Archived bool  // older segments were moved away: the log may begin later than with record 1
}

// Report is what Verify found.
type Report struct {
	Segments int       `json:"segments"`
	Lines    uint64    `json:"lines"`
	First    uint64    `json:"first"` // sequence number that the first segment's name says
	Last     Head      `json:"last"`  // to be kept elsewhere, if nothing is wrong
	Problems []Problem `json:"problems"`
	More     int       `json:"more"` // problems beyond the first 1000
}

// OK says that nothing is wrong.
func (r *Report) OK() bool { return len(r.Problems) == 0 }

// Verify reads a whole log and checks the chain. It finds whatever the chain can
// show, tells where, and goes on behind it; the package's documentation says
// what only a head kept elsewhere shows. Others may append meanwhile: what they
// add is not looked at. The error says that the log could not be read.
func Verify(ctx context.Context, directory string, options VerifyOptions) (Report, error) {
	taken, err := takeSnapshot(directory)
	if err != nil {
		return Report{}, err
	}
	v := &verification{ctx: ctx, directory: directory, report: Report{Problems: []Problem{}}}
	if options.Expect != nil {
		v.expected = append(v.expected, expectation{Head: *options.Expect, source: "the head that was kept"})
	}
	if taken.marked.Seq != 0 {
		v.expected = append(v.expected, expectation{Head: taken.marked.Head, source: "the file head"})
	}
	if err := v.run(taken.segments, options.Archived); err != nil {
		return Report{}, err
	}
	return v.report, nil
}

type expectation struct {
	Head
	source string
	met    bool
}

type verification struct {
	ctx       context.Context
	directory string
	checker   checker
	expected  []expectation
	report    Report
}

func (v *verification) run(segments []extent, archived bool) error {
	if len(segments) > 0 {
		first := segments[0].first
		v.report.First = first
		v.checker.begin(segments[0])
		if first != 1 && !archived {
			v.add(&Problem{Fault: FaultMissing, Segment: segments[0].name, Line: 1, Seq: 1, Text: fmt.Sprintf("records 1 to %d are missing", first-1)})
		}
	}
	for _, segment := range segments {
		if err := v.segment(segment); err != nil {
			return err
		}
	}
	v.report.Segments, v.report.Last = len(segments), v.checker.last
	v.end()
	return nil
}

func (v *verification) segment(segment extent) error {
	file, err := openForReading(v.directory, segment.name)
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	defer file.Close()
	v.checker.enter(segment)
	if err := v.lines(io.NewSectionReader(file, 0, segment.size)); err != nil {
		return fmt.Errorf("audit: segment %s: %w", segment.name, err)
	}
	return nil
}

// lines checks what a segment holds.
func (v *verification) lines(r io.Reader) error {
	lines := newLineReader(r, 0)
	for v.ctx.Err() == nil {
		line, err := lines.next()
		if err == io.EOF {
			return nil
		}
		if err != nil && err != errLong && err != errTorn {
			return err
		}
		v.report.Lines++
		v.add(v.checker.check(line, err))
		v.meet()
	}
	return context.Cause(v.ctx)
}

// meet holds the present line against the expected heads.
func (v *verification) meet() {
	for i := range v.expected {
		e := &v.expected[i]
		if v.checker.opaque || e.Seq != v.checker.last.Seq || e.met {
			continue
		}
		e.met = true
		if e.Hash != v.checker.last.Hash {
			v.add(v.checker.here(FaultReplaced, e.Seq, "not the record that %s names", e.source))
		}
	}
}

// end looks for expected heads that the log has not come to.
func (v *verification) end() {
	for _, e := range v.expected {
		switch {
		case e.met:
		case e.Seq > v.checker.last.Seq:
			v.add(&Problem{Fault: FaultTruncated, Seq: v.checker.last.Seq + 1, Text: fmt.Sprintf("the log ends with record %d, and %s names record %d", v.checker.last.Seq, e.source, e.Seq)})
		default:
			v.add(&Problem{Fault: FaultReplaced, Seq: e.Seq, Text: "the record that " + e.source + " names is not there"})
		}
	}
}

func (v *verification) add(problem *Problem) {
	switch {
	case problem == nil:
	case len(v.report.Problems) < maxProblems:
		v.report.Problems = append(v.report.Problems, *problem)
	default:
		v.report.More++
	}
}
