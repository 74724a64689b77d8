package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// workerArgument makes this program a worker: `bench worker KIND`. A worker gets
// its settings as the first line of standard input and then one order a line,
// and answers each with one line. It ends with its input.
const workerArgument = "worker"

// order is one measurement that a worker is to make.
type order struct {
	Task        string        // what, of the worker's kind
	Key         string        // which key signs
	Parallel    int           // requests in flight on each connection, or sessions of the raw token
	Connections int           // of a client
	Batch       int           // signatures of one request; 0: sign instead of sign_all
	For         time.Duration // how long
}

// answer is what a worker measured.
type answer struct {
	Count   int             // of signatures, connects or echoes
	Elapsed time.Duration   // from the first one's begin to the last one's end
	Steady  int             // those of Count that ended within the steady part, or 0 where there is none
	Within  time.Duration   // how long the steady part lasted
	Samples []time.Duration // how long each took, where that was asked for
	Error   string
}

// rate returns how many there were a second: in the steady part, where there is one.
func (a answer) rate() float64 {
	if a.Steady > 0 {
		return float64(a.Steady) / a.Within.Seconds()
	}
	return float64(a.Count) / a.Elapsed.Seconds()
}

// span is the time in which a load is kept up. Its steady part leaves out the beginning, while the load still spreads over
// all who work on it. What ends after it does not count either: fewer are in flight then than the load's name says.
type span struct{ begin, steady, end time.Time }

func newSpan(d time.Duration) span {
	begin := time.Now()
	return span{begin, begin.Add(d / 3), begin.Add(d)}
}

// goesOn tells whether another one is to be begun, and isSteady whether one that ends now counts.
func (s span) goesOn(now time.Time) bool   { return now.Before(s.end) }
func (s span) isSteady(now time.Time) bool { return now.After(s.steady) && now.Before(s.end) }

// answer is that of a load that has ended just now.
func (s span) answer(count, steady int) answer {
	return answer{Count: count, Elapsed: time.Since(s.begin), Steady: steady, Within: s.end.Sub(s.steady)}
}

// tasks is what a worker can do, by name.
type tasks map[string]func(context.Context, order) (answer, error)

// kinds are the workers. Each reads its settings and returns what it can do.
var kinds = map[string]func(context.Context, *json.Decoder) (tasks, error){
	"raw":     newRaw,
	"client":  newClientTasks,
	"echo":    newEcho,
	"parts":   newParts,
	"custody": newCustody,
	"tpm":     newRawTPM,
}

// runWorker is the worker's side.
func runWorker(kind string, in io.Reader, out io.Writer) error {
	start, known := kinds[kind]
	if !known {
		return fmt.Errorf("no worker %q", kind)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	orders, answers := json.NewDecoder(in), json.NewEncoder(out)
	does, err := start(ctx, orders)
	if err != nil {
		return err
	}
	for {
		var o order
		if err := orders.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		a, err := does[o.Task](ctx, o)
		if err != nil {
			a.Error = err.Error()
		}
		if err := answers.Encode(a); err != nil {
			return err
		}
	}
}

// worker is the other side's view of a worker process.
type worker struct {
	stage   *stage
	kind    string
	pid     int
	orders  *json.Encoder
	answers *json.Decoder
}

// startWorker starts one that ends with the run.
func startWorker(s *stage, kind string, environment []string, settings any) *worker {
	self, err := os.Executable()
	s.must(err)
	command := exec.Command(self, workerArgument, kind)
	command.Env = append(os.Environ(), environment...)
	command.Stderr = os.Stderr
	in, err := command.StdinPipe()
	s.must(err)
	out, err := command.StdoutPipe()
	s.must(err)
	s.must(command.Start())
	s.Cleanup(func() {
		in.Close()
		grace := time.AfterFunc(5*time.Second, func() { command.Process.Kill() })
		defer grace.Stop()
		command.Wait()
	})
	w := &worker{stage: s, kind: kind, pid: command.Process.Pid, orders: json.NewEncoder(in), answers: json.NewDecoder(bufio.NewReader(out))}
	s.must(w.orders.Encode(settings))
	return w
}

// do has the worker carry out an order.
func (w *worker) do(o order) answer {
	w.stage.must(w.orders.Encode(o))
	var a answer
	if err := w.answers.Decode(&a); err != nil {
		w.stage.Fatalf("the %s worker ended: %v", w.kind, err)
	}
	if a.Error != "" {
		w.stage.Fatalf("the %s worker, order %+v: %s", w.kind, o, a.Error)
	}
	return a
}

// until runs act in n goroutines again and again until the time is up or one
// fails, and returns how often it ran. act gets its goroutine's number.
func until(ctx context.Context, n int, d time.Duration, act func(ctx context.Context, i int) error) (answer, error) {
	var count, steady atomic.Int64
	var all errgroup.Group
	load := newSpan(d)
	for i := range n {
		all.Go(func() error {
			for now := load.begin; load.goesOn(now); {
				if err := act(ctx, i); err != nil {
					return err
				}
				count.Add(1)
				if now = time.Now(); load.isSteady(now) {
					steady.Add(1)
				}
			}
			return nil
		})
	}
	err := all.Wait()
	return load.answer(int(count.Load()), int(steady.Load())), err
}

// timed runs act again and again until the time is up and notes how long each run took.
func timed(ctx context.Context, d time.Duration, act func(ctx context.Context, i int) error) (answer, error) {
	var samples []time.Duration
	a, err := until(ctx, 1, d, func(ctx context.Context, i int) error {
		begin := time.Now()
		err := act(ctx, i)
		samples = append(samples, time.Since(begin))
		return err
	})
	a.Samples = samples
	return a, err
}
