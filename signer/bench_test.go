package signer

import (
	"context"
	"log/slog"
	"net"
	"testing"
	"time"

	"chancery/token"
	"chancery/tunnel"
	"chancery/tunnel/wire"
)

// BenchmarkPipelinedSigns measures P-256 signatures of one connection over
// loopback TCP without TLS, with 64 requests on their way at any time.
func BenchmarkPipelinedSigns(b *testing.B) {
	const pipelined = 64
	w := &world{t: b, token: &fakeToken{serial: "S1", pin: tokenPIN}, keys: map[token.Algorithm]*fakeKey{}, store: &fakeStore{revision: 1}, conns: make(chan Conn)}
	w.populate()
	server, err := New(Config{Store: w.store, Open: w.token.open, Audit: &fakeAudit{}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(b.Context())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, w.accept) }()
	c := w.dial(b)
	for refused := true; refused; time.Sleep(10 * time.Millisecond) { // until the token is open
		_, refused = c.call(unlockRequest("p256", passphrase)).(*wire.Error)
	}
	window := make(chan struct{}, pipelined)
	frame, _ := c.encode(nil, signRequest("p256"))
	b.ResetTimer()
	go func() {
		for range b.N {
			window <- struct{}{}
			_, _ = c.conn.Write(frame)
		}
	}()
	for range b.N {
		if _, err := c.frames.Next(); err != nil {
			b.Fatal(err)
		}
		<-window
	}
	b.StopTimer()
	stop()
	if err := <-served; err != nil {
		b.Fatal(err)
	}
}

func (w *world) dial(b *testing.B) *client {
	b.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer listener.Close()
	near, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	far, err := listener.Accept()
	if err != nil {
		b.Fatal(err)
	}
	w.conns <- &fakeConn{Conn: far, name: "alice", session: tunnel.NewSessionID(), extended: true}
	b.Cleanup(func() { near.Close() })
	return &client{t: b, conn: near, frames: wire.NewReader(near, wire.MaxResponse)}
}
