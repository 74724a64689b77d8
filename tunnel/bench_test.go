package tunnel_test

import (
	"context"
	"fmt"
	"io"
	"testing"

	"chancery/tunnel"
)

// BenchmarkConnect times a connect with both sessions, one at a time.
func BenchmarkConnect(b *testing.B) {
	w := newWorld(b, 8, nil)
	cfg := w.Client(w.bridge, "alice")
	for b.Loop() {
		conn, err := tunnel.Dial(context.Background(), cfg)
		if err != nil {
			b.Fatal(err)
		}
		conn.Close()
	}
}

// BenchmarkConnectParallel times many at once.
func BenchmarkConnectParallel(b *testing.B) {
	w := newWorld(b, 32, nil)
	cfg := w.Client(w.bridge, "alice")
	b.SetParallelism(16)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			conn, err := tunnel.Dial(context.Background(), cfg)
			if err != nil {
				b.Error(err)
				return
			}
			conn.Close()
		}
	})
}

// BenchmarkEcho times round trips on one connection.
func BenchmarkEcho(b *testing.B) {
	for _, size := range []int{300, 16 << 10} {
		b.Run(fmt.Sprintf("%dB", size), func(b *testing.B) {
			w := newWorld(b, 1, nil)
			conn := dial(b, w.Client(w.bridge, "alice"))
			message := make([]byte, size)
			b.SetBytes(int64(size))
			for b.Loop() {
				if _, err := conn.Write(message); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(conn, message); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkEchoPipelined has many small messages in flight on one connection.
func BenchmarkEchoPipelined(b *testing.B) {
	const size = 300
	w := newWorld(b, 1, nil)
	conn := dial(b, w.Client(w.bridge, "alice"))
	b.SetBytes(size)
	b.ResetTimer()
	go func() {
		message := make([]byte, size)
		for range b.N {
			if _, err := conn.Write(message); err != nil {
				return
			}
		}
	}()
	if _, err := io.CopyN(io.Discard, conn, int64(b.N)*size); err != nil {
		b.Fatal(err)
	}
}
