package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"chancery/internal/testtool"
)

func TestRecordsComeBackAsTheyWereGiven(t *testing.T) {
	dir := directory(t)
	l := open(t, Config{Directory: dir})
	want := sign("alice")
	want.Time = time.Date(2026, 11, 23, 12, 0, 0, 123456789, time.FixedZone("", 3600))
	want.Process = "chancery-server[1]"
	position := mustAppend(t, l, want)
	want.Time = want.Time.UTC()
	found := entries(t, dir, Filter{Kind: KindSign})
	if len(found) != 1 || found[0].Position != position || !reflect.DeepEqual(found[0].Record, want) {
		t.Fatalf("read %+v, want %+v at %v", found, want, position)
	}
	if found[0].Seq != 2 || found[0].Line != 2 || found[0].Segment != "audit-00000000000000000001.jsonl" {
		t.Errorf("the first record is at %s, line %d, record %d", found[0].Segment, found[0].Line, found[0].Seq)
	}
	if l.Head() != position.Head {
		t.Errorf("the head is %v, want %v", l.Head(), position.Head)
	}
	mustVerify(t, dir, position.Head)
}

// The order of fields is part of the format.
func TestLineIsAsDocumented(t *testing.T) {
	r := sign("alice")
	r.Time, r.Process = time.Date(2026, 11, 23, 12, 0, 0, 1, time.UTC), "p[1]"
	r.Digests, r.Peer.Fingerprint = []string{"ab"}, "cd"
	body, err := encodeBody(r)
	if err != nil {
		t.Fatal(err)
	}
	line, head := appendLine(nil, Head{Seq: 6}, 6, body)
	want := `{"seq":7,"batch":6,"prev":"` + strings.Repeat("0", 64) + `","time":"2026-11-23T12:00:00.000000001Z","process":"p[1]","kind":"sign",` +
		`"user":"alice","key":"release","handle":"0a1b","scheme":"pss","hash":"Sha256","digests":["ab"],"session":"5f9c","request":7,` +
		`"peer":{"address":"192.0.2.7:4711","serial":"01ff","fingerprint":"cd"},"outcome":"ok","idempotency_key":"b2f7","details":{"note":"nightly"}}` + "\n"
	if string(line) != want {
		t.Errorf("got  %swant %s", line, want)
	}
	parsed, err := ParseHead(head.String())
	if err != nil || parsed != head {
		t.Errorf("ParseHead(%q) = %v, %v", head, parsed, err)
	}
}

func TestParseHeadRefuses(t *testing.T) {
	for _, s := range []string{"", "7", "7:", "0:" + strings.Repeat("0", 64), "-1:" + strings.Repeat("0", 64), "7:" + strings.Repeat("g", 64), "7:" + strings.Repeat("0", 65)} {
		if h, err := ParseHead(s); err == nil {
			t.Errorf("ParseHead(%q) = %v", s, h)
		}
	}
}

// An operator checks the chain with what every system has.
func TestChainIsSHA256OfLines(t *testing.T) {
	program := testtool.Need(t, "sha256sum")
	dir := directory(t)
	l := open(t, Config{Directory: dir})
	mustAppend(t, l, sign("alice"))
	segment := mustAppend(t, l, sign("bob")).Segment
	content, err := os.ReadFile(filepath.Join(dir, segment))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(content), "\n")
	command := exec.Command(program)
	command.Stdin = strings.NewReader(lines[1])
	output, err := command.Output()
	if err != nil {
		t.Fatal(err)
	}
	var third struct{ Prev string }
	if err := json.Unmarshal([]byte(lines[2]), &third); err != nil {
		t.Fatal(err)
	}
	if got, _, _ := strings.Cut(string(output), " "); got != third.Prev {
		t.Errorf("line 3 says %s of line 2, sha256sum says %s", third.Prev, got)
	}
}

func TestAppendRefuses(t *testing.T) {
	many := make(map[string]string)
	for i := range maxDetails + 1 {
		many[fmt.Sprint(i)] = ""
	}
	cases := map[string]func(*Record){
		"no kind":          func(r *Record) { r.Kind = "" },
		"odd kind":         func(r *Record) { r.Kind = "sign now" },
		"long kind":        func(r *Record) { r.Kind = Kind(strings.Repeat("a", 65)) },
		"its own header":   func(r *Record) { r.Kind = KindSegment },
		"its own recovery": func(r *Record) { r.Kind = KindRecovered },
		"no outcome":       func(r *Record) { r.Outcome = "" },
		"odd outcome":      func(r *Record) { r.Outcome = "OK\n" },
		"many details":     func(r *Record) { r.Details = many },
		"long detail name": func(r *Record) { r.Details = map[string]string{strings.Repeat("a", 65): ""} },
		"many digests":     func(r *Record) { r.Digests = make([]string, MaxLine/2) },
		"year 10000":       func(r *Record) { r.Time = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) },
	}
	dir := directory(t)
	l := open(t, Config{Directory: dir})
	for name, spoil := range cases {
		t.Run(name, func(t *testing.T) {
			r := sign("alice")
			spoil(&r)
			if _, err := l.Append(t.Context(), r); !errors.Is(err, ErrInvalid) {
				t.Errorf("got %v, want ErrInvalid", err)
			}
		})
	}
	mustAppend(t, l, sign("bob"))
	mustVerify(t, dir, l.Head())
}

// What a peer sends cannot keep a record out of the log or steer the terminal that shows it.
func TestHostileText(t *testing.T) {
	hostile := map[string]string{
		"newline":         "alice\n{\"seq\":3}",
		"long":            strings.Repeat("ä", 1<<20),
		"not UTF-8":       "\xff\xfe" + strings.Repeat("\x80", 1000),
		"escape sequence": "\x1b[2J\x7f\u009b31m",
		"bidirectional":   "\u202egnp.exe\u2028",
		"outside the BMP": "\U000e0001\U0001f600",
		"quotes":          `"},"kind":"admin"`,
	}
	dir := directory(t)
	l := open(t, Config{Directory: dir})
	for name, text := range hostile {
		t.Run(name, func(t *testing.T) {
			position := mustAppend(t, l, Record{Kind: KindRefused, User: text, Outcome: "no_such_key", Details: map[string]string{text[:min(60, len(text))]: text}})
			found := entries(t, dir, Filter{After: position.Seq - 1})
			if len(found) != 1 || found[0].Kind != KindRefused {
				t.Fatalf("found %d records", len(found))
			}
			if got := found[0].User; len(text) < maxText && strings.ToValidUTF8(text, "") == text && got != text || len(got) > 4*maxText {
				t.Errorf("the user %q came back as %q", text, got)
			}
			for _, c := range string(found[0].Raw) {
				if c < ' ' || c >= 0x7f && c < 0xa0 || c == '\u202e' || c == '\u2028' || c == '\U000e0001' {
					t.Errorf("the line has %U", c)
				}
			}
		})
	}
	mustVerify(t, dir, l.Head())
}

func TestClipSaysSo(t *testing.T) {
	if got, want := clip(strings.Repeat("a", 511)+"ä"), strings.Repeat("a", 511)+"…(2 bytes more)"; got != want {
		t.Errorf("got %q", got[500:])
	}
	r := sign("alice")
	r.Details["note"] = strings.Repeat("n", 600)
	r.Peer.Address = strings.Repeat("p", 600)
	if _, err := encodeBody(r); err != nil {
		t.Fatal(err)
	}
	if len(r.Details["note"]) != 600 || len(r.Peer.Address) != 600 {
		t.Error("the caller's record was changed")
	}
}

func TestSegmentsFollowOneAnother(t *testing.T) {
	dir := directory(t)
	l := open(t, Config{Directory: dir, SegmentBytes: 2000})
	acknowledged := make(map[string]Position)
	for i := range 20 {
		user := fmt.Sprintf("user%d", i)
		acknowledged[user] = mustAppend(t, l, sign(user))
	}
	report := mustVerify(t, dir, l.Head())
	if report.Segments < 5 || report.Last != l.Head() || report.Lines != l.Head().Seq {
		t.Errorf("report %+v", report)
	}
	mustHold(t, dir, acknowledged)
	previous := ""
	for _, e := range entries(t, dir, Filter{Kind: KindSegment}) {
		if e.Details["predecessor"] != previous || e.Segment != segmentName(e.Seq) {
			t.Errorf("segment %s names %q, want %q", e.Segment, e.Details["predecessor"], previous)
		}
		previous = e.Segment
	}
}

func TestFilesAreForTheirOwnerOnly(t *testing.T) {
	dir := directory(t)
	l := open(t, Config{Directory: dir, SegmentBytes: 1})
	mustAppend(t, l, sign("alice"))
	mustAppend(t, l, sign("alice"))
	found, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range found {
		if info, _ := entry.Info(); info.Mode() != 0o600 {
			t.Errorf("%s has the mode %v", entry.Name(), info.Mode())
		}
	}
	if info, _ := os.Stat(dir); info.Mode().Perm() != 0o700 {
		t.Errorf("the directory has the mode %v", info.Mode())
	}
}

// An operator's command runs as root, and the daemon must be able to go on.
func TestRootGivesFilesToTheDirectorysOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		testtool.Missing(t, "root's right to give files away")
	}
	dir := directory(t)
	if err := errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, 65534, 65534)); err != nil {
		t.Fatal(err)
	}
	l := open(t, Config{Directory: dir, SegmentBytes: 1})
	mustAppend(t, l, sign("alice"))
	mustAppend(t, l, sign("alice"))
	found, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range found {
		if info, _ := entry.Info(); info.Sys().(*syscall.Stat_t).Uid != 65534 {
			t.Errorf("%s belongs to root", entry.Name())
		}
	}
}

func TestOpenRefusesADirectoryOthersWriteTo(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o770); err != nil {
		t.Fatal(err)
	}
	if l, err := Open(Config{Directory: dir}); err == nil {
		l.Close()
		t.Fatal("opened")
	}
}

func TestGroupCommitSharesSyncs(t *testing.T) {
	var syncs atomic.Int64
	slow := &faultyFS{FS: disk{}, hook: func(operation, name string) error {
		if operation == "sync" {
			syncs.Add(1)
			time.Sleep(2 * time.Millisecond)
		}
		return nil
	}}
	dir := directory(t)
	l := open(t, Config{Directory: dir, FS: slow})
	before := syncs.Load()
	const callers, each = 64, 10
	var wait sync.WaitGroup
	for i := range callers {
		wait.Go(func() {
			for range each {
				if _, err := l.Append(t.Context(), sign(fmt.Sprint(i))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wait.Wait()
	used := syncs.Load() - before
	t.Logf("%d records with %d syncs", callers*each, used)
	if used > callers*each/8 {
		t.Errorf("%d records took %d syncs", callers*each, used)
	}
	if found := len(entries(t, dir, Filter{Kind: KindSign})); found != callers*each {
		t.Errorf("%d records are there, want %d", found, callers*each)
	}
	mustVerify(t, dir, l.Head())
}

func TestCallerWhoHasGoneLeavesNothingInHalf(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	var held atomic.Bool
	stuck := &faultyFS{FS: disk{}, hook: func(operation, name string) error {
		if operation == "sync" && held.CompareAndSwap(true, false) {
			close(entered)
			<-release
		}
		return nil
	}}
	dir := directory(t)
	l := open(t, Config{Directory: dir, FS: stuck, QueueBytes: MaxLine})
	held.Store(true)
	first := make(chan error)
	go func() {
		_, err := l.Append(t.Context(), sign("first"))
		first <- err
	}()
	<-entered
	ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Millisecond, errors.New("out of patience"))
	defer cancel()
	var wait sync.WaitGroup
	large := sign("alice")
	large.Digests = make([]string, 100_000) // 300 kB: only some have room in the queue
	for range 8 {
		wait.Go(func() {
			if _, err := l.Append(ctx, large); err == nil || !strings.Contains(err.Error(), "out of patience") {
				t.Errorf("got %v, want the context's cause", err)
			}
		})
	}
	wait.Wait()
	close(release)
	if err := <-first; err != nil {
		t.Error(err)
	}
	position := mustAppend(t, l, sign("bob"))
	mustVerify(t, dir, position.Head)
	if found := len(entries(t, dir, Filter{User: "alice"})); found > 0 {
		t.Errorf("%d records of callers who had gone were written", found)
	}
}

func TestClose(t *testing.T) {
	dir := directory(t)
	l := open(t, Config{Directory: dir})
	acknowledged := make(map[string]Position)
	var mu sync.Mutex
	var wait sync.WaitGroup
	for i := range 20 {
		wait.Go(func() {
			user := fmt.Sprint(i)
			position, err := l.Append(t.Context(), sign(user))
			if err != nil && !errors.Is(err, ErrClosed) {
				t.Error(err)
			}
			if err == nil {
				mu.Lock()
				acknowledged[user] = position
				mu.Unlock()
			}
		})
	}
	l.Close()
	wait.Wait()
	if _, err := l.Append(t.Context(), sign("late")); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v, want ErrClosed", err)
	}
	l.Close()
	mustHold(t, dir, acknowledged)
}

// Each of several Logs takes up where another left off, over rotations too.
func TestSeveralLogsInOneDirectory(t *testing.T) {
	dir := directory(t)
	acknowledged := make(map[string]Position)
	var mu sync.Mutex
	var wait sync.WaitGroup
	for i := range 3 {
		l := open(t, Config{Directory: dir, SegmentBytes: 5000})
		wait.Go(func() {
			for j := range 40 {
				user := fmt.Sprintf("user%d.%d", i, j)
				position, err := l.Append(t.Context(), sign(user))
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				acknowledged[user] = position
				mu.Unlock()
			}
		})
	}
	wait.Wait()
	report := verify(t, dir, VerifyOptions{})
	if !report.OK() || report.Last.Seq != uint64(report.Segments+3*40) {
		t.Errorf("report %+v", report)
	}
	mustHold(t, dir, acknowledged)
}

func TestClockThatJumps(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	dir := directory(t)
	l := open(t, Config{Directory: dir, Clock: func() time.Time { now = now.Add(-time.Hour); return now }})
	for range 5 {
		mustAppend(t, l, sign("alice"))
	}
	mustVerify(t, dir, l.Head())
}

func TestLockIsGivenUpAfterItsTime(t *testing.T) {
	dir := directory(t)
	l := open(t, Config{Directory: dir, LockTimeout: 10 * time.Millisecond, RetryDelay: quick})
	other, err := openLock(dir, os.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	defer other.close()
	if err := other.acquire(time.Second); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Append(t.Context(), sign("alice")); !errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v, want ErrUnavailable", err)
	}
	if !errors.Is(l.Err(), ErrUnavailable) {
		t.Errorf("Err says %v", l.Err())
	}
	other.release()
	mustAppend(t, l, sign("bob"))
	if l.Err() != nil {
		t.Errorf("Err says %v", l.Err())
	}
	mustVerify(t, dir, l.Head())
}

// Records of one caller are durable together: one sync, the places in a row, and all or none of them acknowledged.
func TestAppendKeepsSeveralTogether(t *testing.T) {
	var full atomic.Bool
	var batches atomic.Int64
	fs := &faultyFS{FS: newVolatileFS(), hook: func(string, string) error {
		if full.Load() {
			return syscall.ENOSPC
		}
		return nil
	}}
	dir := memoryDirectory(t)
	l := open(t, Config{Directory: dir, FS: fs, RetryDelay: quick, Committed: func(records int, _ time.Duration, err error) {
		if err == nil && records == 5 {
			batches.Add(1)
		}
	}})
	before := l.Head().Seq
	position, err := l.Append(t.Context(), sign("a"), sign("b"), sign("c"), sign("d"), sign("e"))
	if err != nil {
		t.Fatal(err)
	}
	if position.Seq != before+5 || l.Head() != position.Head || batches.Load() != 1 {
		t.Errorf("place %d after %d, head %d, in one batch: %d", position.Seq, before, l.Head().Seq, batches.Load())
	}
	full.Store(true)
	if _, err := l.Append(t.Context(), sign("f"), sign("g")); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a full disk: %v", err)
	}
	full.Store(false)
	if _, err := l.Append(t.Context(), sign("h"), Record{Kind: KindSegment}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a record that is not the caller's to write: %v", err)
	}
	time.Sleep(quick)
	mustAppend(t, l, sign("i"))
	var users []string
	for _, entry := range entries(t, dir, Filter{Kind: KindSign}) {
		users = append(users, entry.User)
	}
	if want := []string{"a", "b", "c", "d", "e", "i"}; !slices.Equal(users, want) {
		t.Errorf("kept %q, want %q", users, want)
	}
}

// More than the queue holds goes through it in parts.
func TestAppendKeepsMoreThanTheQueueHolds(t *testing.T) {
	dir := t.TempDir()
	l := open(t, Config{Directory: dir, QueueBytes: 1})
	large := sign("alice")
	large.Details = map[string]string{"padding": strings.Repeat("x", MaxLine/3)}
	position, err := l.Append(t.Context(), large, large, large, large, large, large, large)
	if err != nil {
		t.Fatal(err)
	}
	if l.Head() != position.Head {
		t.Errorf("head %d, place %d", l.Head().Seq, position.Seq)
	}
	mustVerify(t, dir, position.Head)
}

// The observer hears of every batch, whether it was kept or not.
func TestCommittedIsTold(t *testing.T) {
	type batch struct {
		records int
		failed  bool
	}
	told := make(chan batch, 10)
	var full atomic.Bool
	fs := &faultyFS{FS: newVolatileFS(), hook: func(string, string) error {
		if full.Load() {
			return syscall.ENOSPC
		}
		return nil
	}}
	l := open(t, Config{Directory: memoryDirectory(t), FS: fs, RetryDelay: quick, Committed: func(records int, took time.Duration, err error) {
		if took <= 0 {
			t.Errorf("a batch took %s", took)
		}
		told <- batch{records, err != nil}
	}})
	mustAppend(t, l, sign("alice"))
	if got := <-told; got != (batch{1, false}) {
		t.Errorf("a good batch: %+v", got)
	}
	full.Store(true)
	if _, err := l.Append(t.Context(), sign("alice")); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a full disk: %v", err)
	}
	if got := <-told; got != (batch{1, true}) {
		t.Errorf("a batch that failed: %+v", got)
	}
	full.Store(false)
}
