package main

import (
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"chancery/e2e/lab"
)

// LatencyResult is how long one thing at a time takes.
type LatencyResult struct {
	Echo     Times // 300 bytes there and back through a bridge, on a warm connection
	Fsync    Times // 300 bytes appended and made durable with fdatasync
	Requests []RequestTimes
}

// RequestTimes are those of one algorithm.
type RequestTimes struct {
	Algorithm string
	Raw       Times // the token alone
	Chain     Times // one signature through all three processes
	// Ratio is the chain's median over those of echo, fdatasync and raw together,
	// repetition by repetition; WithoutFsync leaves fdatasync out.
	Ratio, WithoutFsync float64
}

// Times are the quantiles of all samples, in microseconds, and each slice's median.
type Times struct {
	P50, P99 float64
	Medians  []float64
}

// samples collects slices of one kind.
type samples struct {
	all     []time.Duration
	medians []float64
}

func (c *samples) add(slice []time.Duration) {
	c.all = append(c.all, slice...)
	c.medians = append(c.medians, micros(quantile(slice, 0.5)))
}

func (c *samples) times() Times {
	return Times{P50: micros(quantile(c.all, 0.5)), P99: micros(quantile(c.all, 0.99)), Medians: c.medians}
}

func measureLatency(s *stage, r *Results) {
	echo := s.newEchoClient()
	var echoes, syncs samples
	raws, chains := make([]samples, len(s.options.keys)), make([]samples, len(s.options.keys))
	for repetition := range s.repetitions + 1 {
		echoed := echo.do(order{Task: "echo", For: s.slice / 2}).Samples
		synced := s.fsyncs(s.slice / 2)
		if repetition > 0 {
			echoes.add(echoed)
			syncs.add(synced)
		}
		for i, algorithm := range s.options.keys {
			raw := s.raw.do(order{Task: "latency", Key: algorithm, For: s.slice / 2}).Samples
			chain := s.client.do(order{Task: "latency", Key: algorithm, For: s.slice / 2}).Samples
			if repetition > 0 {
				raws[i].add(raw)
				chains[i].add(chain)
			}
		}
	}
	result := &LatencyResult{Echo: echoes.times(), Fsync: syncs.times()}
	for i, algorithm := range s.options.keys {
		with, without := sums(echoes.medians, syncs.medians, raws[i].medians), sums(echoes.medians, raws[i].medians)
		result.Requests = append(result.Requests, RequestTimes{
			Algorithm: algorithm, Raw: raws[i].times(), Chain: chains[i].times(),
			Ratio: median(ratios(chains[i].medians, with)), WithoutFsync: median(ratios(chains[i].medians, without)),
		})
	}
	r.Latency = result
}

func sums(columns ...[]float64) []float64 {
	out := make([]float64, len(columns[0]))
	for _, column := range columns {
		for i, value := range column {
			out[i] += value
		}
	}
	return out
}

// newEchoClient starts a bridge with an echo server behind it, and a client for it.
func (s *stage) newEchoClient() *worker {
	var l *lab.Lab
	s.asUnit(func() { l = lab.New(s, s.programs, lab.Driver{Environment: everyLab, Add: func(*lab.Lab) {}}) })
	startWorker(s, "echo", nil, echoSettings{
		Bridge: l.Servers, CA: l.Path("pki/ca.crt"), Certificate: l.Path("pki/server.lab.crt"), Key: l.Path("pki/server.lab.key"),
	})
	return s.newClient(l)
}

// fsyncs appends to a file beside the server's state and times each fdatasync.
func (s *stage) fsyncs(d time.Duration) []time.Duration {
	file, err := os.OpenFile(filepath.Join(s.chain.Dir, "fsync"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	s.must(err)
	defer file.Close()
	record := make([]byte, echoSize)
	var took []time.Duration
	for begin := time.Now(); time.Since(begin) < d; {
		one := time.Now()
		_, err := file.Write(record)
		s.must(err)
		s.must(unix.Fdatasync(int(file.Fd())))
		took = append(took, time.Since(one))
	}
	return took
}
