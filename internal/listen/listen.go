// Package listen tells why a server cannot listen, the same way in each program that does.
package listen

import (
	"errors"
	"fmt"
	"syscall"

	"chancery/internal/cli"
)

// Failed returns the error of a program that cannot listen on an address: for what, and by which key of its configuration.
func Failed(what, address, key string, cause error) *cli.Error {
	told := &cli.Error{
		Exit: cli.ExitFailed, Code: "listen_failed", Cause: cause,
		Message: fmt.Sprintf("cannot listen for %s on %s: %s", what, address, cause),
		Hint:    "check " + key + " in the configuration",
	}
	switch {
	case errors.Is(cause, syscall.EADDRINUSE):
		told.Code, told.Message = "port_busy", fmt.Sprintf("cannot listen for %s on %s: another program listens there", what, address)
		told.Hint = "stop that program, or change " + key + " in the configuration"
	case errors.Is(cause, syscall.EACCES):
		told.Code = "port_denied"
		told.Hint = "ports below 1024 need CAP_NET_BIND_SERVICE, and a socket a directory that may be written to; change " + key + " in the configuration"
	}
	return told
}
