//go:build unix

package scripttest

import (
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// Main is the TestMain of a program's package: run is the program, which scripts and [os/exec] find by its name, and
// more are other programs.
func Main(m *testing.M, program string, run func() int, more map[string]func()) {
	programs := map[string]func(){program: func() {
		// Away from the developer's terminal: only a script's own may be asked.
		_, _ = unix.Setsid()
		os.Exit(run())
	}}
	for name, run := range more {
		programs[name] = run
	}
	testscript.Main(m, programs)
}
