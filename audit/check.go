package audit

import (
	"crypto/sha256"
	"fmt"
)

// Fault is the way in which a log is not what it was.
type Fault string

// What Verify finds.
const (
	FaultChanged   Fault = "changed"   // a record is not the one whose hash the next one keeps
	FaultMalformed Fault = "malformed" // a line is not a record
	FaultMissing   Fault = "missing"   // sequence numbers are left out
	FaultOrder     Fault = "order"     // a record stands behind one that came later, or stands there twice
	FaultSegment   Fault = "segment"   // a segment does not begin as its name says
	FaultTorn      Fault = "torn"      // bytes without a newline at a segment's end
	FaultTruncated Fault = "truncated" // the log ends before a head that was kept
	FaultReplaced  Fault = "replaced"  // the chain does not lead through a head that was kept
)

// Problem is one thing wrong with a log, and where. As an error it wraps ErrDamaged.
type Problem struct {
	Fault   Fault  `json:"fault"`
	Segment string `json:"segment,omitempty"`
	Line    int    `json:"line,omitempty"` // from 1, in the segment
	Seq     uint64 `json:"seq"`            // of the record, or the first of several
	Text    string `json:"text"`           // what is wrong, for people
}

// Error says what is wrong and where.
func (p *Problem) Error() string {
	if p.Segment == "" {
		return fmt.Sprintf("audit: record %d: %s", p.Seq, p.Text)
	}
	return fmt.Sprintf("audit: segment %s, line %d, record %d: %s", p.Segment, p.Line, p.Seq, p.Text)
}

// Unwrap returns ErrDamaged.
func (p *Problem) Unwrap() error { return ErrDamaged }

// checker holds each line against the one before.
type checker struct {
	segment extent
	line    int  // number of the last line
	last    Head // of the last line
	at      Problem
	opaque  bool // the last line's hash is not known
}

// begin starts with the first segment of what there is.
func (c *checker) begin(first extent) {
	c.last = Head{Seq: first.first - 1}
	c.opaque = first.first != 1
}

// enter goes on with the first line of a segment.
func (c *checker) enter(segment extent) {
	c.segment, c.line = segment, 0
}

// here begins the description of a problem with the present line.
func (c *checker) here(fault Fault, seq uint64, format string, args ...any) *Problem {
	return &Problem{Fault: fault, Segment: c.segment.name, Line: c.line, Seq: seq, Text: fmt.Sprintf(format, args...)}
}

// check takes what lineReader.next returned, io.EOF excepted.
func (c *checker) check(line []byte, err error) *Problem {
	c.line++
	var l link
	if err == nil {
		l, err = decodeLink(line)
	}
	if err != nil {
		problem := c.unreadable(err)
		c.last, c.opaque = Head{Seq: c.last.Seq + 1}, true
		return problem
	}
	problem := c.compare(l)
	c.last, c.opaque = Head{Seq: l.Seq, Hash: sha256.Sum256(line)}, false
	c.at = *c.here("", l.Seq, "")
	return problem
}

func (c *checker) unreadable(err error) *Problem {
	if err == errTorn {
		return c.here(FaultTorn, c.last.Seq+1, "the last line has no end: a crash left it (the next start sets it aside), or something cut it")
	}
	return c.here(FaultMalformed, c.last.Seq+1, "not a record: %v", err)
}

func (c *checker) compare(l link) *Problem {
	next := c.last.Seq + 1
	switch {
	case l.Seq < next:
		return c.here(FaultOrder, l.Seq, "stands behind record %d", c.last.Seq)
	case l.Seq > next:
		return c.here(FaultMissing, next, "records %d to %d are missing before record %d", next, l.Seq-1, l.Seq)
	case c.line == 1 && (l.Seq != c.segment.first || l.Kind != KindSegment):
		return c.here(FaultSegment, l.Seq, "the segment does not begin with record %d as its name says", c.segment.first)
	case !c.opaque && *l.Prev != c.last.Hash && l.Seq == 1:
		return c.here(FaultChanged, 1, "the first record names one before it")
	case !c.opaque && *l.Prev != c.last.Hash:
		changed := c.at
		changed.Fault, changed.Text = FaultChanged, fmt.Sprintf("its hash is not the one that record %d keeps of it: one of the two is changed", l.Seq)
		return &changed
	}
	return nil
}
