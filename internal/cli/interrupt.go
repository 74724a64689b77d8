package cli

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"
)

// endings are the signals that end what the program waits for. A daemon has SIGHUP for something else.
var endings = []os.Signal{os.Interrupt, syscall.SIGTERM}

// Interrupts returns a context that ends with the first SIGINT, SIGTERM or SIGHUP, as suits a program that works
// for somebody at a terminal and has to tidy up; the next one ends the program at once. SIGHUP stays ignored
// where it is, as below nohup. It is called once, before anything waits.
func Interrupts() (context.Context, context.CancelFunc) {
	if !signal.Ignored(syscall.SIGHUP) {
		endings = append(endings, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), endings...)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}

// Await returns what read returns, or an error with the code canceled when a signal comes before that ends the program.
// Reads from a terminal or a pipe cannot be stopped: such a one is left behind for the end of the program.
func Await[T any](read func() (T, error)) (T, error) {
	ctx, stop := signal.NotifyContext(context.Background(), endings...)
	defer stop()
	value, err := Within(ctx, read)
	if errors.Is(err, context.Canceled) {
		return value, &Error{Exit: ExitFailed, Code: "canceled", Message: "canceled", Cause: context.Canceled}
	}
	return value, err
}

// Within returns what act returns, or ctx's error when that ends before; act is then left behind for the end of the program.
func Within[T any](ctx context.Context, act func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		value, err := act()
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}
