package users

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// Watcher keeps a reader of a Store up to date.
type Watcher struct {
	store   Store
	changed func(*Snapshot)

	mu   sync.Mutex // held while looking, so that changed is never called twice at once
	seen int64
	// While the seal over the store does not open, it is tried again without a change, ever less often.
	closed bool
	pause  time.Duration
	again  time.Time
	last   atomic.Pointer[Look]
}

// Look is how a Watcher's latest look at the store went.
type Look struct {
	At   time.Time // when it ended; one long past means that a look hangs
	Good time.Time // when the latest good one ended
	Err  error     // nil: it was good
}

// Watch calls changed with a first snapshot before it returns, and again within
// every after each later change of any process, until ctx ends. A failing read is
// reported to failed and tried again: the last good snapshot stays in force.
func Watch(ctx context.Context, store Store, every time.Duration, changed func(*Snapshot), failed func(error)) (*Watcher, error) {
	first, err := store.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	w := &Watcher{store: store, changed: changed}
	w.take(first)
	w.looked(nil)
	go w.poll(ctx, every, failed)
	return w, nil
}

// closedPauseMax is how long a closed seal is left alone at most before it is tried again.
const closedPauseMax = 30 * time.Second

// Refresh looks at the store now. When it returns nil, changed has been called
// with everything that was stored before Refresh began.
func (w *Watcher) Refresh(ctx context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.again = time.Time{}
	return w.refresh(ctx)
}

// refresh is called with mu held.
func (w *Watcher) refresh(ctx context.Context) error {
	err := w.look(ctx)
	w.looked(err)
	return err
}

// Looked tells how the latest look went. It does not wait for one that is under way.
func (w *Watcher) Looked() Look { return *w.last.Load() }

// looked is called by one goroutine at a time.
func (w *Watcher) looked(err error) {
	look := &Look{At: time.Now(), Err: err}
	if look.Good = look.At; err != nil {
		look.Good = w.last.Load().Good
	}
	w.last.Store(look)
}

func (w *Watcher) look(ctx context.Context) error {
	revision, err := w.store.Revision(ctx)
	if err != nil || revision == w.seen && (!w.closed || time.Now().Before(w.again)) {
		return err
	}
	next, err := w.store.Snapshot(ctx)
	if err != nil {
		return err
	}
	w.take(next)
	return nil
}

func (w *Watcher) take(next *Snapshot) {
	w.seen, w.closed = next.Revision, next.Closed() != nil
	if w.closed {
		w.pause = min(max(2*w.pause, time.Second), closedPauseMax)
		w.again = time.Now().Add(w.pause)
	} else {
		w.pause = 0
	}
	w.changed(next)
}

// tick is a look that nobody asked for.
func (w *Watcher) tick(ctx context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.refresh(ctx)
}

func (w *Watcher) poll(ctx context.Context, every time.Duration, failed func(error)) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if err := w.tick(ctx); err != nil && ctx.Err() == nil {
			failed(err)
		}
	}
}
