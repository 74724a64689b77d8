// Package testtool finds the external programs that tests drive. A laptop
// without one of them skips the test; with CI set, a missing tool is a
// failure, so that a green run means that everything ran.
package testtool

import (
	"os"
	"os/exec"
	"testing"
)

// Need returns the absolute path of the named program, or ends the test:
// with a skip where CI is unset, with a failure where it is set.
func Need(t testing.TB, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		Missing(t, program)
	}
	return path
}

// Missing ends the test because something it needs is not installed: with a
// skip where CI is unset, with a failure where it is set.
func Missing(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf("%s is missing, and with CI set every tool must be there; run ./bootstrap test", what)
	}
	t.Skipf("%s is missing; ./bootstrap test installs it", what)
}
