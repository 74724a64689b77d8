package wire_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"testing"
	"testing/iotest"

	"chancery/tunnel/wire"
)

func TestReaderCutsFramesHoweverTheyArrive(t *testing.T) {
	long := bytes.Repeat([]byte("x"), 100_000)
	stream := wire.AppendFrame(nil, []byte("one"))
	stream = wire.AppendFrame(stream, long)
	stream = wire.AppendFrame(stream, []byte("three"))
	stream = wire.AppendDone(stream)
	for name, source := range map[string]io.Reader{
		"at once":        bytes.NewReader(stream),
		"byte by byte":   iotest.OneByteReader(bytes.NewReader(stream)),
		"in halves":      iotest.HalfReader(bytes.NewReader(stream)),
		"EOF with bytes": iotest.DataErrReader(bytes.NewReader(stream)),
	} {
		t.Run(name, func(t *testing.T) {
			reader := wire.NewReader(source, len(long))
			for _, want := range [][]byte{[]byte("one"), long, []byte("three")} {
				if err := reader.Wait(); err != nil {
					t.Fatal(err)
				}
				got, err := reader.Next()
				if err != nil || !bytes.Equal(got, want) {
					t.Fatalf("Next = %d bytes, %v; want %d bytes", len(got), err, len(want))
				}
			}
			if _, err := reader.Next(); !errors.Is(err, wire.ErrDone) {
				t.Errorf("Next = %v, want ErrDone", err)
			}
			if err := reader.Wait(); err != io.EOF {
				t.Errorf("Wait = %v, want io.EOF", err)
			}
			if _, err := reader.Next(); err != io.EOF {
				t.Errorf("Next = %v, want io.EOF", err)
			}
		})
	}
}

func TestReaderTellsATruncatedFrame(t *testing.T) {
	frame := wire.AppendFrame(nil, []byte("payload"))
	for n := 1; n < len(frame); n++ {
		if _, err := wire.NewReader(bytes.NewReader(frame[:n]), 100).Next(); err != io.ErrUnexpectedEOF {
			t.Errorf("after %d bytes: %v, want io.ErrUnexpectedEOF", n, err)
		}
	}
}

func TestReaderRefusesLongFrames(t *testing.T) {
	for _, length := range []uint64{wire.MaxRequest + 1, 1 << 40, 1 << 63, 1<<64 - 1} {
		header := binary.BigEndian.AppendUint64(nil, length)
		if _, err := wire.NewReader(bytes.NewReader(header), wire.MaxRequest).Next(); !errors.Is(err, wire.ErrTooLarge) {
			t.Errorf("length %d: %v, want ErrTooLarge", length, err)
		}
	}
	exact := wire.AppendFrame(nil, make([]byte, wire.MaxRequest))
	if got, err := wire.NewReader(bytes.NewReader(exact), wire.MaxRequest).Next(); err != nil || len(got) != wire.MaxRequest {
		t.Errorf("a frame of exactly the limit: %d bytes, %v", len(got), err)
	}
}

func TestReaderAllocatesOnlyForWhatArrived(t *testing.T) {
	announced := binary.BigEndian.AppendUint64(nil, wire.MaxResponse)
	announced = append(announced, make([]byte, 1000)...)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := wire.NewReader(bytes.NewReader(announced), wire.MaxResponse).Next()
	runtime.ReadMemStats(&after)
	if err != io.ErrUnexpectedEOF {
		t.Fatal(err)
	}
	if got := after.TotalAlloc - before.TotalAlloc; got > 1<<20 {
		t.Errorf("1000 bytes of an announced 64 MiB made it allocate %d bytes", got)
	}
}

func TestReaderWipesTheFrameItLent(t *testing.T) {
	stream := wire.AppendFrame(wire.AppendFrame(nil, []byte("secret")), []byte("next"))
	reader := wire.NewReader(bytes.NewReader(stream), 100)
	first, err := reader.Next()
	if err != nil {
		t.Fatal(err)
	}
	if !reader.Ready() {
		t.Error("the second frame has arrived and Ready says no")
	}
	if _, err := reader.Next(); err != nil {
		t.Fatal(err)
	}
	if reader.Ready() {
		t.Error("there is no third frame and Ready says yes")
	}
	if !bytes.Equal(first, make([]byte, 6)) {
		t.Errorf("the first frame still holds %q", first)
	}
}

func TestReaderGoesOnAfterADeadline(t *testing.T) {
	frame := wire.AppendFrame(nil, []byte("payload"))
	source := io.MultiReader(bytes.NewReader(frame[:10]), iotest.TimeoutReader(iotest.OneByteReader(bytes.NewReader(frame[10:]))))
	reader := wire.NewReader(source, 100)
	if _, err := reader.Next(); !errors.Is(err, iotest.ErrTimeout) {
		t.Fatalf("Next = %v, want the timeout", err)
	}
	got, err := reader.Next()
	if err != nil || string(got) != "payload" {
		t.Errorf("Next = %q, %v", got, err)
	}
}

func TestReaderGivesUpOnASilentSource(t *testing.T) {
	if _, err := wire.NewReader(silent{}, 100).Next(); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("Next = %v, want io.ErrNoProgress", err)
	}
}

type silent struct{}

func (silent) Read([]byte) (int, error) { return 0, nil }
