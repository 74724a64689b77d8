package notify

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

const patience = 10 * time.Second

// systemd stands in for the service manager: it receives what New's Manager tells.
func systemd(t *testing.T) *net.UnixConn {
	t.Helper()
	directory, err := os.MkdirTemp("", "notify") // t.TempDir may be longer than a socket's path may be
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(directory) })
	path := filepath.Join(directory, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Skipf("no datagram sockets here: %v", err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return conn
}

func receive(t *testing.T, conn *net.UnixConn) string {
	t.Helper()
	buffer := make([]byte, 4096)
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	n, err := conn.Read(buffer)
	if err != nil {
		t.Fatal(err)
	}
	return string(buffer[:n])
}

func TestWhatSystemdIsTold(t *testing.T) {
	conn := systemd(t)
	m := New(slog.New(slog.DiscardHandler))
	for _, test := range []struct {
		name string
		tell func()
		want string
	}{
		{"ready", func() { m.Ready("listening on :44334") }, `READY=1\nSTATUS=listening on :44334`},
		{"ready without a sentence", func() { m.Ready("") }, `READY=1`},
		{"reloading", func() { m.Reloading("reading certificates") }, `RELOADING=1\nMONOTONIC_USEC=[1-9][0-9]*\nSTATUS=reading certificates`},
		{"stopping", func() { m.Stopping("draining") }, `STOPPING=1\nSTATUS=draining`},
		{"status", func() { m.Status("3 sessions") }, `STATUS=3 sessions`},
		{"a status of two lines", func() { m.Status("one\nMAINPID=1\n") }, `STATUS=one MAINPID=1`},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.tell()
			if got := receive(t, conn); !regexp.MustCompile("^" + test.want + "$").MatchString(got) {
				t.Errorf("got %q; want %q", got, test.want)
			}
		})
	}
}

func TestWatchdogHearsOnlyOfTheLiving(t *testing.T) {
	conn := systemd(t)
	t.Setenv("WATCHDOG_USEC", "20000")
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	var stuck atomic.Bool
	failed := make(chan struct{}, 1)
	m := New(slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		m.Watch(ctx, func() error {
			if !stuck.Load() {
				return nil
			}
			select {
			case failed <- struct{}{}:
			default:
			}
			return errors.New("stuck")
		})
	}()
	for range 3 {
		if got := receive(t, conn); got != "WATCHDOG=1" {
			t.Fatalf("got %q", got)
		}
	}
	stuck.Store(true)
	<-failed
	<-failed // whatever was sent before the first failure has been sent
	for drained := false; !drained; {
		_ = conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		_, err := conn.Read(make([]byte, 100))
		drained = err != nil
	}
	stuck.Store(false)
	if got := receive(t, conn); got != "WATCHDOG=1" {
		t.Fatalf("after it came to life again: %q", got)
	}
	cancel()
	<-ended
}

func TestStopIsToldOnceAndBeforeTheEnd(t *testing.T) {
	conn := systemd(t)
	m := New(slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	stop := m.StopWith(ctx, "draining")
	cancel()
	stop()
	m.Status("after it")
	for _, want := range []string{"STOPPING=1\nSTATUS=draining", "STATUS=after it"} {
		if got := receive(t, conn); got != want {
			t.Errorf("got %q; want %q", got, want)
		}
	}
}

func TestWithoutSystemdNothingHappens(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	t.Setenv("WATCHDOG_USEC", "")
	var log bytes.Buffer
	m := New(slog.New(slog.NewTextHandler(&log, nil)))
	m.Ready("x")
	m.Stopping("x")
	m.Watch(t.Context(), func() error { t.Error("asked without a watchdog"); return nil })
	if log.Len() > 0 {
		t.Errorf("logged: %s", &log)
	}
}

func TestWatchdogOfAnotherProcess(t *testing.T) {
	t.Setenv("WATCHDOG_USEC", "1000")
	t.Setenv("WATCHDOG_PID", "1")
	New(slog.New(slog.DiscardHandler)).Watch(t.Context(), func() error { t.Error("asked for another process's watchdog"); return nil })
}

func TestUnreachableManagerIsLoggedOnce(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "nobody"))
	var log bytes.Buffer
	m := New(slog.New(slog.NewTextHandler(&log, nil)))
	m.Ready("")
	m.Status("still here")
	if n := strings.Count(log.String(), "cannot be told"); n != 1 {
		t.Errorf("logged %d times: %s", n, &log)
	}
}
