package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// usage is the processor time that processes used for some signatures.
type usage struct {
	used  map[string]time.Duration
	count int
}

func (u *usage) add(more usage) {
	if u.used == nil {
		u.used = make(map[string]time.Duration)
	}
	for name, d := range more.used {
		u.used[name] += d
	}
	u.count += more.count
}

// each returns the microseconds of processor time that each process used for one signature.
func (u *usage) each() map[string]float64 {
	each := make(map[string]float64)
	for name, d := range u.used {
		each[name] = micros(d) / float64(u.count)
	}
	return each
}

// watched has a worker carry out an order and returns what that cost the processes.
func (s *stage) watched(w *worker, o order, processes map[string]int) (answer, usage) {
	before := s.cpuTimes(processes)
	a := w.do(o)
	used := s.cpuTimes(processes)
	for name := range used {
		used[name] -= before[name]
	}
	return a, usage{used: used, count: a.Count}
}

// clockTick is the unit of /proc/PID/stat, the same on all of Linux's common platforms.
const clockTick = 10 * time.Millisecond

func (s *stage) cpuTimes(processes map[string]int) map[string]time.Duration {
	times := make(map[string]time.Duration)
	for name, pid := range processes {
		used, err := cpuTime(pid)
		s.must(err)
		times[name] = used
	}
	return times
}

// cpuTime reads user and system time of a process (proc(5)).
func cpuTime(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, found := strings.Cut(string(text), ") ") // the name before it may hold anything
	fields := strings.Fields(rest)
	if !found || len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat is not as expected", pid)
	}
	var ticks int64
	for _, field := range fields[11:13] { // utime, stime
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * clockTick, nil
}

// tokenProcess finds the process that a server keeps its token in, or 0.
func tokenProcess(server int) int {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", server))
	for _, list := range lists {
		text, err := os.ReadFile(list)
		if err != nil {
			continue
		}
		for _, field := range strings.Fields(string(text)) {
			line, err := os.ReadFile("/proc/" + field + "/cmdline")
			if pid, convErr := strconv.Atoi(field); err == nil && convErr == nil && strings.Contains(string(line), "token-worker") {
				return pid
			}
		}
	}
	return 0
}

// memory reads a process's resident and proportional set size, in KiB.
func memory(pid int) (rss, pss int, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "Rss:":
			rss, err = strconv.Atoi(fields[1])
		case "Pss:":
			pss, err = strconv.Atoi(fields[1])
		}
		if err != nil {
			return 0, 0, err
		}
	}
	return rss, pss, nil
}
