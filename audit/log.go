package audit

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

// Config says where a log is and how it behaves. Only Directory must be set.
type Config struct {
	Directory    string           // made with mode 0700 if it is not there; others must not be able to write to it
	SegmentBytes int64            // a segment that would grow beyond this is followed by a new one; 64 MiB
	QueueBytes   int64            // of records that wait to be written; further callers wait for room; 16 MiB, at least MaxLine
	LockTimeout  time.Duration    // how long to wait for another process that is writing; 5 s
	RetryDelay   time.Duration    // how long after a failed write everybody is refused at once; 250 ms
	Process      string           // put into records that name none; the program's name and process number
	Clock        func() time.Time // for the time in records; time.Now
	FS           FS               // the real one
	// Committed is told after each batch how many records waited for it, what writing it and making it durable took, and why it
	// failed, if it did. The next batch waits until it returns; nobody by default.
	Committed func(records int, took time.Duration, err error)

	// UnsafeNoSync leaves fdatasync out: records that Append has returned can be lost when the
	// power fails. It is for measuring what durability costs, and nothing else.
	UnsafeNoSync bool
}

func (c Config) withDefaults() Config {
	if c.SegmentBytes <= 0 {
		c.SegmentBytes = 64 << 20
	}
	if c.QueueBytes <= 0 {
		c.QueueBytes = 16 << 20
	}
	c.QueueBytes = max(c.QueueBytes, MaxLine)
	if c.LockTimeout <= 0 {
		c.LockTimeout = 5 * time.Second
	}
	if c.RetryDelay <= 0 {
		c.RetryDelay = 250 * time.Millisecond
	}
	if c.Process == "" {
		c.Process = fmt.Sprintf("%s[%d]", filepath.Base(os.Args[0]), os.Getpid())
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Committed == nil {
		c.Committed = func(int, time.Duration, error) {}
	}
	if c.FS == nil {
		c.FS = disk{}
	}
	if c.UnsafeNoSync {
		c.FS = unsynced{c.FS}
	}
	return c
}

// Log appends records. Its methods may be called from several goroutines, and
// several Logs, also in other processes, may have the same directory open.
type Log struct {
	cfg    Config
	writer *writer
	room   *semaphore.Weighted // bytes of QueueBytes

	mu      sync.Mutex
	wake    sync.Cond
	waiting []*pending
	last    int // callers of the last batch
	closed  bool
	head    Head
	err     error

	done chan struct{} // closed when the writer has ended
}

// pending is records of one caller that wait to be durable together.
type pending struct {
	ctx      context.Context
	bodies   [][]byte
	position Position // of the last
	err      error
	done     chan struct{} // closed when position or err is set
}

// Open opens the log in a directory, or begins one there. What a crash left
// behind is put right first, see the package's documentation. The error wraps
// ErrDamaged where records are missing or changed, and ErrUnavailable where the
// disk fails, is full, or another process does not let go of the log.
func Open(cfg Config) (*Log, error) {
	cfg = cfg.withDefaults()
	w, err := newWriter(cfg)
	if err != nil {
		return nil, err
	}
	if err := w.start(); err != nil {
		w.close()
		return nil, err
	}
	l := &Log{cfg: cfg, writer: w, room: semaphore.NewWeighted(cfg.QueueBytes), head: w.mark.Head, done: make(chan struct{})}
	l.wake.L = &l.mu
	go l.run()
	return l, nil
}

// Append keeps records, at least one, and returns the last one's place when all are durable. An error
// means that what the records are about must not be done: ErrUnavailable (a retry
// may help), ErrInvalid, ErrDamaged, ErrClosed, or the context's. A record whose
// Append failed is usually not kept, but may be: an error says that not all are
// known to be durable. Some of several may be kept, but none in part.
func (l *Log) Append(ctx context.Context, records ...Record) (Position, error) {
	bodies := make([][]byte, len(records))
	for i, r := range records {
		if r.Kind == KindSegment || r.Kind == KindRecovered {
			return Position{}, fmt.Errorf("%w: only the log itself writes records of the kind %q", ErrInvalid, r.Kind)
		}
		r.stamp(l.cfg.Clock(), l.cfg.Process)
		body, err := encodeBody(r)
		if err != nil {
			return Position{}, err
		}
		bodies[i] = body
	}
	return l.append(ctx, bodies)
}

// append writes what has room in the queue at once, and the rest after that.
func (l *Log) append(ctx context.Context, bodies [][]byte) (position Position, err error) {
	for len(bodies) > 0 {
		n, size := 1, sizeOf(bodies[0])
		for n < len(bodies) && size+sizeOf(bodies[n]) <= l.cfg.QueueBytes {
			size += sizeOf(bodies[n])
			n++
		}
		if position, err = l.await(&pending{ctx: ctx, bodies: bodies[:n], done: make(chan struct{})}); err != nil {
			return Position{}, err
		}
		bodies = bodies[n:]
	}
	return position, nil
}

// await returns when the records are durable.
func (l *Log) await(p *pending) (Position, error) {
	ctx := p.ctx
	if err := l.room.Acquire(ctx, p.size()); err != nil {
		return Position{}, fmt.Errorf("audit: waiting for room in the queue: %w", context.Cause(ctx))
	}
	if err := l.enqueue(p); err != nil {
		l.room.Release(p.size())
		return Position{}, err
	}
	select {
	case <-p.done:
		return p.position, p.err
	case <-ctx.Done():
		return Position{}, fmt.Errorf("audit: waiting for the record to be durable: %w", context.Cause(ctx))
	}
}

func (l *Log) enqueue(p *pending) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return ErrClosed
	}
	l.waiting = append(l.waiting, p)
	l.wake.Signal()
	return nil
}

// Head returns the place of the newest record that this Log knows of. Kept on
// another host, it lets Verify show whether the end of the log was cut off.
func (l *Log) Head() Head {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.head
}

// Err returns why the last write failed, and nil if it did not.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Close writes what is waiting and closes the log. Appends that come later get ErrClosed.
func (l *Log) Close() error {
	l.mu.Lock()
	l.closed = true
	l.wake.Signal()
	l.mu.Unlock()
	<-l.done
	return nil
}

// run writes batches until the log is closed and nothing waits.
func (l *Log) run() {
	defer close(l.done)
	defer l.writer.close()
	for l.wait() {
		began := time.Now()
		batch, err := l.writer.commit(l.take)
		l.cfg.Committed(countOf(batch), time.Since(began), err)
		l.mu.Lock()
		l.head, l.err, l.last = l.writer.mark.Head, err, len(batch)
		l.mu.Unlock()
		l.answer(batch, err)
	}
}

// wait returns true when somebody waits, false when nobody ever will.
func (l *Log) wait() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.waiting) == 0 && !l.closed {
		l.wake.Wait()
	}
	return len(l.waiting) > 0
}

// enough records share a sync so well that more would gain nothing.
const enough = 32

// gather lets those who are about to append do so first, as long as each look finds more of them:
// they share this sync instead of waiting for the next. It waits for nothing but the processor, and not at all for
// somebody who appends alone, whom a needless turn of the scheduler would delay.
func (l *Log) gather() {
	for before := 0; ; {
		l.mu.Lock()
		waiting, alone := len(l.waiting), l.last <= 1 && len(l.waiting) <= 1
		l.mu.Unlock()
		if alone || waiting == before || waiting >= enough {
			return
		}
		before = waiting
		runtime.Gosched()
	}
}

// take returns everybody who waits when no more come. Those whose caller has gone are answered here.
func (l *Log) take() []*pending {
	l.gather()
	l.mu.Lock()
	waiting := l.waiting
	l.waiting = nil
	l.mu.Unlock()
	batch := waiting[:0]
	for _, p := range waiting {
		if p.ctx.Err() != nil {
			l.answer([]*pending{p}, context.Cause(p.ctx))
			continue
		}
		batch = append(batch, p)
	}
	return batch
}

func (l *Log) answer(batch []*pending, err error) {
	for _, p := range batch {
		p.err = err
		l.room.Release(p.size())
		close(p.done)
	}
}

func countOf(batch []*pending) (records int) {
	for _, p := range batch {
		records += len(p.bodies)
	}
	return records
}

// size is what the records take of the queue's room.
func (p *pending) size() (size int64) {
	for _, body := range p.bodies {
		size += sizeOf(body)
	}
	return size
}

func sizeOf(body []byte) int64 { return int64(len(body) + prefixCapacity) }
