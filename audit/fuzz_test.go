package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// segmentForFuzzing returns a whole first segment, and its head.
func segmentForFuzzing(f *testing.F) ([]byte, Head) {
	f.Helper()
	dir := directory(f)
	l, err := Open(Config{Directory: dir, Process: "p[1]"})
	if err != nil {
		f.Fatal(err)
	}
	defer l.Close()
	for _, user := range []string{"alice", "bob", "carol"} {
		mustAppend(f, l, sign(user))
	}
	content, err := os.ReadFile(filepath.Join(dir, segmentName(1)))
	if err != nil {
		f.Fatal(err)
	}
	return content, l.Head()
}

// problemsOf checks a segment as Verify does.
func problemsOf(t *testing.T, content []byte, head Head) []Problem {
	v := &verification{ctx: t.Context(), expected: []expectation{{Head: head, source: "the test"}}}
	first := extent{name: segmentName(1), first: 1}
	v.checker.begin(first)
	v.checker.enter(first)
	if err := v.lines(bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	v.end()
	return v.report.Problems
}

// FuzzSegment reads anything as a segment: what start-up keeps of it is a whole
// chain, and keeps being one.
func FuzzSegment(f *testing.F) {
	whole, _ := segmentForFuzzing(f)
	f.Add(whole)
	f.Add(whole[:len(whole)-1])
	f.Add(append(bytes.Clone(whole), whole...))
	f.Add(append(bytes.Clone(whole), "\x00\x00\n{}\n"...))
	f.Add([]byte(`{"seq":1,"prev":null}` + "\n"))
	f.Add([]byte(`{"seq":18446744073709551615,"batch":18446744073709551615,"prev":"` + Hash{}.String() + `"}` + "\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		found, err := scan(bytes.NewReader(content), mark{Segment: segmentName(1)})
		if err != nil {
			t.Fatal(err)
		}
		kept := content[:found.end.Offset]
		if len(kept) > 0 && kept[len(kept)-1] != '\n' {
			t.Error("half a line was kept")
		}
		again, err := scan(bytes.NewReader(kept), mark{Segment: segmentName(1)})
		if err != nil || again.end != found.end || again.acknowledged {
			t.Errorf("read again: %+v, %v", again, err)
		}
		for _, problem := range problemsOf(t, kept, found.end.Head) {
			if problem.Fault != FaultSegment && found.end.Seq != 0 {
				t.Errorf("of what was kept: %v", &problem)
			}
		}
		_ = problemsOf(t, content, found.end.Head)
		for line := range bytes.Lines(kept) {
			_, _ = decodeEntry(line)
		}
	})
}

// FuzzVerify changes a log at one place in any way. With the head at hand, each change is found.
func FuzzVerify(f *testing.F) {
	whole, head := segmentForFuzzing(f)
	f.Add(uint(0), uint(1), []byte{})
	f.Add(uint(len(whole)-1), uint(1), []byte{})
	f.Add(uint(40), uint(0), []byte("\n"))
	f.Add(uint(len(whole)), uint(0), []byte("x"))
	f.Add(uint(0), uint(len(whole)), []byte{})
	f.Fuzz(func(t *testing.T, at, length uint, replacement []byte) {
		at = min(at, uint(len(whole)))
		length = min(length, uint(len(whole))-at)
		changed := append(append(bytes.Clone(whole[:at]), replacement...), whole[at+length:]...)
		if bytes.HasPrefix(changed, whole) && len(changed) > len(whole) {
			return // the log goes on behind the head, which the head does not speak of
		}
		problems := problemsOf(t, changed, head)
		if bytes.Equal(changed, whole) != (len(problems) == 0) {
			t.Errorf("%d bytes at %d replaced by %q: found %v", length, at, replacement, problems)
		}
	})
}

// FuzzHead reads anything as the file head, and as a head that somebody kept.
func FuzzHead(f *testing.F) {
	m := mark{Segment: segmentName(7), Offset: 4711, Head: Head{Seq: 9, Hash: Hash{1}}}
	path := filepath.Join(f.TempDir(), headName)
	file, err := disk{}.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		f.Fatal(err)
	}
	if err := errors.Join(writeMark(file, m), file.Close()); err != nil {
		f.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	if got, ok := readMark(bytes.NewReader(content)); !ok || got != m {
		f.Fatalf("read back as %+v", got)
	}
	f.Add(content)
	f.Add(content[:100])
	f.Add([]byte(m.Head.String()))
	f.Fuzz(func(t *testing.T, content []byte) {
		if got, ok := readMark(bytes.NewReader(content)); ok && (got.Offset <= 0 || got.Seq == 0) {
			t.Errorf("took %+v", got)
		}
		if head, err := ParseHead(string(content)); err == nil {
			if again, err := ParseHead(head.String()); err != nil || again != head {
				t.Errorf("%v came back as %v, %v", head, again, err)
			}
		}
	})
}

// FuzzRecord encodes a record as encoding/json does, with what steers a terminal escaped.
func FuzzRecord(f *testing.F) {
	f.Add("alice", "release", "note", "nightly", "192.0.2.7:4711", "ab", uint64(7), int64(1_800_000_000))
	f.Add("\u202e\x00\xff\\\"\x7f\U000e0001<&>", "", "b", "\u2028", "", "", uint64(0), int64(-1<<62))
	f.Add(strings.Repeat("ä", 400), "k", "", "", "", "\n", uint64(1), int64(0))
	f.Fuzz(func(t *testing.T, user, key, name, value, address, digest string, request uint64, seconds int64) {
		r := Record{
			Time: time.Unix(seconds, 1).UTC(), Process: "p[1]", Kind: KindSign, Outcome: OutcomeOK, User: user, Key: key,
			Peer: &Peer{Address: address, Fingerprint: key}, Request: &request, Details: map[string]string{"z": user},
		}
		if name != "" {
			r.Details[name] = value
		}
		if digest != "" {
			r.Digests = []string{digest, user}
		}
		got, err := encodeBody(r)
		r.User, r.Key = clip(user), clip(key)
		r.Peer = &Peer{Address: clip(address), Fingerprint: clip(key)}
		for name, value := range r.Details {
			r.Details[name] = clip(value)
		}
		var b bytes.Buffer
		reference := json.NewEncoder(&b)
		reference.SetEscapeHTML(false)
		unencodable := reference.Encode(r) != nil || len(name) > maxDetailName
		if (err != nil) != unencodable {
			t.Fatalf("encodeBody: %v; want an error: %t", err, unencodable)
		}
		if err != nil {
			return
		}
		if want := escapeUnprintable(b.Bytes()[1 : b.Len()-1]); !bytes.Equal(got, want) {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	})
}
