package main

import (
	"golang.org/x/sys/unix"

	"chancery/internal/cli"
)

// hideMemory keeps PINs and passphrases out of core files, and out of reach of
// other processes of the same user: a process that is not dumpable can be neither
// traced nor read through /proc/PID/mem without CAP_SYS_PTRACE (prctl(2), PR_SET_DUMPABLE).
func hideMemory() error {
	if err := cli.ForbidCoreDumps(); err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
}
