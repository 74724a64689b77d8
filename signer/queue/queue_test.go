package queue_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"chancery/signer/queue"
)

const perSignature = time.Millisecond

// served is one request as the simulated token saw it.
type served struct {
	ticket         queue.Ticket
	name           string
	arrived, began time.Time
}

// simulation is a token in virtual time that takes perSignature for each signature.
type simulation struct {
	t     *testing.T
	queue *queue.Queue
	group sync.WaitGroup

	mu    sync.Mutex
	log   []served
	inUse int
	most  int
}

// simulate runs a test in virtual time.
func simulate(t *testing.T, cfg queue.Config, run func(t *testing.T, s *simulation)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &simulation{t: t, queue: queue.New(cfg)}
		run(t, s)
		s.group.Wait()
		if stats := s.queue.Stats(); stats.InUse != 0 || stats.Waiting != [queue.MaxPriority + 1]int{} {
			t.Errorf("something is left in the queue: %+v", stats)
		}
		if s.most > max(cfg.Slots, 1) {
			t.Errorf("%d were at the token at once, allowed are %d", s.most, cfg.Slots)
		}
	})
}

// request asks for a turn and signs; it returns once the request waits or is served.
func (s *simulation) request(name string, ticket queue.Ticket) {
	s.group.Go(func() {
		if err := s.sign(s.t.Context(), name, ticket); err != nil {
			s.t.Errorf("%s: %v", name, err)
		}
	})
	synctest.Wait()
}

func (s *simulation) sign(ctx context.Context, name string, ticket queue.Ticket) error {
	arrived := time.Now()
	turn, err := s.queue.Acquire(ctx, ticket)
	if err != nil {
		return err
	}
	defer turn.Release()
	s.enter(served{ticket, name, arrived, time.Now()})
	defer s.leave()
	time.Sleep(time.Duration(max(ticket.Cost, 1)) * perSignature)
	return nil
}

func (s *simulation) enter(v served) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = append(s.log, v)
	s.inUse++
	s.most = max(s.most, s.inUse)
}

func (s *simulation) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inUse--
}

// overtaking counts, user by user, the requests that got their turns while the named one waited.
func (s *simulation) overtaking(name string) map[int64]int {
	at := slices.IndexFunc(s.log, func(v served) bool { return v.name == name })
	if at < 0 {
		s.t.Fatalf("%s was not served", name)
	}
	counts := map[int64]int{}
	for _, v := range s.log[:at] {
		if v.began.After(s.log[at].arrived) {
			counts[v.ticket.User]++
		}
	}
	return counts
}

// TestSingleAmongRebuilds has three users rebuild everything while a fourth wants one signature now and then.
func TestSingleAmongRebuilds(t *testing.T) {
	for _, slots := range []int{1, 4} {
		t.Run(fmt.Sprint(slots), func(t *testing.T) {
			simulate(t, queue.Config{Slots: slots, MaxWaiting: 10_000}, func(t *testing.T, s *simulation) {
				const rebuilding, batches, batch = 3, 300, 200
				for user := range int64(rebuilding) {
					for n := range batches {
						s.request(fmt.Sprintf("batch %d of %d", n, user), queue.Ticket{User: user, Cost: batch})
					}
				}
				for n := range 20 {
					time.Sleep(777 * perSignature)
					s.request(fmt.Sprintf("single %d", n), queue.Ticket{User: 99})
				}
				s.group.Wait()
				for n := range 20 {
					for user, count := range s.overtaking(fmt.Sprintf("single %d", n)) {
						if count > 1 {
							t.Errorf("%d requests of user %d overtook single %d", count, user, n)
						}
					}
				}
			})
		})
	}
}

// TestSingleAmongSingles has the others ask for single signatures by the thousand.
func TestSingleAmongSingles(t *testing.T) {
	simulate(t, queue.Config{Slots: 1, MaxWaiting: 10_000}, func(t *testing.T, s *simulation) {
		for n := range 2000 {
			s.request(fmt.Sprintf("flood %d", n), queue.Ticket{User: int64(n % 4)})
		}
		time.Sleep(100*perSignature + perSignature/2)
		s.request("single", queue.Ticket{User: 99})
		s.group.Wait()
		for user, count := range s.overtaking("single") {
			if count > 1 {
				t.Errorf("%d requests of user %d overtook the single one", count, user)
			}
		}
	})
}

// TestWeights compares what users get while all of them have more to do.
func TestWeights(t *testing.T) {
	tickets := []queue.Ticket{
		{User: 1, Cost: 10},
		{User: 2, Cost: 1},                        // as much in small bites
		{User: 3, Cost: 10, Share: 2},             // twice as much
		{User: 4, Cost: 10, Priority: 2},          // four times
		{User: 5, Cost: 5, Share: 2, Priority: 1}, // four times
	}
	want := map[int64]float64{1: 1, 2: 1, 3: 2, 4: 4, 5: 4}
	simulate(t, queue.Config{Slots: 1, MaxWaiting: 100_000, MaxWaitingPerUser: 10_000}, func(t *testing.T, s *simulation) {
		for _, ticket := range tickets {
			for range 1200 / ticket.Cost {
				s.group.Go(func() { _ = s.sign(t.Context(), "", ticket) })
			}
			synctest.Wait()
		}
		time.Sleep(1200 * perSignature)
		s.mu.Lock()
		got := map[int64]float64{}
		for _, v := range s.log {
			got[v.ticket.User] += float64(max(v.ticket.Cost, 1))
		}
		s.mu.Unlock()
		for user, weight := range want {
			if part, fair := got[user]/1200, weight/12; part < fair*0.9 || part > fair*1.1 {
				t.Errorf("user %d got %.3f of the token, fair is %.3f", user, part, fair)
			}
		}
	})
}

// TestLowestPriorityIsServed has the highest one always busy.
func TestLowestPriorityIsServed(t *testing.T) {
	simulate(t, queue.Config{Slots: 1}, func(t *testing.T, s *simulation) {
		done := make(chan struct{})
		for range 8 {
			s.group.Go(func() {
				for {
					select {
					case <-done:
						return
					default:
						_ = s.sign(t.Context(), "urgent", queue.Ticket{User: 1, Priority: queue.MaxPriority})
					}
				}
			})
		}
		synctest.Wait()
		_ = s.sign(t.Context(), "patient", queue.Ticket{User: 2})
		close(done)
		s.group.Wait()
		if count := s.overtaking("patient")[1]; count > 1<<queue.MaxPriority {
			t.Errorf("%d urgent requests went before it, of weight %d", count, 1<<queue.MaxPriority)
		}
	})
}

// TestOrderWithinFlow checks first come, first served for each user and priority under random load.
func TestOrderWithinFlow(t *testing.T) {
	random := rand.New(rand.NewPCG(4, 711))
	simulate(t, queue.Config{Slots: 1}, func(t *testing.T, s *simulation) {
		for n := range 1500 {
			s.request(fmt.Sprintf("%05d", n), queue.Ticket{
				User: random.Int64N(5), Priority: random.IntN(3), Cost: random.Int64N(50)})
		}
		s.group.Wait()
		type flow struct {
			user     int64
			priority int
		}
		latest := map[flow]string{}
		for _, v := range s.log {
			f := flow{v.ticket.User, v.ticket.Priority}
			if v.name < latest[f] {
				t.Errorf("%s after %s, in flow %v", v.name, latest[f], f)
			}
			latest[f] = v.name
		}
		if len(s.log) != 1500 {
			t.Errorf("%d of 1500 were served", len(s.log))
		}
	})
}

// TestWithdrawnPlaceIsNotInherited checks that waiting with a large request and giving it up is no
// way to put many small ones before everybody else's.
func TestWithdrawnPlaceIsNotInherited(t *testing.T) {
	simulate(t, queue.Config{Slots: 1}, func(t *testing.T, s *simulation) {
		for n := range 500 {
			s.request(fmt.Sprintf("fair %d", n), queue.Ticket{User: 1})
		}
		ctx, cancel := context.WithCancel(t.Context())
		s.group.Go(func() { _ = s.sign(ctx, "placeholder", queue.Ticket{User: 2, Cost: 100_000}) })
		time.Sleep(200*perSignature + perSignature/2)
		for n := range 100 {
			s.request(fmt.Sprintf("sly %d", n), queue.Ticket{User: 2})
		}
		cancel()
		synctest.Wait()
		time.Sleep(100 * perSignature)
		s.mu.Lock()
		defer s.mu.Unlock()
		sly := 0
		for _, v := range s.log {
			if v.ticket.User == 2 {
				sly++
			}
		}
		if sly < 45 || sly > 55 {
			t.Errorf("of 100 turns the sly user got %d", sly)
		}
	})
}

func TestEndedContextGetsNoTurn(t *testing.T) {
	simulate(t, queue.Config{Slots: 1}, func(t *testing.T, s *simulation) {
		s.request("long", queue.Ticket{User: 1, Cost: 1000})
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 10*perSignature)
		defer cancel()
		if err := s.sign(ctx, "late", queue.Ticket{User: 2}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		if waited := time.Since(began); waited != 10*perSignature {
			t.Errorf("waited %v", waited)
		}
		if err := s.sign(ctx, "ended before", queue.Ticket{User: 2}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		if stats := s.queue.Stats(); stats.Abandoned != 1 || stats.Granted != 1 {
			t.Errorf("%+v", stats)
		}
		s.group.Wait()
		if len(s.log) != 1 {
			t.Errorf("%v reached the token", s.log)
		}
	})
}

func TestFull(t *testing.T) {
	cfg := queue.Config{Slots: 2, MaxWaiting: 6, MaxWaitingPerUser: 4}
	simulate(t, cfg, func(t *testing.T, s *simulation) {
		if err := s.sign(t.Context(), "measured", queue.Ticket{User: 1, Cost: 100}); err != nil {
			t.Fatal(err)
		}
		for n := range 2 + 4 {
			s.request(fmt.Sprintf("first %d", n), queue.Ticket{User: 1, Cost: 100})
		}
		full := refused(t, s, queue.Ticket{User: 1})
		if want := 200 * time.Millisecond; !full.Own || full.RetryAfter != want { // 400 signatures on two slots
			t.Errorf("%+v, want %v", full, want)
		}
		for n := range 2 {
			s.request(fmt.Sprintf("second %d", n), queue.Ticket{User: 2, Cost: 100})
		}
		full = refused(t, s, queue.Ticket{User: 2})
		if want := 400 * time.Millisecond; full.Own || full.RetryAfter != want { // 600 wait and 200 are at the token
			t.Errorf("%+v, want %v", full, want)
		}
		s.request("a third user's first", queue.Ticket{User: 3})
		if stats := s.queue.Stats(); stats.Refused != 2 || stats.Waiting[0] != 7 {
			t.Errorf("%+v", stats)
		}
	})
}

// TestRetryAfterIsBounded has a token that takes for ever, or no time.
func TestRetryAfterIsBounded(t *testing.T) {
	for _, c := range []struct {
		cost int64
		took time.Duration
		want time.Duration
	}{{1, time.Hour, 30 * time.Second}, {1 << 40, time.Hour, 50 * time.Millisecond}, {1, -time.Hour, 50 * time.Millisecond}} {
		now := time.Unix(0, 0)
		q := queue.New(queue.Config{MaxWaitingPerUser: 1, Now: func() time.Time { return now }})
		turn, err := q.Acquire(t.Context(), queue.Ticket{Cost: c.cost})
		if err != nil {
			t.Fatal(err)
		}
		now = now.Add(c.took)
		turn.Release()
		if turn, err = q.Acquire(t.Context(), queue.Ticket{}); err != nil {
			t.Fatal(err)
		}
		var group sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		group.Go(func() { _, _ = q.Acquire(ctx, queue.Ticket{}) })
		for q.Stats().Waiting[0] == 0 {
			time.Sleep(time.Millisecond)
		}
		var full *queue.FullError
		if _, err := q.Acquire(t.Context(), queue.Ticket{}); !errors.As(err, &full) || full.RetryAfter != c.want {
			t.Errorf("after %v for %d: %v, want %v", c.took, c.cost, err, c.want)
		}
		cancel()
		group.Wait()
		turn.Release()
	}
}

func refused(t *testing.T, s *simulation, ticket queue.Ticket) *queue.FullError {
	t.Helper()
	err := s.sign(t.Context(), "refused", ticket)
	var full *queue.FullError
	if !errors.Is(err, queue.ErrFull) || !errors.As(err, &full) {
		t.Fatalf("%v, want ErrFull", err)
	}
	return full
}

func TestStats(t *testing.T) {
	simulate(t, queue.Config{Slots: 1}, func(t *testing.T, s *simulation) {
		s.request("at the token", queue.Ticket{User: 1, Cost: 500})
		s.request("a", queue.Ticket{User: 1, Priority: 2})
		time.Sleep(100 * perSignature)
		s.request("b", queue.Ticket{User: 1, Priority: 2})
		s.request("c", queue.Ticket{User: 2, Priority: -1})
		s.request("d", queue.Ticket{User: 2, Priority: 100})
		got := s.queue.Stats()
		want := queue.Stats{Slots: 1, InUse: 1, Granted: 1, Oldest: 100 * perSignature}
		want.Waiting[0], want.Waiting[2], want.Waiting[queue.MaxPriority] = 1, 2, 1
		if got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
		s.group.Wait()
		if got := s.queue.Stats(); got.PerSignature != perSignature || got.Granted != 5 || got.Oldest != 0 {
			t.Errorf("afterwards %+v", got)
		}
	})
}

func TestResize(t *testing.T) {
	simulate(t, queue.Config{Slots: 8}, func(t *testing.T, s *simulation) {
		s.queue.Resize(1)
		for n := range 9 {
			s.request(fmt.Sprint(n), queue.Ticket{User: 1, Cost: 10})
		}
		for _, c := range []struct{ slots, inUse int }{{0, 1}, {4, 4}, {2, 4}} {
			s.queue.Resize(c.slots)
			synctest.Wait()
			if stats := s.queue.Stats(); stats.InUse != c.inUse || stats.Slots != max(c.slots, 1) {
				t.Errorf("%d slots: %+v", c.slots, stats)
			}
		}
		time.Sleep(10*perSignature + 1)
		if stats := s.queue.Stats(); stats.InUse != 2 {
			t.Errorf("after those too many ended: %+v", stats)
		}
	})
}

// TestNoSlotIsLost has contexts end at every moment, with the race detector's help.
func TestNoSlotIsLost(t *testing.T) {
	const slots, users = 3, 8
	q := queue.New(queue.Config{Slots: slots, MaxWaiting: 40, MaxWaitingPerUser: 10})
	var inUse, most atomic.Int64
	var group sync.WaitGroup
	for user := range int64(64) {
		group.Go(func() {
			random := rand.New(rand.NewPCG(uint64(user), 1))
			for range 100 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(random.IntN(200))*time.Microsecond)
				turn, err := q.Acquire(ctx, queue.Ticket{User: user % users, Priority: random.IntN(4), Cost: random.Int64N(9)})
				if err == nil {
					now := inUse.Add(1)
					for before := most.Load(); now > before && !most.CompareAndSwap(before, now); before = most.Load() {
					}
					time.Sleep(time.Duration(random.IntN(20)) * time.Microsecond)
					inUse.Add(-1)
					turn.Release()
					turn.Release() // harmless
				} else if !errors.Is(err, queue.ErrFull) && !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%v", err)
				}
				cancel()
			}
		})
	}
	group.Wait()
	if stats := q.Stats(); stats.InUse != 0 || stats.Waiting != [queue.MaxPriority + 1]int{} || most.Load() > slots {
		t.Fatalf("%d at once at most, afterwards %+v", most.Load(), stats)
	}
	for range slots {
		if _, err := q.Acquire(t.Context(), queue.Ticket{}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestUncontendedAllocatesNothing(t *testing.T) {
	q := queue.New(queue.Config{Slots: 1})
	ctx := t.Context()
	if n := testing.AllocsPerRun(1000, func() {
		turn, err := q.Acquire(ctx, queue.Ticket{User: 1})
		if err != nil {
			t.Fatal(err)
		}
		turn.Release()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkUncontended(b *testing.B) {
	q := queue.New(queue.Config{Slots: 1})
	ctx, cancel := context.WithTimeout(b.Context(), time.Hour)
	defer cancel()
	b.ReportAllocs()
	for b.Loop() {
		turn, err := q.Acquire(ctx, queue.Ticket{User: 1})
		if err != nil {
			b.Fatal(err)
		}
		turn.Release()
	}
}

// BenchmarkContended has 64 goroutines of as many users share slots, with no time at the token.
func BenchmarkContended(b *testing.B) {
	for _, slots := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("slots=%d", slots), func(b *testing.B) {
			q := queue.New(queue.Config{Slots: slots})
			ctx, cancel := context.WithTimeout(b.Context(), time.Hour)
			defer cancel()
			b.ReportAllocs()
			var left atomic.Int64
			left.Store(int64(b.N))
			var group sync.WaitGroup
			for user := range int64(64) {
				group.Go(func() {
					for left.Add(-1) >= 0 {
						turn, err := q.Acquire(ctx, queue.Ticket{User: user})
						if err != nil {
							b.Error(err)
							return
						}
						turn.Release()
					}
				})
			}
			group.Wait()
		})
	}
}
