package main

import (
	"fmt"

	"chancery/e2e/lab"
)

// load is one way of asking for signatures.
type load struct {
	Name  string // for tables
	order order
}

// The loads. A raw token has sessions where the chain has requests in flight.
var (
	rawLoads = []load{
		{"1 session", order{Task: "rate", Parallel: 1}},
		{"2 sessions", order{Task: "rate", Parallel: 2}},
		{"8 sessions", order{Task: "rate", Parallel: 8}},
		{"32 sessions", order{Task: "rate", Parallel: 32}},
	}
	chainLoads = []load{
		{"1 in flight", order{Task: "rate", Parallel: 1}},
		{"8 in flight", order{Task: "rate", Parallel: 8}},
		{"64 in flight", order{Task: "rate", Parallel: 64}},
		{"32 connections", order{Task: "rate", Parallel: 1, Connections: 32}},
		{"batches of 100", order{Task: "rate", Parallel: 1, Batch: 100}},
		{"4 batches of 100", order{Task: "rate", Parallel: 4, Batch: 100}},
		{"library, 1 in flight", order{Task: "library", Parallel: 1}},
		{"library, 8 in flight", order{Task: "library", Parallel: 8}},
		{"library, 64 in flight", order{Task: "library", Parallel: 64}},
		{"library, 4 batches of 100", order{Task: "library", Parallel: 4, Batch: 100}},
	}
)

// AlgorithmResult is how fast keys of one algorithm sign.
type AlgorithmResult struct {
	Algorithm string
	Raw       []Figure
	Chain     []Figure
	BestRaw   string // the raw figure that ratios are made with
}

// Figure is one measured rate.
type Figure struct {
	Load   string
	Slices []float64 // signatures a second, one for each repetition
	Median float64
	Ratio  float64            `json:",omitempty"` // to the best raw figure of the same repetition; the median
	Ratios []float64          `json:",omitempty"`
	CPU    map[string]float64 `json:",omitempty"` // microseconds of processor time that each process used for one signature
}

// measureSignatures takes turns: a slice of the chain, a slice of the raw token,
// and so on through all loads, as often as there are repetitions.
func measureSignatures(s *stage, r *Results) {
	for _, algorithm := range s.options.keys {
		s.say("  %s", titles[algorithm])
		result := AlgorithmResult{Algorithm: algorithm, Raw: figures(rawLoads), Chain: figures(chainLoads)}
		chainCPU, rawCPU := make([]usage, len(chainLoads)), make([]usage, len(rawLoads))
		for repetition := range s.repetitions + 1 {
			count := repetition > 0 // the first round only warms up
			for i := range max(len(rawLoads), len(chainLoads)) {
				if i < len(chainLoads) {
					s.signSlice(s.client, chainLoads[i].order, algorithm, &result.Chain[i], &chainCPU[i], count)
				}
				if i < len(rawLoads) {
					s.signSlice(s.raw, rawLoads[i].order, algorithm, &result.Raw[i], &rawCPU[i], count)
				}
			}
		}
		for i := range chainCPU {
			result.Chain[i].CPU = chainCPU[i].each()
		}
		for i := range rawCPU {
			result.Raw[i].CPU = rawCPU[i].each()
		}
		result.finish()
		r.Signatures = append(r.Signatures, result)
	}
}

// signSlice measures one slice of one load.
func (s *stage) signSlice(w *worker, o order, key string, f *Figure, cpu *usage, count bool) {
	o.Key, o.For = key, s.sliceOf(key)
	processes := map[string]int{"raw": s.raw.pid}
	if w == s.client {
		processes = chainProcesses(s.chain, w)
	}
	a, used := s.watched(w, o, processes)
	if !count {
		return
	}
	f.Slices = append(f.Slices, a.rate())
	cpu.add(used)
}

func figures(loads []load) []Figure {
	out := make([]Figure, len(loads))
	for i, l := range loads {
		out[i].Load = l.Name
	}
	return out
}

func chainProcesses(l *lab.Lab, client *worker) map[string]int {
	server := l.Server.Command.Process.Pid
	processes := map[string]int{"client": client.pid, "bridge": l.Bridge.Command.Process.Pid, "server": server}
	if pid := tokenProcess(server); pid != 0 {
		processes["token"] = pid
	}
	return processes
}

// finish computes medians and ratios. The best raw figure is the one with the
// highest median; each slice of the chain is divided by its slice of the same repetition.
func (a *AlgorithmResult) finish() {
	best := &a.Raw[0]
	for i := range a.Raw {
		a.Raw[i].Median = median(a.Raw[i].Slices)
		if a.Raw[i].Median > best.Median {
			best = &a.Raw[i]
		}
	}
	a.BestRaw = best.Load
	for i := range a.Chain {
		f := &a.Chain[i]
		f.Median = median(f.Slices)
		f.Ratios = ratios(f.Slices, best.Slices)
		f.Ratio = median(f.Ratios)
	}
}

// figure returns the chain's figure under a load.
func (a *AlgorithmResult) figure(load string) *Figure {
	for i := range a.Chain {
		if a.Chain[i].Load == load {
			return &a.Chain[i]
		}
	}
	panic(fmt.Sprintf("no load %q", load)) // the loads are this file's own
}

func (a *AlgorithmResult) bestRaw() *Figure {
	for i := range a.Raw {
		if a.Raw[i].Load == a.BestRaw {
			return &a.Raw[i]
		}
	}
	return &a.Raw[0]
}
