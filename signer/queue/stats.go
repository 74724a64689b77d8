package queue

import "time"

// Bounds of FullError.RetryAfter.
const (
	minRetryAfter = 50 * time.Millisecond
	maxRetryAfter = 30 * time.Second
)

const (
	// assumedPerSignature is the service time before the first is measured: that of a slow token.
	assumedPerSignature = 50 * time.Millisecond
	// smoothing is how many measurements the mean follows.
	smoothing = 16
)

// load is how much there is to do and how long that takes. The queue's lock guards it.
type load struct {
	waiting, atToken int64 // signatures
	perSignature     time.Duration
	seen             bool // a service time was measured
}

// measured takes a request's time at the token into the moving mean.
func (l *load) measured(took time.Duration, cost int64) {
	each := max(took, 0) / time.Duration(cost)
	if !l.seen {
		l.perSignature, l.seen = each, true
		return
	}
	l.perSignature += (each - l.perSignature) / smoothing
}

// retryAfter estimates when the token will have made so many signatures. In floating point, since
// the product of a very slow token and a very full queue exceeds a time.Duration.
func (l *load) retryAfter(signatures int64, slots int) time.Duration {
	estimate := float64(l.perSignature) * float64(signatures) / float64(slots)
	return time.Duration(min(max(estimate, float64(minRetryAfter)), float64(maxRetryAfter)))
}

// counts since New. The queue's lock guards them.
type counts struct{ granted, refused, abandoned uint64 }

// Stats is a queue at one moment.
type Stats struct {
	Slots, InUse int
	Waiting      [MaxPriority + 1]int // requests by priority
	Oldest       time.Duration        // how long the one that waits longest has waited; 0 when nobody does
	PerSignature time.Duration        // recent mean time at the token; 0 before the first
	Granted      uint64               // requests that got a turn, since New
	Refused      uint64               // requests answered with ErrFull, since New
	Abandoned    uint64               // requests whose context ended while they waited, since New
}

// Slots returns how many requests are at the token at once.
func (q *Queue) Slots() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.slots
}

// Stats describes the queue for status and metrics. It takes time in proportion to the users that wait.
func (q *Queue) Stats() Stats {
	now := q.now()
	q.mu.Lock()
	defer q.mu.Unlock()
	stats := Stats{
		Slots: q.slots, InUse: q.inUse,
		Granted: q.counts.granted, Refused: q.counts.refused, Abandoned: q.counts.abandoned,
	}
	if q.load.seen {
		stats.PerSignature = q.load.perSignature
	}
	for id, f := range q.order.flows {
		stats.Waiting[id.priority] += f.waiting
		stats.Oldest = max(stats.Oldest, now.Sub(f.first.arrived)) // the first is the oldest of its flow
	}
	return stats
}
