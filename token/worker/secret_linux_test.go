package worker

import (
	"bytes"
	"log/slog"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestAPINThatCannotBeLockedIsTold leaves the process nothing to lock: the log says so, once, and nothing of the PIN.
func TestAPINThatCannotBeLockedIsTold(t *testing.T) {
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &before); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Setrlimit(unix.RLIMIT_MEMLOCK, &before) }()
	var log bytes.Buffer
	v := NewVault(nil, slog.New(slog.NewTextHandler(&log, nil)))
	kept := make(chan struct{})
	go func() {
		defer close(kept)
		runtime.LockOSThread() // and never unlocked: the thread ends without its capabilities
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			t.Error(err)
			return
		}
		v.keepPIN([]byte(rightPIN))
		v.keepPIN([]byte(rightPIN))
	}()
	<-kept
	v.forgetKept()
	if text := log.String(); strings.Count(text, "may be swapped out") != 1 || strings.Contains(text, rightPIN) {
		t.Errorf("the log says %q", text)
	}
}
