//go:build unix

package seal

import "syscall"

// openFlags keep a named pipe in the place of a secret from holding the process.
const openFlags = syscall.O_NONBLOCK
