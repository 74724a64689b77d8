package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// profiled is how long each profile is recorded.
const profiled = 15 * time.Second

// profile signs P-256 with 64 requests in flight while perf watches one process
// after the other, C code and kernel included. perf has to be installed. What it
// recorded stays beside the report, for `perf report -i FILE`.
func (s *stage) profile(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	load := order{Task: "rate", Key: s.options.profiledKey(), Parallel: 64, For: time.Second}
	s.client.do(load) // the token's process starts with the first unlock
	load.For = profiled
	for _, process := range []struct {
		name string
		pid  int
	}{
		{"server", s.chain.Server.Command.Process.Pid},
		{"token", tokenProcess(s.chain.Server.Command.Process.Pid)},
		{"bridge", s.chain.Bridge.Command.Process.Pid},
		{"client", s.client.pid},
	} {
		recorded := filepath.Join(dir, process.name+".perf")
		perf := exec.Command("perf", "record", "-q", "-F", "999", "--call-graph", "fp", "-o", recorded,
			"-p", fmt.Sprint(process.pid), "--", "sleep", fmt.Sprint(profiled.Seconds()))
		perf.Stderr = os.Stderr
		if err := perf.Start(); err != nil {
			return err
		}
		a := s.client.do(load)
		if err := perf.Wait(); err != nil {
			return fmt.Errorf("perf record: %w", err)
		}
		s.say("%s: %.0f signatures a second while being watched", process.name, a.rate())
		if err := report(recorded, filepath.Join(dir, process.name)); err != nil {
			return err
		}
	}
	return nil
}

// report writes which functions took the time themselves, and which with all that they called.
func report(recorded, name string) error {
	for suffix, flags := range map[string]string{
		"self":  "--no-children",
		"total": "--children",
	} {
		out, err := exec.Command("perf", "report", "-i", recorded, "--stdio", "-g", "none", "--percent-limit", "0.4", "--sort", "symbol", flags).Output()
		if err != nil {
			return fmt.Errorf("perf report: %w", err)
		}
		var kept strings.Builder
		for line := range strings.Lines(string(out)) {
			if !strings.HasPrefix(line, "#") && strings.TrimSpace(line) != "" {
				kept.WriteString(line)
			}
		}
		if err := os.WriteFile(name+"."+suffix+".txt", []byte(kept.String()), 0o644); err != nil {
			return err
		}
	}
	return nil
}
