//go:build unix

package cli

import (
	"os"

	"golang.org/x/sys/unix"
)

func openTerminal() (*os.File, error) { return os.OpenFile("/dev/tty", os.O_RDWR, 0) }

// ForbidCoreDumps keeps secrets in memory out of core files. Programs call it first thing.
func ForbidCoreDumps() error {
	return unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
}
