// Package notify tells systemd how a service is: ready, reloading, stopping,
// a status sentence, and that it is alive (sd_notify(3)). Without systemd, and
// on systems that have none, it does nothing.
//
// The unit says Type=notify or notify-reload, and WatchdogSec= if a service that
// is stuck shall be killed and started again.
package notify

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// Manager is the service manager that started this process, or nobody. Its
// methods may be called by many goroutines. What cannot be told is logged once:
// a service works without being watched.
type Manager struct {
	log  *slog.Logger
	once sync.Once
}

// New returns the manager that the environment names ($NOTIFY_SOCKET).
func New(log *slog.Logger) *Manager { return &Manager{log: log} }

// Ready tells that the service serves, or serves again after Reloading.
func (m *Manager) Ready(status string) { m.tell(daemon.SdNotifyReady, statusLine(status)) }

// Reloading tells that the configuration is being read again. Ready must follow.
func (m *Manager) Reloading(status string) {
	// Type=notify-reload wants the moment on the clock that it compares with its own.
	m.tell(daemon.SdNotifyReloading, strings.TrimSuffix(daemon.SdNotifyMonotonicUsec(), "\n"), statusLine(status))
}

// Stopping tells that the service ends by itself.
func (m *Manager) Stopping(status string) { m.tell(daemon.SdNotifyStopping, statusLine(status)) }

// StopWith tells that the service stops, with the sentence, when ctx ends or when the returned
// function is called, whichever comes first; the function returns once that is told.
func (m *Manager) StopWith(ctx context.Context, status string) (stop func()) {
	stop = sync.OnceFunc(func() { m.Stopping(status) })
	context.AfterFunc(ctx, stop)
	return stop
}

// Status sets the sentence that `systemctl status` shows.
func (m *Manager) Status(status string) { m.tell(statusLine(status)) }

// Watch tells the manager at half of its watchdog's time that the service is
// alive, as long as alive returns nil, until ctx ends. An alive that does not return
// counts as one that fails. Without a watchdog Watch returns at once.
func (m *Manager) Watch(ctx context.Context, alive func() error) {
	limit, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		m.log.Warn("the watchdog's time cannot be read; nothing watches this service", "error", err)
		return
	}
	if limit <= 0 {
		return
	}
	ticker := time.NewTicker(max(limit/2, time.Millisecond))
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if err := alive(); err != nil {
			m.log.Error("not alive; the watchdog is left to act", "error", err, "watchdog", limit)
		} else {
			m.tell(daemon.SdNotifyWatchdog)
		}
	}
}

// statusLine is one line, whatever the sentence holds: a second would be an assignment of its own.
func statusLine(status string) string {
	if status == "" {
		return ""
	}
	return "STATUS=" + strings.Join(strings.Fields(status), " ")
}

// tell sends the assignments that are not empty in one datagram.
func (m *Manager) tell(assignments ...string) {
	var lines []string
	for _, assignment := range assignments {
		if assignment != "" {
			lines = append(lines, assignment)
		}
	}
	if len(lines) == 0 {
		return
	}
	if _, err := daemon.SdNotify(false, strings.Join(lines, "\n")); err != nil {
		m.once.Do(func() { m.log.Warn("the service manager cannot be told", "error", err) })
	}
}
