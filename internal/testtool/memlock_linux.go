package testtool

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// WithoutLockedMemory runs act where it can lock no page in memory: with no allowance, and without the capabilities that
// need none.
func WithoutLockedMemory(t testing.TB, act func()) {
	t.Helper()
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &before); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Setrlimit(unix.RLIMIT_MEMLOCK, &before) }()
	failed := make(chan error, 1)
	go func() {
		defer close(failed)
		runtime.LockOSThread() // and never unlocked: the thread ends without its capabilities
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			failed <- err
			return
		}
		act()
	}()
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
}
