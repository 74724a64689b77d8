package main

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"chancery/internal/canary"
	"chancery/internal/observe"
	"chancery/signer"
	"chancery/tunnel"
)

func TestObserveConfig(t *testing.T) {
	fine := func() observeConfig { return defaultConfig().Observe }
	for _, test := range []struct {
		change func(*observeConfig)
		want   string // "" for fine
	}{
		{func(*observeConfig) {}, ""},
		{func(o *observeConfig) { o.Listen = "127.0.0.1:9465" }, ""},
		{func(o *observeConfig) { o.Listen = ":9465" }, "unsafe_any_address"},
		{func(o *observeConfig) { o.Listen, o.UnsafeAnyAddress = ":9465", true }, ""},
		{func(o *observeConfig) { o.CanaryDeadline = 0 }, "canary_deadline"},
		{func(o *observeConfig) { o.CanaryKey = "canary" }, "canary_user"},
		{func(o *observeConfig) { o.CanaryKey, o.CanaryUser = "canary", "canary" }, "canary_passphrase_file"},
		{func(o *observeConfig) {
			o.CanaryKey, o.CanaryUser, o.CanaryPassphraseCredential = "canary", "canary", "canary"
		}, ""},
	} {
		o := fine()
		test.change(&o)
		err := o.validate()
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%+v: %v; want %q", o, err, test.want)
		}
	}
}

func TestPresent(t *testing.T) {
	if err := present(nil); err != nil {
		t.Error(err)
	}
	err := present([]signer.TokenStatus{{Name: "a", State: signer.StateReady}, {Name: "b", State: signer.StateAbsent}})
	if err == nil || !strings.Contains(err.Error(), `"b" is absent`) || strings.Contains(err.Error(), `"a"`) {
		t.Error(err)
	}
}

// TestDoorLetsTheCanaryIn accepts from a bridge that never pairs anybody, and the canary all the same.
func TestDoorLetsTheCanaryIn(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	listener := tunnel.Listen(ctx, &tunnel.Config{Bridge: silent.Addr().String()}, 1) // without TLS settings it cannot work
	defer listener.Close()
	d := &door{listener: listener, gate: canary.NewGate()}
	if _, err := d.accept(ctx); err == nil {
		t.Error("a client came out of nowhere")
	}
	bird := &canary.Conn{}
	d.pending = bird
	if conn, err := d.accept(ctx); err != nil || conn != signer.Conn(bird) {
		t.Errorf("the one that waited: %v, %v", conn, err)
	}
	if d.pending != nil {
		t.Error("it is let in twice")
	}
	cancel()
	if _, err := d.accept(ctx); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("after the end: %v", err)
	}
}

func TestStatusShowsQueueAndTroubles(t *testing.T) {
	at := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	live := liveStatus{
		Signer: signer.Status{
			Queued: 3, Signing: 5, Derivations: signer.DerivationsStatus{Running: 2, Waiting: 4},
			Store: signer.StoreStatus{Good: at, Error: "the disk fails"},
		},
		Troubles: []observe.Trouble{{Time: at, Level: "WARN", Message: "request refused", Session: "s-1", Details: `code="busy"`}},
	}
	var text strings.Builder
	for _, f := range live.fields() {
		text.WriteString(f.name + ": " + f.value + "\n")
	}
	for _, want := range []string{
		"queue: 3 requests wait for room, 2 passphrases are checked and 4 wait for that, 5 signatures are in a token; the database cannot be read since",
		`request refused session=s-1 code="busy"`,
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("%q is missing in:\n%s", want, &text)
		}
	}
}
