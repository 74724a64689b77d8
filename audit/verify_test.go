package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// logOf makes a log of several segments with twelve records, and returns its head.
func logOf(t testing.TB, dir string) Head { return logBy(t, dir, "p[1]") }

func logBy(t testing.TB, dir, process string) Head {
	t.Helper()
	noon := time.Date(2026, 11, 23, 12, 0, 0, 1, time.UTC)
	l, err := Open(Config{Directory: dir, SegmentBytes: 2800, Process: process, Clock: func() time.Time { return noon }})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for i := range 12 {
		mustAppend(t, l, sign(fmt.Sprintf("user%d", i)))
	}
	return l.Head()
}

func segmentsOf(t testing.TB, dir string) []string {
	t.Helper()
	taken, err := takeSnapshot(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, segment := range taken.segments {
		names = append(names, segment.name)
	}
	return names
}

// rewrite changes a file of the log.
func rewrite(t testing.TB, dir, name string, change func(lines [][]byte) [][]byte) {
	t.Helper()
	path := filepath.Join(dir, name)
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(content, []byte("\n"))
	if err := os.WriteFile(path, bytes.Join(change(lines[:len(lines)-1]), nil), 0o600); err != nil {
		t.Fatal(err)
	}
}

func remove(t testing.TB, dir, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

// A byte that changes in any field of any record is found, next to where it is.
func TestVerifyFindsEachChangedField(t *testing.T) {
	fields := []string{`"seq":`, `"prev":"`, `"time":"`, `"process":"`, `"kind":"`, `"user":"`, `"key":"`, `"handle":"`, `"scheme":"`, `"hash":"`, `"digests":["`,
		`"session":"`, `"request":`, `"address":"`, `"serial":"`, `"fingerprint":"`, `"outcome":"`, `"idempotency_key":"`, `"note":"`, "\n"}
	master := directory(t)
	head := logOf(t, master)
	for _, field := range fields {
		for _, segment := range segmentsOf(t, master)[1:3] {
			for _, line := range []int{2, 3} {
				t.Run(fmt.Sprintf("%s %s %d", strings.Trim(field, `":[`), segment, line), func(t *testing.T) {
					dir := copyOf(t, master)
					first, _ := parseSegmentName(segment)
					rewrite(t, dir, segment, func(lines [][]byte) [][]byte {
						at := bytes.Index(lines[line-1], []byte(field)) + len(field)
						if field == "\n" {
							at--
						}
						lines[line-1][at] ^= 1
						return lines
					})
					report := verify(t, dir, VerifyOptions{Expect: &head})
					mustFind(t, report, first+uint64(line)-1)
				})
			}
		}
	}
}

func copyOf(t testing.TB, dir string) string {
	t.Helper()
	copied := directory(t)
	if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return copied
}

// mustFind wants a problem at the record or at a neighbour, and few of them.
func mustFind(t testing.TB, report Report, seq uint64) {
	t.Helper()
	near := func(p Problem) bool { return p.Seq+1 >= seq && p.Seq <= seq+1 }
	if !slices.ContainsFunc(report.Problems, near) || len(report.Problems) > 3 {
		t.Errorf("record %d was changed, and found are %+v", seq, report.Problems)
	}
}

// found is a problem that is wanted, and damage what has to lead to some.
type found struct {
	fault Fault
	seq   uint64
	line  int
}

type damage struct {
	name   string
	change func(testing.TB, string)
	want   []found
}

// Segments of logOf begin with records 1, 6 and 11 and hold five each; 15 is the last.
const second, third = "audit-00000000000000000006.jsonl", "audit-00000000000000000011.jsonl"

func damages() []damage {
	in := func(segment string, change func([][]byte) [][]byte) func(testing.TB, string) {
		return func(t testing.TB, dir string) { rewrite(t, dir, segment, change) }
	}
	return []damage{
		{"nothing", func(testing.TB, string) {}, nil},
		{"a deleted line", in(second, func(l [][]byte) [][]byte { return slices.Delete(l, 2, 3) }), []found{{FaultMissing, 8, 3}}},
		{"two swapped lines", in(second, func(l [][]byte) [][]byte { l[2], l[3] = l[3], l[2]; return l }),
			[]found{{FaultMissing, 8, 3}, {FaultOrder, 8, 4}, {FaultMissing, 9, 5}}},
		{"a line twice", in(second, func(l [][]byte) [][]byte { return slices.Insert(l, 3, l[2]) }), []found{{FaultOrder, 8, 4}}},
		{"a changed line", in(second, func(l [][]byte) [][]byte {
			l[2] = bytes.Replace(l[2], []byte("alice"), []byte("mallo"), 1)
			l[2] = bytes.Replace(l[2], []byte("release"), []byte("testing"), 1)
			return l
		}),
			[]found{{FaultChanged, 8, 3}}},
		{"a line that is not JSON", in(second, func(l [][]byte) [][]byte { l[2] = []byte("#\n"); return l }), []found{{FaultMalformed, 8, 3}}},
		{"a line that is too long", in(second, func(l [][]byte) [][]byte { l[2] = append(bytes.Repeat([]byte(" "), MaxLine), l[2]...); return l }), []found{{FaultMalformed, 8, 3}}},
		{"an added line", in(second, func(l [][]byte) [][]byte { return slices.Insert(l, 3, []byte("{}\n")) }), []found{{FaultMalformed, 9, 4}, {FaultOrder, 9, 5}}},
		{"a changed end of a segment", in(second, func(l [][]byte) [][]byte {
			l[4] = bytes.Replace(l[4], []byte("release"), []byte("testing"), 1)
			return l
		}),
			[]found{{FaultChanged, 10, 5}}},
		{"a segment without its first line", in(second, func(l [][]byte) [][]byte { return l[1:] }), []found{{FaultMissing, 6, 1}}},
		{"a segment without its last line", in(second, func(l [][]byte) [][]byte { return l[:4] }), []found{{FaultMissing, 10, 1}}},
		{"a segment without its last newline", in(second, func(l [][]byte) [][]byte { l[4] = bytes.TrimSpace(l[4]); return l }), []found{{FaultTorn, 10, 5}}},
		{"a dropped middle segment", func(t testing.TB, dir string) { remove(t, dir, second) }, []found{{FaultMissing, 6, 1}}},
		{"a dropped first segment", func(t testing.TB, dir string) { remove(t, dir, segmentName(1)) }, []found{{FaultMissing, 1, 1}}},
		{"a renamed segment", func(t testing.TB, dir string) {
			if err := os.Rename(filepath.Join(dir, second), filepath.Join(dir, segmentName(7))); err != nil {
				t.Fatal(err)
			}
		}, []found{{FaultSegment, 6, 1}}},
		{"an empty segment", in(second, func([][]byte) [][]byte { return nil }), []found{{FaultMissing, 6, 1}}},
		{"a dropped last segment", func(t testing.TB, dir string) { remove(t, dir, third) }, []found{{FaultTruncated, 11, 0}}},
		{"a cut end", in(third, func(l [][]byte) [][]byte { return l[:3] }), []found{{FaultTruncated, 14, 0}}},
		{"a torn end", in(third, func(l [][]byte) [][]byte { l[4] = l[4][:20]; return l }), []found{{FaultTorn, 15, 5}, {FaultReplaced, 15, 0}}},
		{"a changed last line", in(third, func(l [][]byte) [][]byte {
			l[4] = bytes.Replace(l[4], []byte("release"), []byte("testing"), 1)
			return l
		}),
			[]found{{FaultReplaced, 15, 5}}},
		{"no segments at all", func(t testing.TB, dir string) {
			for _, name := range segmentsOf(t, dir) {
				remove(t, dir, name)
			}
		}, []found{{FaultTruncated, 1, 0}}},
		{"a last segment chained anew", func(t testing.TB, dir string) { chainAnew(t, dir, third) }, []found{{FaultReplaced, 15, 5}}},
		{"a last segment of another log", func(t testing.TB, dir string) {
			other := directory(t)
			logBy(t, other, "p[2]")
			content, err := os.ReadFile(filepath.Join(other, third))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, third), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}, []found{{FaultChanged, 10, 5}, {FaultReplaced, 15, 5}}},
	}
}

func TestVerifyFinds(t *testing.T) {
	master := directory(t)
	head := logOf(t, master)
	if names := segmentsOf(t, master); head.Seq != 15 || !slices.Equal(names, []string{segmentName(1), second, third}) {
		t.Fatalf("the log is %v up to %v", names, head)
	}
	remove(t, master, headName) // only the chain and the head that was kept
	for _, c := range damages() {
		t.Run(c.name, func(t *testing.T) {
			dir := copyOf(t, master)
			c.change(t, dir)
			report := verify(t, dir, VerifyOptions{Expect: &head})
			var got []found
			for _, p := range report.Problems {
				got = append(got, found{p.Fault, p.Seq, p.Line})
				if !errors.Is(&p, ErrDamaged) || p.Text == "" {
					t.Errorf("problem %+v", p)
				}
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("found %+v\nwant %+v\n%+v", got, c.want, report.Problems)
			}
			if report.OK() != (c.want == nil) {
				t.Errorf("OK says %v", report.OK())
			}
		})
	}
}

// chainAnew writes a segment as somebody would who knows the format: with
// another user, and hashes that fit.
func chainAnew(t testing.TB, dir, segment string) {
	rewrite(t, dir, segment, func(lines [][]byte) [][]byte {
		l, err := decodeLink(lines[0])
		if err != nil {
			t.Fatal(err)
		}
		head := Head{Seq: l.Seq - 1, Hash: *l.Prev}
		for i, line := range lines {
			_, body, _ := bytes.Cut(line, []byte(`",`)) // behind prev
			body = bytes.ReplaceAll(bytes.TrimSpace(body), []byte("release"), []byte("testing"))
			lines[i], head = appendLine(nil, head, head.Seq+1, body)
		}
		return lines
	})
}

// Without a head that was kept elsewhere, a tail that was cut off or chained anew does not show.
func TestVerifyCannotSee(t *testing.T) {
	dir := directory(t)
	logOf(t, dir)
	remove(t, dir, headName)
	segments := segmentsOf(t, dir)
	chainAnew(t, dir, segments[2])
	rewrite(t, dir, segments[2], func(l [][]byte) [][]byte { return l[:3] })
	if report := verify(t, dir, VerifyOptions{}); !report.OK() {
		t.Errorf("found %+v", report.Problems)
	}
}

// The file head shows an accident at the end.
func TestVerifyHoldsTheLogAgainstTheFileHead(t *testing.T) {
	dir := directory(t)
	logOf(t, dir)
	rewrite(t, dir, segmentsOf(t, dir)[2], func(l [][]byte) [][]byte { return l[:3] })
	report := verify(t, dir, VerifyOptions{})
	if len(report.Problems) != 1 || report.Problems[0].Fault != FaultTruncated {
		t.Errorf("found %+v", report.Problems)
	}
}

func TestVerifyOfAnArchivedLog(t *testing.T) {
	dir := directory(t)
	head := logOf(t, dir)
	remove(t, dir, segmentName(1))
	report := verify(t, dir, VerifyOptions{Expect: &head, Archived: true})
	if !report.OK() || report.First != 6 {
		t.Errorf("report %+v", report)
	}
	open(t, Config{Directory: dir})
	early := Head{Seq: 3}
	if report := verify(t, dir, VerifyOptions{Expect: &early, Archived: true}); report.OK() {
		t.Error("a head that cannot be checked passed")
	}
}

func TestVerifyReportsABoundedNumberOfProblems(t *testing.T) {
	dir := directory(t)
	logOf(t, dir)
	rewrite(t, dir, segmentName(1), func([][]byte) [][]byte { return slices.Repeat([][]byte{[]byte("\n")}, 3*maxProblems) })
	report := verify(t, dir, VerifyOptions{})
	if len(report.Problems) != maxProblems || report.More < maxProblems {
		t.Errorf("%d problems and %d more", len(report.Problems), report.More)
	}
}

func TestVerifyEndsWithItsContext(t *testing.T) {
	dir := directory(t)
	logOf(t, dir)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Verify(ctx, dir, VerifyOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestVerifyOfNoDirectory(t *testing.T) {
	if _, err := Verify(t.Context(), directory(t), VerifyOptions{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}
