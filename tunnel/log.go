package tunnel

import (
	"sync"
	"time"
)

// Logger is what this package and the bridge log to: a message and pairs of
// key and value. A *slog.Logger is one.
type Logger interface {
	Debug(msg string, args ...any)
	Info(msg string, args ...any)
	Warn(msg string, args ...any)
	Error(msg string, args ...any)
}

// Discard returns a Logger that drops everything.
func Discard() Logger { return discard{} }

type discard struct{}

func (discard) Debug(string, ...any) {}
func (discard) Info(string, ...any)  {}
func (discard) Warn(string, ...any)  {}
func (discard) Error(string, ...any) {}

// Throttle returns a Logger that passes at most burst messages in each
// interval on to log. It is for what strangers can cause: the first message
// after a silence carries the number that were left out as "suppressed".
func Throttle(log Logger, burst int, interval time.Duration) Logger {
	return &throttle{log: log, burst: burst, interval: interval}
}

type throttle struct {
	log      Logger
	burst    int
	interval time.Duration

	mu         sync.Mutex
	began      time.Time
	passed     int
	suppressed int
}

func (t *throttle) Debug(msg string, args ...any) { t.pass(t.log.Debug, msg, args) }
func (t *throttle) Info(msg string, args ...any)  { t.pass(t.log.Info, msg, args) }
func (t *throttle) Warn(msg string, args ...any)  { t.pass(t.log.Warn, msg, args) }
func (t *throttle) Error(msg string, args ...any) { t.pass(t.log.Error, msg, args) }

func (t *throttle) pass(emit func(string, ...any), msg string, args []any) {
	t.mu.Lock()
	now := time.Now()
	if now.Sub(t.began) >= t.interval {
		t.began, t.passed = now, 0
	}
	if t.passed >= t.burst {
		t.suppressed++
		t.mu.Unlock()
		return
	}
	t.passed++
	suppressed := t.suppressed
	t.suppressed = 0
	t.mu.Unlock()
	if suppressed > 0 {
		args = append(args[:len(args):len(args)], "suppressed", suppressed)
	}
	emit(msg, args...)
}
