package audit

import (
	"fmt"
	"io/fs"
	"strconv"
	"strings"
)

// Names within the log's directory.
const (
	turnName       = "turn"
	headName       = "head"
	newSegmentName = ".new-segment"

	segmentPrefix = "audit-"
	segmentSuffix = ".jsonl"
	tornPrefix    = "torn-"
	pendingSuffix = ".pending" // of a torn-… file that no record names yet
)

// segmentName names the segment whose first line has this sequence number.
func segmentName(first uint64) string {
	return fmt.Sprintf("%s%020d%s", segmentPrefix, first, segmentSuffix)
}

// parseSegmentName returns the first sequence number, or false for another file's name.
func parseSegmentName(name string) (uint64, bool) {
	digits, ok := strings.CutPrefix(name, segmentPrefix)
	if !ok {
		return 0, false
	}
	first, err := strconv.ParseUint(strings.TrimSuffix(digits, segmentSuffix), 10, 64)
	return first, err == nil && name == segmentName(first)
}

// tornName names the file that keeps the bytes cut off where seq would have been.
func tornName(seq uint64, content Hash) string {
	return fmt.Sprintf("%s%020d-%s", tornPrefix, seq, content)
}

// listing is what of a directory concerns the log, in order.
type listing struct {
	segments []string
	pending  []string // torn-… files that no record names yet
}

func newListing(entries []fs.DirEntry) listing {
	var found listing
	for _, entry := range entries { // ReadDir sorts, and the numbers have leading zeros
		name := entry.Name()
		if _, ok := parseSegmentName(name); ok {
			found.segments = append(found.segments, name)
		}
		if strings.HasPrefix(name, tornPrefix) && strings.HasSuffix(name, pendingSuffix) {
			found.pending = append(found.pending, name)
		}
	}
	return found
}

func (l listing) last() string { return l.segments[len(l.segments)-1] }
