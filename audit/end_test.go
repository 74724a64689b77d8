package audit

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestTheEndIsThatOfTheLastSegment(t *testing.T) {
	dir := directory(t)
	l := open(t, Config{Directory: dir, SegmentBytes: 2000, UnsafeNoSync: true})
	for range 20 {
		p := mustAppend(t, l, sign("alice"))
		if end, err := End(t.Context(), dir); err != nil || end != p.Head {
			t.Fatalf("the end is %v (%v), want %v", end, err, p.Head)
		}
	}
	report := verify(t, dir, VerifyOptions{})
	if report.Segments < 3 || !report.OK() {
		t.Errorf("report %+v", report)
	}
	segments, err := filepath.Glob(filepath.Join(dir, "audit-*.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(segments[len(segments)-1], []byte("not a record\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := End(t.Context(), dir); !errors.Is(err, ErrDamaged) {
		t.Errorf("of a damaged segment: %v", err)
	}
	if end, err := End(t.Context(), t.TempDir()); err != nil || end.Seq != 0 {
		t.Errorf("of an empty directory: %v, %v", end, err)
	}
}
