package main

import (
	"path/filepath"
	"time"

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
	Parts     Times // echo, signature of the token alone and fdatasync, one after the other
	Chain     Times // one signature through all three processes
	// Ratio is the chain's median over those of echo, fdatasync and raw together, each of which was measured by itself,
	// repetition by repetition; WithoutFsync leaves fdatasync out; OfParts is over that of Parts.
	Ratio, WithoutFsync, OfParts float64
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
	echoLab := s.newEchoLab()
	echo, all := s.newClient(echoLab), s.newPartsWorker(echoLab)
	disk, err := newAppender(filepath.Join(s.chain.Dir, "fsync"))
	s.must(err)
	defer disk.file.Close()
	var echoes, syncs samples
	raws, parts, chains := make([]samples, len(s.options.keys)), make([]samples, len(s.options.keys)), make([]samples, len(s.options.keys))
	for repetition := range s.repetitions + 1 {
		echoed := echo.do(order{Task: "echo", For: s.slice / 2}).Samples
		appended, err := disk.appends(s.slice / 2)
		s.must(err)
		if repetition > 0 {
			echoes.add(echoed)
			syncs.add(appended.Samples)
		}
		for i, algorithm := range s.options.keys {
			one := order{Task: "latency", Key: algorithm, For: s.slice / 2}
			raw, part, chain := s.raw.do(one).Samples, all.do(one).Samples, s.client.do(one).Samples
			if repetition > 0 {
				raws[i].add(raw)
				parts[i].add(part)
				chains[i].add(chain)
			}
		}
	}
	result := &LatencyResult{Echo: echoes.times(), Fsync: syncs.times()}
	for i, algorithm := range s.options.keys {
		with, without := sums(echoes.medians, syncs.medians, raws[i].medians), sums(echoes.medians, raws[i].medians)
		result.Requests = append(result.Requests, RequestTimes{
			Algorithm: algorithm, Raw: raws[i].times(), Parts: parts[i].times(), Chain: chains[i].times(),
			Ratio: median(ratios(chains[i].medians, with)), WithoutFsync: median(ratios(chains[i].medians, without)),
			OfParts: median(ratios(chains[i].medians, parts[i].medians)),
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

// newEchoLab starts a bridge with an echo server behind it.
func (s *stage) newEchoLab() *lab.Lab {
	var l *lab.Lab
	s.asUnit(func() { l = lab.New(s, s.programs, lab.Driver{Environment: everyLab, Add: func(*lab.Lab) {}}) })
	startWorker(s, "echo", nil, echoSettings{
		Bridge: l.Servers, CA: l.Path("pki/ca.crt"), Certificate: l.Path("pki/server.lab.crt"), Key: l.Path("pki/server.lab.key"),
	})
	return l
}

// newPartsWorker starts a worker with the echo server, the chain's token and a file beside the server's state.
func (s *stage) newPartsWorker(echo *lab.Lab) *worker {
	var w *worker
	s.asUnit(func() {
		w = startWorker(s, "parts", s.chain.Environment, partsSettings{Echo: settingsFor(echo), Raw: s.rawSettings(), File: filepath.Join(s.chain.Dir, "parts")})
	})
	return w
}
