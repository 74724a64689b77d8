package observe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestValidate(t *testing.T) {
	for _, test := range []struct {
		address string
		any     bool
		want    string // "" for fine
	}{
		{"", false, ""},
		{"127.0.0.1:9464", false, ""},
		{"[::1]:9464", false, ""},
		{"localhost:9464", false, ""},
		{"unix:/run/chancery/observe.sock", false, ""},
		{"0.0.0.0:9464", true, ""},
		{":9464", true, ""},
		{"0.0.0.0:9464", false, "unsafe_any_address"},
		{":9464", false, "unsafe_any_address"},
		{"[::]:9464", false, "unsafe_any_address"},
		{"192.0.2.1:9464", false, "unsafe_any_address"},
		{"127.0.0.1", false, "neither host:port"},
		{"127.0.0.1:", false, "neither host:port"},
		{"unix:observe.sock", false, "starts with a slash"},
	} {
		err := Validate(test.address, test.any)
		if test.want == "" && err != nil || test.want != "" && (!errors.Is(err, ErrAddress) || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("Validate(%q, %t): %v; want %q", test.address, test.any, err, test.want)
		}
	}
}

func TestListenRefusesWhatOthersReach(t *testing.T) {
	for _, address := range []string{"0.0.0.0:0", ":0", "[::]:0"} {
		if l, err := Listen(address, false); !errors.Is(err, ErrAddress) {
			t.Errorf("%s: %v, %v", address, l, err)
		}
	}
	l, err := Listen("127.0.0.1:0", false)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := Listen(l.Addr().String(), false); !errors.Is(err, ErrAddress) {
		t.Errorf("a busy port: %v", err)
	}
}

func TestUnixSocket(t *testing.T) {
	directory, err := os.MkdirTemp("", "observe")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(directory)
	path := filepath.Join(directory, "s")
	l, err := Listen("unix:"+path, false)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != socketMode {
		t.Errorf("%v, %v", info, err)
	}
	if _, err := Listen("unix:"+path, false); err == nil || !strings.Contains(err.Error(), "another process listens") {
		t.Errorf("a second listener: %v", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // as if killed
	l.Close()
	l, err = Listen("unix:"+path, false)
	if err != nil {
		t.Fatalf("a stale socket: %v", err)
	}
	l.Close()
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen("unix:"+path, false); err == nil {
		t.Error("a file was taken for a stale socket")
	}
	if kept, _ := os.ReadFile(path); string(kept) != "precious" {
		t.Error("a file was removed")
	}
}

func get(t *testing.T, handler http.Handler, path string) (int, string) {
	t.Helper()
	recorder := httptest.NewRecorder()
	handler.ServeHTTP(recorder, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, http.NoBody))
	return recorder.Code, recorder.Body.String()
}

func TestPage(t *testing.T) {
	var dead, idle atomic.Bool
	failing := func(when *atomic.Bool, text string) func(context.Context) error {
		return func(context.Context) error {
			if when.Load() {
				return errors.New(text)
			}
			return nil
		}
	}
	page := Page{
		Registry: NewRegistry(Build{Program: "test", Version: "1", Commit: "c", Go: "go"}),
		Alive:    []Check{{Name: "loops", Probe: failing(&dead, "stuck")}},
		Ready:    []Check{{Name: "legs", Probe: failing(&idle, "none\nwaits")}},
		Log:      quiet(),
	}
	handler := page.Handler()
	if code, body := get(t, handler, "/metrics"); code != 200 || !strings.Contains(body, `chancery_build_info{commit="c",go="go",program="test",version="1"} 1`) ||
		!strings.Contains(body, "go_goroutines") {
		t.Errorf("metrics: %d\n%s", code, body)
	}
	for _, step := range []struct {
		dead, idle      bool
		healthy, ready  int
		health, readyIs string
	}{
		{false, false, 200, 200, "loops: ok\n", "loops: ok\nlegs: ok\n"},
		{false, true, 200, 503, "loops: ok\n", "loops: ok\nlegs: failed: none waits\n"},
		{true, false, 503, 503, "loops: failed: stuck\n", "loops: failed: stuck\nlegs: ok\n"},
	} {
		dead.Store(step.dead)
		idle.Store(step.idle)
		if code, body := get(t, handler, "/healthz"); code != step.healthy || body != step.health {
			t.Errorf("healthz: %d %q; want %d %q", code, body, step.healthy, step.health)
		}
		if code, body := get(t, handler, "/readyz"); code != step.ready || body != step.readyIs {
			t.Errorf("readyz: %d %q; want %d %q", code, body, step.ready, step.readyIs)
		}
	}
	for _, path := range []string{"/", "/debug/pprof/", "/metrics/x"} {
		if code, _ := get(t, handler, path); code != http.StatusNotFound {
			t.Errorf("%s: %d", path, code)
		}
	}
}

// TestOneProbeAtATime hangs a probe: whoever asks gets an answer at the deadline, and no second probe begins.
func TestOneProbeAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var probes atomic.Int32
		release := make(chan struct{})
		a := newAsker(Check{Name: "canary", Keep: 10 * time.Second, Deadline: 2 * time.Second, Probe: func(context.Context) error {
			if probes.Add(1) == 1 {
				<-release // heeds no context, as a hung token
			}
			return nil
		}})
		for range 5 {
			if err := a.ask(t.Context()); !errors.Is(err, errSilent) {
				t.Fatalf("a hanging probe: %v", err)
			}
		}
		began := time.Now()
		if err := a.ask(t.Context()); !errors.Is(err, errSilent) || time.Since(began) != 0 {
			t.Errorf("after the deadline: %v after %s", err, time.Since(began))
		}
		close(release)
		synctest.Wait()
		if err := a.ask(t.Context()); !errors.Is(err, errSilent) {
			t.Errorf("good news that came too late: %v", err)
		}
		if n := probes.Load(); n != 1 {
			t.Errorf("%d probes", n)
		}
		time.Sleep(10 * time.Second)
		for range 3 {
			if err := a.ask(t.Context()); err != nil {
				t.Errorf("after it answers again: %v", err)
			}
		}
		if n := probes.Load(); n != 2 {
			t.Errorf("%d probes; an answer is good for a while", n)
		}
		time.Sleep(10 * time.Second)
		_ = a.ask(t.Context())
		if n := probes.Load(); n != 3 {
			t.Errorf("%d probes; an answer does not stay good", n)
		}
	})
}

func TestServe(t *testing.T) {
	l, err := Listen("127.0.0.1:0", false)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	page := Page{Registry: prometheus.NewRegistry(), Log: quiet()}
	go func() { ended <- page.Serve(ctx, l) }()
	// Silent connections beyond the limit keep nobody out for good: they are cut by the server's timeouts.
	for range maxConnections - 1 {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	response, err := http.Get(fmt.Sprintf("http://%s/healthz", l.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, response.Body)
	response.Body.Close()
	if response.StatusCode != 200 {
		t.Errorf("status %s", response.Status)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestSnapshot(t *testing.T) {
	type state struct {
		waiting int
		total   uint64
		tokens  []string
	}
	taken := 0
	s := NewSnapshot(func() state { taken++; return state{waiting: 3, total: 7, tokens: []string{"a", "b"}} })
	s.Gauge("x_waiting", "W.", func(s state) float64 { return float64(s.waiting) })
	s.Counter("x_total", "T.", func(s state) float64 { return float64(s.total) })
	s.Gauges("x_token", "K.", []string{"token"}, func(s state) (values []Value) {
		for i, name := range s.tokens {
			values = append(values, Value{float64(i), []string{name}})
		}
		return values
	})
	want := `
# HELP x_token K.
# TYPE x_token gauge
x_token{token="a"} 0
x_token{token="b"} 1
# HELP x_total T.
# TYPE x_total counter
x_total 7
# HELP x_waiting W.
# TYPE x_waiting gauge
x_waiting 3
`
	if err := testutil.CollectAndCompare(s, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
	if taken != 1 {
		t.Errorf("one scrape took %d snapshots", taken)
	}
}

func TestRecent(t *testing.T) {
	var out bytes.Buffer
	recent := NewRecent(3)
	log := recent.Logger(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelError})))
	log.Info("nothing special")
	log.Warn("first")
	session := log.With("session", "s-1", "user", "alice")
	session.Warn("request refused", "code", "busy", "error", errors.New("too\nmany"))
	log.Error("second", "big", strings.Repeat("x", 10*maxDetails))
	log.Warn("third")
	list := recent.List()
	var told []string
	for _, trouble := range list {
		told = append(told, trouble.Level+" "+trouble.Message)
	}
	if got, want := strings.Join(told, ", "), "WARN third, ERROR second, WARN request refused"; got != want {
		t.Errorf("kept %q; want %q", got, want)
	}
	if got := list[2]; got.Session != "s-1" || got.Details != `user="alice" code="busy" error="too\nmany"` || got.Time.IsZero() {
		t.Errorf("details: %+v", got)
	}
	if n := len(list[1].Details); n > maxDetails+10 {
		t.Errorf("%d bytes of details", n)
	}
	if text := out.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "msg=second") {
		t.Errorf("the log's own level counts for the log: %s", text)
	}
}
