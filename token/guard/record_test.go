package guard

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"chancery/token"
)

func sampleRecord() *record {
	r := newRecord(strings.Repeat("ab", 32))
	r.begin(tag{0, 1})
	r.wrong(tag{0, 1})
	r.begin(tag{0, 2})
	r.begin(tag{0, 3})
	return r
}

func TestRecordGoesRound(t *testing.T) {
	for name, r := range map[string]*record{"sample": sampleRecord(), "empty": newRecord("x")} {
		got, err := decode(r.encode())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if diff := cmp.Diff(r, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	full := newRecord("x")
	for i := range maxPINs {
		full.Unfinished = append(full.Unfinished, unfinished{tag{byte(i)}, maxUnfinished})
	}
	if size := len(full.encode()); size > maxRecord {
		t.Errorf("a full record has %d bytes", size)
	}
	if _, err := decode(full.encode()); err != nil {
		t.Error(err)
	}
}

func TestRecordsThatCannotBe(t *testing.T) {
	for name, spoil := range map[string]func(*record){
		"another version":       func(r *record) { r.Version = 2 },
		"twice the same":        func(r *record) { r.Rejected = append(r.Rejected, r.Rejected[0]) },
		"rejected and not":      func(r *record) { r.Unfinished = append(r.Unfinished, unfinished{r.Rejected[0], 1}) },
		"no tries":              func(r *record) { r.Unfinished[0].Tries = 0 },
		"too many tries":        func(r *record) { r.Unfinished[0].Tries = maxUnfinished + 1 },
		"sending something new": func(r *record) { r.Sending = &tag{9, 9} },
		"no list":               func(r *record) { r.Rejected = nil },
		"too many": func(r *record) {
			for i := range maxPINs {
				r.Rejected = append(r.Rejected, tag{1, byte(i)})
			}
		},
	} {
		r := sampleRecord()
		spoil(r)
		if _, err := decode(r.encode()); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func FuzzDecode(f *testing.F) {
	good := sampleRecord().encode()
	f.Add(good)
	f.Add(newRecord("x").encode())
	f.Add(good[:len(good)/2])
	f.Add([]byte("{}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := decode(data)
		if err != nil {
			return
		}
		if !bytes.Equal(r.encode(), data) {
			t.Error("two texts mean the same record")
		}
		r.settle(true)
		r.begin(tag{7, 7})
		r.withdraw(tag{7, 7})
		r.right(tag{7, 7})
	})
}

// TestDamagedFile: whatever happened to the file, no PIN is sent, and the operator is told what helps.
func TestDamagedFile(t *testing.T) {
	for name, damage := range map[string]func(data []byte) []byte{
		"empty":       func([]byte) []byte { return nil },
		"cut":         func(data []byte) []byte { return data[:len(data)-1] },
		"half":        func(data []byte) []byte { return data[:len(data)/2] },
		"longer":      func(data []byte) []byte { return append(data, '\n') },
		"huge":        func([]byte) []byte { return make([]byte, 1<<20) },
		"one bit":     func(data []byte) []byte { data[len(data)/3] ^= 1; return data },
		"of another":  func([]byte) []byte { return sampleRecord().encode() },
		"not ours":    func([]byte) []byte { return []byte("hello\n") },
		"other end":   func(data []byte) []byte { data[len(data)-2] ^= 1; return data },
		"zero filled": func(data []byte) []byte { return make([]byte, len(data)) },
	} {
		t.Run(name, func(t *testing.T) {
			guard, c := quickGuard(newDirectory(t)), newCard("right")
			wantError(t, "wrong", login(guard.Wrap(c), "wrong"), token.ErrPINIncorrect)
			f, err := guard.open(context.Background(), serial)
			if err != nil {
				t.Fatal(err)
			}
			data, err := f.read()
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(f.path, damage(data), 0o600); err != nil {
				t.Fatal(err)
			}
			f.close()
			err = login(guard.Wrap(c), "right")
			wantError(t, "after the damage", err, token.ErrPINMemory)
			if c.sent["right"] > 0 || !strings.Contains(err.Error(), "token unblock") {
				t.Errorf("sent %d times: %v", c.sent["right"], err)
			}
			if n, err := guard.Clear(serial); n != 0 || err != nil {
				t.Errorf("cleared %d: %v", n, err)
			}
			wantError(t, "unblocked", login(guard.Wrap(c), "right"), nil)
		})
	}
}
