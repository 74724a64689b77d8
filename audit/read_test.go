package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

func TestReadChooses(t *testing.T) {
	noon := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	records := []Record{
		{Time: noon, Kind: KindSign, User: "alice", Key: "release", Outcome: OutcomeOK},
		{Time: noon.Add(time.Hour), Kind: KindRefused, User: "bob", Key: "release", Outcome: "no_such_key"},
		{Time: noon.Add(-time.Hour), Kind: KindUnlockFailed, User: "alice", Key: "testing", Outcome: "wrong_passphrase"},
		{Time: noon, Kind: Admin("grant"), User: "carol", Key: "release", Outcome: OutcomeOK},
		{Time: noon, Kind: "administrator", User: "carol", Outcome: OutcomeOK},
	}
	dir := directory(t)
	l := open(t, Config{Directory: dir, Clock: func() time.Time { return noon }})
	var base uint64
	for i, r := range records {
		if position := mustAppend(t, l, r); i == 0 {
			base = position.Seq
		}
	}
	cases := []struct {
		name   string
		filter Filter
		want   []int
	}{
		{"all", Filter{After: base - 1}, []int{0, 1, 2, 3, 4}},
		{"user", Filter{User: "alice"}, []int{0, 2}},
		{"key", Filter{Key: "release"}, []int{0, 1, 3}},
		{"kind", Filter{Kind: KindRefused}, []int{1}},
		{"family", Filter{Kind: KindAdmin}, []int{3}},
		{"member", Filter{Kind: Admin("grant")}, []int{3}},
		{"outcome", Filter{Outcome: "wrong_passphrase"}, []int{2}},
		{"since", Filter{Since: noon, User: "bob"}, []int{1}},
		{"until", Filter{Until: noon}, []int{2}},
		{"after", Filter{After: base + 2}, []int{3, 4}},
		{"all at once", Filter{User: "alice", Key: "release", Kind: KindSign, Outcome: OutcomeOK, Since: noon, Until: noon.Add(1)}, []int{0}},
		{"nothing", Filter{User: "mallory"}, nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var got []int
			for _, e := range entries(t, dir, c.filter) {
				got = append(got, int(e.Seq-base))
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestReadSkipsWholeSegments(t *testing.T) {
	dir := directory(t)
	logOf(t, dir)
	rewrite(t, dir, segmentName(1), func([][]byte) [][]byte { return [][]byte{[]byte("not read\n")} })
	if found := entries(t, dir, Filter{After: 7}); len(found) != 8 || found[0].Seq != 8 || found[0].Line != 3 {
		t.Errorf("read %d records", len(found))
	}
}

func TestReadGoesOnBehindAProblem(t *testing.T) {
	dir := directory(t)
	logOf(t, dir)
	rewrite(t, dir, segmentName(6), func(lines [][]byte) [][]byte { lines[2] = []byte("#\n"); return lines })
	rewrite(t, dir, segmentName(11), func(lines [][]byte) [][]byte {
		lines[1] = bytes.Replace(lines[1], []byte(`"user":"`), []byte(`"user":7,"x":"`), 1)
		return lines
	})
	var seqs, problems []uint64
	for e, err := range Read(t.Context(), dir, ReadOptions{}) {
		var problem *Problem
		switch {
		case errors.As(err, &problem):
			problems = append(problems, problem.Seq)
		case err != nil:
			t.Fatal(err)
		default:
			seqs = append(seqs, e.Seq)
		}
	}
	if want := []uint64{1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 13, 14, 15}; !slices.Equal(seqs, want) {
		t.Errorf("read %v, want %v", seqs, want)
	}
	if want := []uint64{8, 12, 12}; !slices.Equal(problems, want) {
		t.Errorf("problems at %v, want %v", problems, want)
	}
}

func TestReadEndsWhenItsLoopDoes(t *testing.T) {
	dir := directory(t)
	logOf(t, dir)
	for e := range Read(t.Context(), dir, ReadOptions{Follow: true}) {
		if e.Seq == 8 {
			break
		}
	}
	for range Read(t.Context(), filepath.Join(dir, "absent"), ReadOptions{Follow: true}) {
		break
	}
}

func TestReadOfATornEnd(t *testing.T) {
	dir := directory(t)
	logOf(t, dir)
	rewrite(t, dir, segmentName(11), func(lines [][]byte) [][]byte { lines[4] = lines[4][:50]; return lines })
	if found := entries(t, dir, Filter{}); len(found) != 14 {
		t.Errorf("read %d records, want those 14 that are whole", len(found))
	}
}

// A reader that follows sees each record once, in order, over rotations.
func TestReadFollows(t *testing.T) {
	dir := directory(t)
	l := open(t, Config{Directory: dir, SegmentBytes: 2000})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	const count = 50
	go func() {
		for i := range count {
			if _, err := l.Append(ctx, sign(fmt.Sprint(i))); err != nil {
				t.Error(err)
			}
			time.Sleep(time.Millisecond)
		}
	}()
	next := 0
	for e, err := range Read(ctx, dir, ReadOptions{Filter: Filter{Kind: KindSign}, Follow: true, Poll: 5 * time.Millisecond}) {
		if err != nil {
			t.Fatal(err)
		}
		if e.User != fmt.Sprint(next) {
			t.Fatalf("got the record of %s, want that of %d", e.User, next)
		}
		if next++; next == count {
			cancel()
		}
	}
	if next != count {
		t.Errorf("%d of %d records were seen", next, count)
	}
}

func TestReadFollowsALogThatIsCut(t *testing.T) {
	dir := directory(t)
	logOf(t, dir)
	var last error
	for e, err := range Read(t.Context(), dir, ReadOptions{Follow: true, Poll: quick}) {
		if last = err; e.Seq == 15 {
			if err := os.Truncate(filepath.Join(dir, e.Segment), 10); err != nil {
				t.Fatal(err)
			}
		}
	}
	if !errors.Is(last, ErrDamaged) {
		t.Errorf("ended with %v, want ErrDamaged", last)
	}
}
