// Package queue is the fair queue in front of one token. A token makes so many
// signatures at once and no more; who asks beyond that waits here, in an order
// that no user's mass rebuild can bend against another's single signature.
//
// # Order
//
// Requests of one user and priority form a flow, served first come, first
// served. Flows share the token by self-clocked fair queueing (S. Golestani,
// "A self-clocked fair queueing scheme for broadband applications", INFOCOM
// 1994), which is weighted round robin by signatures without the rounds: a
// request gets a finish tag, the later the more signatures it asks for and the
// less its flow's weight is, and the smallest tag goes next. The weight is the
// user's share times 2 to the power of the priority. Priorities are weights
// and not strict, since a strict one lets whoever holds it shut out the rest
// for as long as it likes; with weights even the lowest keeps a part.
//
// # Bound
//
// Between flows of equal weight a request for one signature is overtaken by at
// most one request of each other flow, however many and however large those
// that wait there are. A flow of n times the weight overtakes it by at most
// n signatures or one request, whichever is more. Beside that it waits for one of the
// requests that are at the token to end.
//
// # Cost
//
// The queue has no goroutine and no timer of its own. Acquire allocates nothing
// and takes a fraction of a microsecond while a slot is free.
package queue

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Defaults of Config.
const (
	DefaultMaxWaiting        = 4096
	DefaultMaxWaitingPerUser = 1024
)

// MaxPriority is the highest priority; its flows weigh 128 times those of priority 0.
const MaxPriority = 7

// Config bounds a queue.
type Config struct {
	// Slots is how many requests are at the token at once. Less than 1 means 1.
	Slots int
	// MaxWaiting bounds the requests that wait. A user of whom nobody waits yet may wait all the
	// same, so that greedy ones cannot shut that user out: as many users as there are is the most
	// above the bound. Zero means DefaultMaxWaiting.
	MaxWaiting int
	// MaxWaitingPerUser bounds the waiting requests of one user. Zero means DefaultMaxWaitingPerUser.
	MaxWaitingPerUser int
	// Now is the clock. Nil means time.Now.
	Now func() time.Time
}

// Ticket says who asks for what. The deadline is that of the context.
type Ticket struct {
	User     int64
	Priority int   // 0 to MaxPriority; what is outside counts as the nearest of these
	Share    int   // the user's weight; less than 1 means 1, more than 1024 means 1024
	Cost     int64 // signatures that the request asks for; less than 1 means 1
}

// ErrFull says that too many requests wait. It comes as a *FullError, which says when to try again.
var ErrFull = errors.New("queue: full")

// FullError is ErrFull with what the client is told.
type FullError struct {
	// RetryAfter is about the time that what waits already will take, 50 ms to 30 s.
	RetryAfter time.Duration
	// Own tells whether it is the user's own requests that are too many.
	Own bool
}

// Error says whose requests are too many and when to try again.
func (e *FullError) Error() string {
	whose := "too many requests wait for the token"
	if e.Own {
		whose = "too many requests of this user wait for the token"
	}
	return fmt.Sprintf("%v: %s; try again in %v", ErrFull, whose, e.RetryAfter.Round(10*time.Millisecond))
}

// Is makes errors.Is(err, ErrFull) true.
func (e *FullError) Is(target error) bool { return target == ErrFull }

// Queue is the fair queue in front of one token. Its methods may be called from several goroutines at once.
type Queue struct {
	now               func() time.Time
	maxWaiting        int
	maxWaitingPerUser int
	waiters           sync.Pool // of *waiter, for other requests

	mu       sync.Mutex
	slots    int
	inUse    int
	order    order
	backlogs map[int64]backlog // of the users of whom somebody waits
	load     load
	counts   counts
}

// backlog is what waits of one user.
type backlog struct {
	requests int
	cost     int64
}

// New makes a queue with all its slots free.
func New(cfg Config) *Queue {
	q := &Queue{
		now:               cfg.Now,
		maxWaiting:        cfg.MaxWaiting,
		maxWaitingPerUser: cfg.MaxWaitingPerUser,
		slots:             max(cfg.Slots, 1),
		order:             order{flows: map[flowID]*flow{}},
		backlogs:          map[int64]backlog{},
		load:              load{perSignature: assumedPerSignature},
		waiters:           sync.Pool{New: newWaiter},
	}
	if q.now == nil {
		q.now = time.Now
	}
	if q.maxWaiting <= 0 {
		q.maxWaiting = DefaultMaxWaiting
	}
	if q.maxWaitingPerUser <= 0 {
		q.maxWaitingPerUser = DefaultMaxWaitingPerUser
	}
	return q
}

// Turn is the right to be at the token, until Release. It must not be copied.
type Turn struct {
	queue *Queue // nil once released
	cost  int64
	began time.Time
}

// Acquire waits for a turn. The caller has to Release it; a Turn that came with an error need not be.
// A request whose context ends while it waits is dropped at once and gets no turn. Errors: the
// context's, and ErrFull as a *FullError, after which a retry helps.
func (q *Queue) Acquire(ctx context.Context, ticket Ticket) (Turn, error) {
	if err := ctx.Err(); err != nil {
		return Turn{}, ended(err)
	}
	ticket = ticket.bounded()
	now := q.now()
	q.mu.Lock()
	if q.inUse < q.slots { // then nobody waits
		q.occupy(ticket.Cost)
		q.mu.Unlock()
		return Turn{queue: q, cost: ticket.Cost, began: now}, nil
	}
	if err := q.refusal(ticket.User); err != nil {
		q.counts.refused++
		q.mu.Unlock()
		return Turn{}, err
	}
	w := q.enqueue(ticket, now)
	q.mu.Unlock()
	return q.wait(ctx, w)
}

// Release gives the turn back, and to the next who waits. Further calls do nothing.
func (t *Turn) Release() {
	q := t.queue
	if q == nil {
		return
	}
	t.queue = nil
	now := q.now()
	q.mu.Lock()
	defer q.mu.Unlock()
	q.load.measured(now.Sub(t.began), t.cost)
	q.vacate(t.cost, now)
}

// Resize changes how many requests are at the token at once. Those that are there too many end in peace.
func (q *Queue) Resize(slots int) {
	now := q.now()
	q.mu.Lock()
	defer q.mu.Unlock()
	q.slots = max(slots, 1)
	q.dispatch(now)
}

func (t Ticket) bounded() Ticket {
	t.Priority = min(max(t.Priority, 0), MaxPriority)
	t.Share = min(max(t.Share, 1), maxShare)
	t.Cost = min(max(t.Cost, 1), maxCost)
	return t
}

// refusal returns a *FullError when one more request of this user cannot wait.
func (q *Queue) refusal(user int64) error {
	own := q.backlogs[user]
	switch {
	case own.requests >= q.maxWaitingPerUser:
		ahead := min(own.cost*int64(len(q.backlogs)), q.load.waiting) // about its part of the token
		return &FullError{RetryAfter: q.load.retryAfter(ahead, q.slots), Own: true}
	case own.requests > 0 && q.order.waiting >= q.maxWaiting:
		return &FullError{RetryAfter: q.load.retryAfter(q.load.waiting+q.load.atToken, q.slots)}
	}
	return nil
}

func (q *Queue) enqueue(ticket Ticket, now time.Time) *waiter {
	w := q.waiters.Get().(*waiter)
	w.ticket, w.arrived = ticket, now
	q.order.push(w)
	q.load.waiting += ticket.Cost
	own := q.backlogs[ticket.User]
	q.backlogs[ticket.User] = backlog{own.requests + 1, own.cost + ticket.Cost}
	return w
}

// dequeued keeps the books for a waiter that left the order.
func (q *Queue) dequeued(w *waiter) {
	q.load.waiting -= w.ticket.Cost
	own := q.backlogs[w.ticket.User]
	if own.requests == 1 {
		delete(q.backlogs, w.ticket.User)
		return
	}
	q.backlogs[w.ticket.User] = backlog{own.requests - 1, own.cost - w.ticket.Cost}
}

// wait ends with a turn or with the context. A turn that comes with the context's end is handed on.
func (q *Queue) wait(ctx context.Context, w *waiter) (Turn, error) {
	select {
	case <-w.ready:
	case <-ctx.Done():
		if q.withdraw(w) {
			q.recycle(w)
			return Turn{}, ended(ctx.Err())
		}
		<-w.ready
	}
	turn := Turn{queue: q, cost: w.ticket.Cost, began: w.granted}
	q.recycle(w)
	if err := ctx.Err(); err != nil {
		q.decline(turn.cost)
		return Turn{}, ended(err)
	}
	return turn, nil
}

// recycle keeps a waiter for another request. Its channel is empty and nothing refers to it.
func (q *Queue) recycle(w *waiter) {
	*w = waiter{ready: w.ready}
	q.waiters.Put(w)
}

// withdraw takes a waiter out of the order; false says that it has been given a turn.
func (q *Queue) withdraw(w *waiter) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if w.flow == nil {
		return false
	}
	q.order.remove(w)
	q.dequeued(w)
	q.counts.abandoned++
	return true
}

// decline hands on a turn that nobody used, without measuring it.
func (q *Queue) decline(cost int64) {
	now := q.now()
	q.mu.Lock()
	defer q.mu.Unlock()
	q.counts.abandoned++
	q.counts.granted--
	q.vacate(cost, now)
}

func (q *Queue) occupy(cost int64) {
	q.inUse++
	q.counts.granted++
	q.load.atToken += cost
}

func (q *Queue) vacate(cost int64, now time.Time) {
	q.inUse--
	q.load.atToken -= cost
	q.dispatch(now)
}

// dispatch gives free slots to those who wait, so that afterwards none is free or nobody waits.
func (q *Queue) dispatch(now time.Time) {
	for q.inUse < q.slots && q.order.waiting > 0 {
		w := q.order.pop()
		q.dequeued(w)
		q.occupy(w.ticket.Cost)
		w.granted = now
		w.ready <- struct{}{} // has room for it
	}
}

func ended(err error) error {
	return fmt.Errorf("queue: no turn at the token in time: %w", err)
}
