package audit

import (
	"context"
	"math"
)

// End returns the place of a log's last record, to be kept on another host and given to Verify
// later. It reads the last segment only, and fails where the chain is broken there; it does
// not wait for whoever appends, and is 0 for a log without records.
func End(ctx context.Context, directory string) (Head, error) {
	var failed error
	r := &reader{
		ctx: ctx, directory: directory, filter: Filter{After: math.MaxUint64 - 1},
		yield: func(_ Entry, err error) bool { failed = err; return err == nil },
	}
	r.pass()
	if failed == nil {
		failed = context.Cause(ctx)
	}
	return r.checker.last, failed
}
