package wire_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"chancery/tunnel/wire"
)

// seed adds the golden messages of one kind to the corpus kept in testdata/fuzz.
func seed(f *testing.F, pattern string, whole bool) {
	names, err := filepath.Glob(filepath.Join("testdata", "golden", "*", pattern))
	if err != nil || len(names) == 0 {
		f.Fatal(len(names), err)
	}
	for _, name := range names {
		file, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		if !whole {
			file = file[8:]
		}
		f.Add(file)
	}
}

func FuzzReader(f *testing.F) {
	seed(f, "*.re*", true)
	f.Fuzz(func(t *testing.T, stream []byte) {
		reader := wire.NewReader(bytes.NewReader(stream), 1000)
		var again []byte
		for {
			frame, err := reader.Next()
			if errors.Is(err, wire.ErrDone) {
				again = wire.AppendDone(again)
				continue
			}
			if err != nil {
				if err == io.EOF && !bytes.Equal(again, stream) {
					t.Fatalf("%x was read as %x", stream, again)
				}
				return
			}
			again = wire.AppendFrame(again, frame)
		}
	})
}

func FuzzRequest(f *testing.F) {
	seed(f, "*.request", false)
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, extended := range []bool{false, true} {
			got, err := wire.DecodeRequest(bytes.Clone(text), extended)
			var unsupported *wire.UnsupportedError
			if (err != nil) != (got == nil) || err != nil && !errors.Is(err, wire.ErrMalformed) && !errors.As(err, &unsupported) {
				t.Fatalf("DecodeRequest = %+v, %v", got, err)
			}
			if err != nil {
				continue
			}
			if !json.Valid(text) {
				t.Fatalf("accepted %q", text)
			}
			again, err := wire.DecodeRequest(wire.AppendRequest(nil, got), extended)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(got, again, compareSecrets); diff != "" {
				t.Fatalf("changed on the way (-first +second):\n%s", diff)
			}
		}
	})
}

func FuzzResponse(f *testing.F) {
	seed(f, "*.response", false)
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := wire.DecodeResponse(text)
		if err != nil {
			if !errors.Is(err, wire.ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		again, err := wire.DecodeResponse(wire.AppendResponse(nil, got, true))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(got, again); diff != "" {
			t.Fatalf("changed on the way (-first +second):\n%s", diff)
		}
	})
}
