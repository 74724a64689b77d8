package observe

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"
)

// DefaultDeadline is how long a check may take where it says nothing else.
const DefaultDeadline = 2 * time.Second

// Check is one thing that must be in order. Whatever asks for it, and however
// often, at most one probe is under way.
type Check struct {
	Name string
	// Probe returns nil when all is well. Its context ends at the deadline; a probe that
	// does not heed it, or whose good news come later, has failed, and no other begins before it ends.
	Probe    func(context.Context) error
	Deadline time.Duration // 0: DefaultDeadline
	Keep     time.Duration // for how long an answer is good; 0: until the next question
}

// errSilent is what a probe has come to that is still under way after its deadline.
var errSilent = errors.New("no answer")

// asker asks one check.
type asker struct {
	check Check

	mu      sync.Mutex
	current *run // under way, or the latest
}

// run is one probe. err and ended may be read once done is closed.
type run struct {
	began, ended time.Time
	err          error
	done         chan struct{}
}

func newAsker(check Check) *asker {
	if check.Deadline <= 0 {
		check.Deadline = DefaultDeadline
	}
	return &asker{check: check}
}

// ask returns the check's answer, an earlier one while it is good.
func (a *asker) ask(ctx context.Context) error {
	r := a.join()
	timer := time.NewTimer(time.Until(r.began.Add(a.check.Deadline)))
	defer timer.Stop()
	select {
	case <-r.done:
		return r.err
	case <-timer.C:
	case <-ctx.Done():
	}
	select {
	case <-r.done: // both had come
		return r.err
	default:
		return fmt.Errorf("%w within %s", errSilent, a.check.Deadline)
	}
}

// join returns the probe under way, the latest one if it is still good, or a new one.
func (a *asker) join() *run {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.current != nil && a.current.good(a.check.Keep) {
		return a.current
	}
	r := &run{began: time.Now(), done: make(chan struct{})}
	a.current = r
	go a.probe(r)
	return r
}

func (r *run) good(keep time.Duration) bool {
	select {
	case <-r.done:
		return time.Since(r.ended) < keep
	default:
		return true
	}
}

func (a *asker) probe(r *run) {
	defer close(r.done)
	// Not the request's context: whoever asks next takes the answer as well.
	ctx, cancel := context.WithTimeout(context.Background(), a.check.Deadline)
	defer cancel()
	r.err = a.check.Probe(ctx)
	r.ended = time.Now()
	if took := r.ended.Sub(r.began); r.err == nil && took >= a.check.Deadline {
		r.err = fmt.Errorf("%w within %s, only after %s", errSilent, a.check.Deadline, took.Round(time.Millisecond))
	}
}

// verdict answers 200 when every check is in order and 503 otherwise, with a line for each.
type verdict []*asker

func newVerdict(checks []Check) verdict {
	v := make(verdict, len(checks))
	for i, check := range checks {
		v[i] = newAsker(check)
	}
	return v
}

func (v verdict) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answers := make([]error, len(v))
	var asking sync.WaitGroup
	for i, a := range v {
		asking.Go(func() { answers[i] = a.ask(r.Context()) })
	}
	asking.Wait()
	var text strings.Builder
	status := http.StatusOK
	for i, err := range answers {
		outcome := "ok"
		if err != nil {
			status, outcome = http.StatusServiceUnavailable, "failed: "+strings.Join(strings.Fields(err.Error()), " ")
		}
		fmt.Fprintf(&text, "%s: %s\n", v[i].check.Name, outcome)
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(text.String()))
}
