package audit

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
)

// BenchmarkAppend shows how syncs are shared: compare with BenchmarkFdatasync of the same run.
func BenchmarkAppend(b *testing.B) {
	for _, callers := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			var syncs atomic.Int64
			counting := &faultyFS{FS: disk{}, hook: func(operation, _ string) error {
				if operation == "sync" {
					syncs.Add(1)
				}
				return nil
			}}
			l := open(b, Config{Directory: directory(b), FS: counting})
			appendFrom(b, l, callers)
			b.ReportMetric(float64(b.N)/float64(syncs.Load()), "records/sync")
		})
	}
}

func appendFrom(b *testing.B, l *Log, callers int) {
	var left atomic.Int64
	left.Store(int64(b.N))
	done := make(chan error)
	b.ResetTimer()
	for range callers {
		go func() {
			for left.Add(-1) >= 0 {
				if _, err := l.Append(b.Context(), sign("alice")); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range callers {
		if err := <-done; err != nil {
			b.Error(err)
		}
	}
	b.StopTimer()
}

// BenchmarkFdatasync appends as many bytes as a record has to a bare file.
func BenchmarkFdatasync(b *testing.B) {
	body, err := encodeBody(sign("alice"))
	if err != nil {
		b.Fatal(err)
	}
	line, _ := appendLine(nil, Head{}, 1, body)
	f, err := os.OpenFile(filepath.Join(b.TempDir(), "bare"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	for b.Loop() {
		if _, err := f.Write(line); err != nil {
			b.Fatal(err)
		}
		if err := syncData(f); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkVerify tells bytes a second.
func BenchmarkVerify(b *testing.B) {
	dir := directory(b)
	l := open(b, Config{Directory: dir})
	var wait sync.WaitGroup
	for range 64 {
		wait.Go(func() {
			for range 100 {
				if _, err := l.Append(b.Context(), sign("alice")); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wait.Wait()
	taken, err := takeSnapshot(dir)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(taken.segments[0].size)
	for b.Loop() {
		mustVerify(b, dir, l.Head())
	}
}
