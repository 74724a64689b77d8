package cli

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// Await returns what read returns, or an error with the code canceled when SIGINT or SIGTERM comes before. Reads
// from a terminal or a pipe cannot be stopped: such a one is left behind for the end of the program.
func Await[T any](read func() (T, error)) (T, error) {
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(interrupts)
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		value, err := read()
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-interrupts:
		var none T
		return none, &Error{Exit: ExitFailed, Code: "canceled", Message: "canceled", Cause: context.Canceled}
	}
}
