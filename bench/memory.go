package main

import (
	"encoding/json"
	"fmt"
	"time"

	"chancery/e2e/lab"
)

// MemoryResult is what the processes hold with so many idle legs, and with so
// many sessions in which nothing happens, in KiB.
type MemoryResult struct {
	Legs, Sessions       int
	BridgeRSS, BridgePSS int
	ServerRSS, ServerPSS int
}

// measureMemory starts bridge and server anew for each row. One leg is the least
// that a server keeps waiting.
func measureMemory(s *stage, r *Results) {
	legs, sessions := []int{1, 100, 1000, 5000}, []int{100, 1000}
	if len(r.Memory) == 0 && s.slice < time.Second {
		legs, sessions = []int{1, 100, 1000}, []int{100}
	}
	l := s.newChain(variant{})
	for _, n := range legs {
		r.Memory = append(r.Memory, s.memoryOf(l, n, 0))
	}
	for _, n := range sessions {
		r.Memory = append(r.Memory, s.memoryOf(l, echoLegs, n))
	}
}

func (s *stage) memoryOf(l *lab.Lab, legs, sessions int) MemoryResult {
	l.Server.Terminate()
	l.Bridge.Terminate()
	more := l.With(fmt.Sprintf("CHANCERY_SERVER_BRIDGE_IDLE_CONNECTIONS=%d", legs))
	more.StartBridge(l.Clients, l.Servers)
	more.Serve()
	l.Bridge, l.Server = more.Bridge, more.Server
	l.Eventually(func() bool { return waitingLegs(more) == legs }, fmt.Sprintf("the server does not keep %d legs waiting", legs))
	if sessions > 0 {
		s.newClient(l).do(order{Task: "hold", Connections: sessions})
	}
	time.Sleep(settle)
	m := MemoryResult{Legs: legs, Sessions: sessions}
	var err error
	m.BridgeRSS, m.BridgePSS, err = memory(l.Bridge.Command.Process.Pid)
	s.must(err)
	m.ServerRSS, m.ServerPSS, err = memory(l.Server.Command.Process.Pid)
	s.must(err)
	return m
}

// settle is how long memory of the handshakes gets to be given back.
const settle = 5 * time.Second

// waitingLegs asks the daemon; -1 while there is no answer.
func waitingLegs(l *lab.Lab) int {
	var status struct {
		Daemon *struct {
			Bridge struct {
				Waiting int `json:"waiting"`
			} `json:"bridge"`
		} `json:"daemon"`
	}
	r := l.TryOperator("status", "--json")
	if err := json.Unmarshal([]byte(r.Stdout), &status); err != nil || status.Daemon == nil {
		return -1
	}
	return status.Daemon.Bridge.Waiting
}
