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
	"time"
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
	Samples []time.Duration // how long each took, where that was asked for
	Error   string
}

// rate returns how many there were a second.
func (a answer) rate() float64 { return float64(a.Count) / a.Elapsed.Seconds() }

// tasks is what a worker can do, by name.
type tasks map[string]func(context.Context, order) (answer, error)

// kinds are the workers. Each reads its settings and returns what it can do.
var kinds = map[string]func(context.Context, *json.Decoder) (tasks, error){
	"raw":     newRaw,
	"client":  newClientTasks,
	"echo":    newEcho,
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
	begin := time.Now()
	counts, failures := make(chan int, n), make(chan error, n)
	for i := range n {
		go func() {
			count := 0
			var err error
			for err == nil && time.Since(begin) < d {
				if err = act(ctx, i); err == nil {
					count++
				}
			}
			counts <- count
			failures <- err
		}()
	}
	var a answer
	var err error
	for range n {
		a.Count += <-counts
		err = errors.Join(err, <-failures)
	}
	a.Elapsed = time.Since(begin)
	return a, err
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
