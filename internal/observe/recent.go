package observe

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
)

// Trouble is a warning or an error of the log.
type Trouble struct {
	Time    time.Time `json:"time"`
	Level   string    `json:"level"` // WARN or ERROR
	Message string    `json:"message"`
	Session string    `json:"session,omitempty"`
	Details string    `json:"details,omitempty"` // the other attributes, as name=value
}

// Recent keeps the last warnings and errors that go through its handlers, in memory.
type Recent struct {
	mu   sync.Mutex
	ring []Trouble // the oldest first once it is full
	size int
}

// NewRecent keeps as many as size.
func NewRecent(size int) *Recent { return &Recent{size: size} }

// maxDetails bounds what is kept of one record, in bytes.
const maxDetails = 1 << 10

// List returns what is kept, the latest first.
func (r *Recent) List() []Trouble {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := slices.Clone(r.ring)
	slices.Reverse(list)
	return list
}

func (r *Recent) keep(t Trouble) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.ring) >= r.size {
		r.ring = append(r.ring[:0], r.ring[1:]...)
	}
	r.ring = append(r.ring, t)
}

// Logger returns one that writes to log and is listened to.
func (r *Recent) Logger(log *slog.Logger) *slog.Logger {
	return slog.New(&listening{Handler: log.Handler(), recent: r})
}

// listening passes records on. Attributes that came by With are kept beside them.
type listening struct {
	slog.Handler
	recent *Recent
	attrs  []slog.Attr
}

// Enabled is true for what is kept, whatever the log's level.
func (h *listening) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelWarn || h.Handler.Enabled(ctx, level)
}

func (h *listening) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &listening{h.Handler.WithAttrs(attrs), h.recent, slices.Concat(h.attrs, attrs)}
}

func (h *listening) WithGroup(name string) slog.Handler {
	return &listening{h.Handler.WithGroup(name), h.recent, h.attrs}
}

func (h *listening) Handle(ctx context.Context, record slog.Record) error {
	if record.Level >= slog.LevelWarn {
		h.recent.keep(h.trouble(record))
	}
	if !h.Handler.Enabled(ctx, record.Level) {
		return nil
	}
	return h.Handler.Handle(ctx, record)
}

func (h *listening) trouble(record slog.Record) Trouble {
	t := Trouble{Time: record.Time.UTC(), Level: record.Level.String(), Message: record.Message}
	var details []string
	take := func(attr slog.Attr) bool {
		if attr.Key == "session" {
			t.Session = attr.Value.String()
		} else {
			details = append(details, fmt.Sprintf("%s=%q", attr.Key, attr.Value.String()))
		}
		return true
	}
	for _, attr := range h.attrs {
		take(attr)
	}
	record.Attrs(take)
	t.Details = strings.Join(details, " ")
	if len(t.Details) > maxDetails {
		t.Details = strings.ToValidUTF8(t.Details[:maxDetails], "") + "…"
	}
	return t
}
