package audit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Whatever operation fails, in whatever way, once or for a while: nothing that was
// acknowledged is lost, and the log goes on by itself.
func TestEachOperationMayFail(t *testing.T) {
	cases := map[string]struct {
		err  error
		long int // operations in a row that fail
	}{
		"input/output error": {syscall.EIO, 1},
		"full for a while":   {syscall.ENOSPC, 5},
		"short write":        {errHalf, 1},
		"done, but an error": {errAfter, 1},
		"errors for a while": {errAfter, 5},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			for first := 0; ; first++ {
				operations := 0
				fs := &faultyFS{FS: newVolatileFS(), hook: func(string, string) error {
					operations++
					if operations > first && operations <= first+c.long {
						return c.err
					}
					return nil
				}}
				appendThrough(t, fs, fmt.Sprintf("operation %d", first))
				if t.Failed() || operations <= first {
					t.Logf("%d operations", first)
					return
				}
			}
		})
	}
}

// appendThrough opens a log, appends, rotates, and opens it again, with as many tries as that takes.
func appendThrough(t *testing.T, fs FS, what string) {
	dir := memoryDirectory(t)
	cfg := Config{Directory: dir, FS: fs, SegmentBytes: 1000, RetryDelay: quick}
	acknowledged := make(map[string]Position)
	for round := range 2 {
		l := openThrough(t, cfg)
		for i := range 3 {
			user := fmt.Sprintf("user%d.%d", round, i)
			acknowledged[user] = appendUntilKept(t, l, sign(user))
		}
		head := l.Head()
		l.Close()
		mustVerify(t, dir, head)
	}
	mustHold(t, dir, acknowledged)
	if t.Failed() {
		t.Log("with a fault at", what)
	}
}

func openThrough(t *testing.T, cfg Config) *Log {
	for range 20 {
		l, err := Open(cfg)
		if err == nil {
			return l
		}
		if errors.Is(err, ErrDamaged) {
			t.Fatal(err)
		}
	}
	t.Fatal("the log does not open again")
	return nil
}

func appendUntilKept(t *testing.T, l *Log, r Record) Position {
	for range 20 {
		position, err := l.Append(t.Context(), r)
		if err == nil {
			return position
		}
		if !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrDamaged) {
			t.Fatalf("got %v, want ErrUnavailable", err)
		}
	}
	t.Fatal("the log does not go on")
	return Position{}
}

func TestFullDiskStopsAndResumes(t *testing.T) {
	var full atomic.Bool
	var writes atomic.Int64
	fs := &faultyFS{FS: disk{}, hook: func(operation, name string) error {
		if operation == "write" && name != headName && full.Load() {
			writes.Add(1)
			return errHalf
		}
		return nil
	}}
	dir := directory(t)
	l := open(t, Config{Directory: dir, FS: fs, RetryDelay: 50 * time.Millisecond})
	before := mustAppend(t, l, sign("before"))
	full.Store(true)
	for range 100 {
		if _, err := l.Append(t.Context(), sign("while full")); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "no space left") {
			t.Fatalf("got %v", err)
		}
	}
	if !errors.Is(l.Err(), syscall.ENOSPC) || l.Head() != before.Head {
		t.Errorf("Err says %v, the head is %v", l.Err(), l.Head())
	}
	if tries := writes.Load(); tries > 50 {
		t.Errorf("100 appends hammered the disk with %d writes", tries)
	}
	full.Store(false)
	after := appendAfterDelay(t, l)
	mustVerify(t, dir, after.Head)
	mustHold(t, dir, map[string]Position{"before": before, "after": after})
	found := entries(t, dir, Filter{Kind: KindRecovered})
	if len(found) != 1 || found[0].Details["reason"] != "outage" || found[0].Details["refused"] == "" || !strings.Contains(found[0].Details["error"], "no space") {
		t.Errorf("of the outage the log says %+v", found)
	}
	if len(entries(t, dir, Filter{User: "while full"})) != 0 {
		t.Error("a refused record was kept")
	}
}

func appendAfterDelay(t *testing.T, l *Log) Position {
	deadline := time.Now().Add(10 * time.Second)
	for {
		position, err := l.Append(t.Context(), sign("after"))
		if err == nil {
			return position
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
}

// A record that was refused is not kept, whoever writes next: this process, or
// another one that knows nothing of the failure.
func TestRefusedRecordsAreTakenBack(t *testing.T) {
	for truncates, tries := range map[bool]int{true: 1, false: 3} {
		t.Run(fmt.Sprintf("truncates=%v", truncates), func(t *testing.T) {
			var failing atomic.Bool
			fs := &faultyFS{FS: disk{}, hook: func(operation, _ string) error {
				if failing.Load() && (operation == "sync" || operation == "truncate" && !truncates) {
					return syscall.EIO
				}
				return nil
			}}
			dir := directory(t)
			l := open(t, Config{Directory: dir, FS: fs, RetryDelay: quick})
			other := open(t, Config{Directory: dir})
			failing.Store(true)
			for range tries {
				if _, err := l.Append(t.Context(), sign("refused")); !errors.Is(err, ErrUnavailable) {
					t.Errorf("got %v, want ErrUnavailable", err)
				}
			}
			failing.Store(false)
			if truncates {
				mustAppend(t, other, sign("bob"))
			}
			mustVerify(t, dir, mustAppend(t, l, sign("alice")).Head)
			if found := entries(t, dir, Filter{User: "refused"}); len(found) != 0 {
				t.Errorf("%d refused records are kept", len(found))
			}
		})
	}
}

// Incomplete bytes at the end are set aside and named, never silently dropped.
func TestTornEndIsSetAside(t *testing.T) {
	const text = `{"seq":16,"prev":"`
	cases := map[string]string{
		"half a line":             text,
		"zeros":                   strings.Repeat("\x00", 5000),
		"not JSON":                "#\n",
		"a line of another chain": `{"seq":16,"prev":"` + strings.Repeat("0", 64) + "\"}\n",
		"longer than any line":    strings.Repeat("x", 3*MaxLine),
		"two bad lines":           "#\n#\n" + text,
	}
	for name, torn := range cases {
		t.Run(name, func(t *testing.T) {
			dir := directory(t)
			head := logOf(t, dir)
			last := filepath.Join(dir, segmentName(11))
			appendTo(t, last, torn)
			if report := verify(t, dir, VerifyOptions{Expect: &head}); report.OK() {
				t.Error("passed before it was set aside")
			}
			l := open(t, Config{Directory: dir})
			found := entries(t, dir, Filter{After: head.Seq, Kind: KindRecovered})
			if len(found) != 1 || found[0].Details["reason"] != "torn" || found[0].Details["bytes"] != fmt.Sprint(len(torn)) {
				t.Fatalf("the log says %+v", found)
			}
			if kept, err := os.ReadFile(filepath.Join(dir, found[0].Details["file"])); err != nil || string(kept) != torn {
				t.Errorf("kept aside are %d bytes, want %d (%v)", len(kept), len(torn), err)
			}
			mustVerify(t, dir, head)
			mustVerify(t, dir, mustAppend(t, l, sign("alice")).Head)
			open(t, Config{Directory: dir})
			if again := entries(t, dir, Filter{Kind: KindRecovered}); len(again) != 1 {
				t.Errorf("the recovery is recorded %d times", len(again))
			}
		})
	}
}

func appendTo(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

// Whole lines behind the head may have been acknowledged before the power failed.
func TestWholeLinesAreKept(t *testing.T) {
	for _, without := range []string{headName, turnName} {
		dir := directory(t)
		l := open(t, Config{Directory: dir, SegmentBytes: 2800})
		old, err := os.ReadFile(filepath.Join(dir, headName))
		if err != nil {
			t.Fatal(err)
		}
		acknowledged := make(map[string]Position)
		for i := range 12 {
			user := fmt.Sprint(i)
			acknowledged[user] = mustAppend(t, l, sign(user))
		}
		head := l.Head()
		l.Close()
		if err := os.WriteFile(filepath.Join(dir, headName), old, 0o600); err != nil {
			t.Fatal(err)
		}
		remove(t, dir, without)
		if l = open(t, Config{Directory: dir}); l.Head() != head {
			t.Errorf("the head is %v, want %v", l.Head(), head)
		}
		mustHold(t, dir, acknowledged)
		mustVerify(t, dir, mustAppend(t, l, sign("after")).Head)
	}
}

// What was durable and is not there any more, or not as it was, needs an operator.
func TestDamageStopsTheLog(t *testing.T) {
	last := segmentName(11)
	change := func(segment string, change func([][]byte) [][]byte) func(*testing.T, string) {
		return func(t *testing.T, dir string) { rewrite(t, dir, segment, change) }
	}
	cut := func(l [][]byte) [][]byte { return l[:3] }
	cases := map[string]func(*testing.T, string){
		"a cut end":          change(last, cut),
		"a changed end":      change(last, func(l [][]byte) [][]byte { l[4][100] ^= 1; return l }),
		"a lost segment":     func(t *testing.T, dir string) { remove(t, dir, last) },
		"an emptied segment": func(t *testing.T, dir string) { os.Truncate(filepath.Join(dir, last), 0) },
		"a segment too many": func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, segmentName(99)), []byte("{}\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"an empty next segment": func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, segmentName(16)), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"a record behind a gap": func(t *testing.T, dir string) {
			appendTo(t, filepath.Join(dir, last), `{"seq":99,"prev":"`+strings.Repeat("0", 64)+"\"}\n")
		},
		"all segments gone": func(t *testing.T, dir string) {
			for _, name := range segmentsOf(t, dir) {
				remove(t, dir, name)
			}
		},
		"without the file head, a bad line before later batches": func(t *testing.T, dir string) {
			rewrite(t, dir, last, func(l [][]byte) [][]byte { l[2] = []byte("#\n"); return l })
			remove(t, dir, headName)
		},
		"without the file head, a bad first line": func(t *testing.T, dir string) {
			rewrite(t, dir, last, func(l [][]byte) [][]byte { l[0] = []byte("#\n"); return l })
			remove(t, dir, headName)
		},
	}
	for name, damage := range cases {
		t.Run(name, func(t *testing.T) {
			dir := directory(t)
			logOf(t, dir)
			damage(t, dir)
			l, err := Open(Config{Directory: dir})
			if err == nil {
				l.Close()
			}
			if !errors.Is(err, ErrDamaged) {
				t.Errorf("got %v, want ErrDamaged", err)
			}
		})
	}
	t.Run("while it is open", func(t *testing.T) {
		dir := directory(t)
		head := logOf(t, dir)
		l := open(t, Config{Directory: dir, RetryDelay: quick})
		rewrite(t, dir, last, cut)
		for range 3 {
			if _, err := l.Append(t.Context(), sign("alice")); !errors.Is(err, ErrDamaged) {
				t.Errorf("got %v, want ErrDamaged", err)
			}
		}
		if report := verify(t, dir, VerifyOptions{Expect: &head}); report.OK() {
			t.Error("verified")
		}
	})
}

// Of a batch that was never acknowledged, pages may reach the disk in any order.
func TestBadLineWithinTheLastBatchIsSetAside(t *testing.T) {
	dir := directory(t)
	head := logOf(t, dir)
	body, err := encodeBody(sign("alice"))
	if err != nil {
		t.Fatal(err)
	}
	one, next := appendLine(nil, head, head.Seq+1, body)
	_, lost := appendLine(nil, next, head.Seq+1, body)
	three, _ := appendLine(nil, lost, head.Seq+1, body)
	appendTo(t, filepath.Join(dir, segmentName(11)), string(one)+strings.Repeat("\x00", len(three))+string(three))
	l := open(t, Config{Directory: dir})
	mustVerify(t, dir, head)
	mustVerify(t, dir, l.Head())
	if found := entries(t, dir, Filter{After: head.Seq}); len(found) != 2 || found[0].Hash != next.Hash || found[1].Kind != KindRecovered {
		t.Errorf("found %+v", found)
	}
}
