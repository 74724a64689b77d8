package queue

import (
	"container/heap"
	"sync"
	"time"
)

// Bounds of a ticket, which keep tags far from the end of their range: at the highest cost
// and the lowest weight 16 million requests fit into one busy period's virtual time.
const (
	maxShare = 1 << 10
	maxCost  = 1 << 20
	// tagUnit is one signature's length in virtual time at weight 1.
	tagUnit = 1 << 20
)

// waiter is one request that waits. The queue's lock guards it.
type waiter struct {
	ticket     Ticket
	arrived    time.Time
	granted    time.Time
	ready      chan struct{} // gets one value with the turn
	flow       *flow         // nil once out of the order
	prev, next *waiter       // in its flow
}

func newWaiter() any { return &waiter{ready: make(chan struct{}, 1)} }

type flowID struct {
	user     int64
	priority int
}

// flow is what one user asks for with one priority, as long as any of it waits. Nothing has to be
// remembered of it beyond that: virtual time has then reached the tag of its latest request.
type flow struct {
	id          flowID
	first, last *waiter
	waiting     int
	tag         uint64 // finish tag of the first request
	turn        uint64 // among equal tags the one that was set first goes first
	index       int    // in the heap
}

// order is the waiting requests in the order in which they get their turns.
type order struct {
	waiting int
	virtual uint64 // finish tag of the latest request that got a turn
	turns   uint64
	flows   map[flowID]*flow
	heap    flowHeap
}

// push appends a request to its flow.
func (o *order) push(w *waiter) {
	o.waiting++
	id := flowID{w.ticket.User, w.ticket.Priority}
	if f := o.flows[id]; f != nil {
		w.flow, w.prev = f, f.last
		f.last.next, f.last = w, w
		f.waiting++
		return
	}
	f := flows.Get().(*flow)
	*f = flow{id: id, first: w, last: w, waiting: 1}
	w.flow = f
	o.flows[id] = f
	o.tag(f)
	heap.Push(&o.heap, f)
}

// pop takes out the request that is next. There has to be one.
func (o *order) pop() *waiter {
	f := o.heap[0]
	w := f.first
	o.virtual = f.tag
	o.remove(w)
	return w
}

// remove takes out a request that is anywhere in the order.
func (o *order) remove(w *waiter) {
	f := w.flow
	wasFirst := f.first == w
	if w.prev != nil {
		w.prev.next = w.next
	} else {
		f.first = w.next
	}
	if w.next != nil {
		w.next.prev = w.prev
	} else {
		f.last = w.prev
	}
	w.flow, w.prev, w.next = nil, nil, nil
	o.waiting--
	f.waiting--
	switch {
	case f.waiting == 0:
		o.drop(f)
	case wasFirst:
		o.tag(f)
		heap.Fix(&o.heap, f.index)
	}
}

// tag gives the flow the finish tag of its first request, counted from the present, whether the one
// before it got its turn (the present is then that one's tag) or was withdrawn: that one's place is
// not left to what came long after it.
func (o *order) tag(f *flow) {
	t := f.first.ticket
	f.tag = o.virtual + uint64(t.Cost)*tagUnit/(uint64(t.Share)<<t.Priority)
	o.turns++
	f.turn = o.turns
}

// drop forgets a flow of which nothing waits. With the last one virtual time starts anew.
func (o *order) drop(f *flow) {
	heap.Remove(&o.heap, f.index)
	delete(o.flows, f.id)
	*f = flow{}
	flows.Put(f)
	if o.waiting == 0 {
		o.virtual, o.turns = 0, 0
	}
}

var flows = sync.Pool{New: func() any { return new(flow) }}

// flowHeap has the flow with the smallest tag at its top. It implements heap.Interface.
type flowHeap []*flow

func (h flowHeap) Len() int { return len(h) }

func (h flowHeap) Less(i, j int) bool {
	if h[i].tag != h[j].tag {
		return h[i].tag < h[j].tag
	}
	return h[i].turn < h[j].turn
}

func (h flowHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *flowHeap) Push(x any) {
	f := x.(*flow)
	f.index = len(*h)
	*h = append(*h, f)
}

func (h *flowHeap) Pop() any {
	last := len(*h) - 1
	f := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return f
}
