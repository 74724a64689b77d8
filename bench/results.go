package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Results is all that a run found. results.json holds it; rates are per second,
// times are in microseconds, memory is in KiB.
type Results struct {
	Machine    Machine
	Signatures []AlgorithmResult `json:",omitempty"`
	Variants   []VariantResult   `json:",omitempty"`
	Isolation  []IsolationResult `json:",omitempty"`
	TPM        []TPMResult       `json:",omitempty"`
	Latency    *LatencyResult    `json:",omitempty"`
	Connects   *ConnectResult    `json:",omitempty"`
	Memory     []MemoryResult    `json:",omitempty"`
}

// Machine is where and how a run was made.
type Machine struct {
	Date, CPU, Kernel, Go string
	Cores                 int
	Quick                 bool
}

func newResults(o options) *Results {
	return &Results{Machine: Machine{
		Date: time.Now().Format(time.DateOnly), CPU: cpuModel(), Kernel: kernel(), Go: runtime.Version(),
		Cores: runtime.NumCPU(), Quick: o.quick,
	}}
}

func cpuModel() string {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	_, rest, found := strings.Cut(string(info), "model name")
	if !found {
		return runtime.GOARCH
	}
	_, name, _ := strings.Cut(rest, ":")
	name, _, _ = strings.Cut(name, "\n")
	return strings.TrimSpace(name)
}

func kernel() string {
	release, err := exec.Command("uname", "-sr").Output()
	if err != nil {
		return runtime.GOOS
	}
	return strings.TrimSpace(string(release))
}

// writeAll writes tables and plots.
func (r *Results) writeAll(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "results.json"), append(data, '\n'), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "results.md"), []byte(r.Markdown()), 0o644); err != nil {
		return err
	}
	return r.plotAll(dir)
}

// median returns the middle of the values, which are not empty.
func median(values []float64) float64 { return quantile(values, 0.5) }

// quantile returns the smallest value that is not below the given part of all.
func quantile[T int | float64 | time.Duration](values []T, part float64) T {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(int(part*float64(len(sorted))), len(sorted)-1)]
}

// spread returns the quartiles, as text for a table.
func spread(values []float64, format string) string {
	return fmt.Sprintf(format+"–"+format, quantile(values, 0.25), quantile(values, 0.75))
}

// ratios divides the slices of one figure by those of another, repetition by repetition.
func ratios(of, by []float64) []float64 {
	out := make([]float64, len(of))
	for i := range of {
		out[i] = of[i] / by[i]
	}
	return out
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }
