package signer

import (
	"context"
	"errors"
	"log/slog"
	"testing"
)

// A service manager may change its mind while the server starts: that is an orderly end, not a failure to read the store.
func TestAnEndDuringTheStartIsOrderly(t *testing.T) {
	w := &world{t: t, token: &fakeToken{serial: "S1", pin: tokenPIN}}
	server, err := New(Config{Store: &fakeStore{revision: 1}, Open: w.token.open, Audit: &fakeAudit{}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	accept := func(context.Context) (Conn, error) { return nil, errors.New("nobody is accepted any more") }
	if err := server.Serve(ctx, accept); err != nil {
		t.Errorf("the end is told as %v", err)
	}
}
