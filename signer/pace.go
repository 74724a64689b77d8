package signer

import (
	"sync"
	"time"

	"chancery/token"
)

// paceSmoothing is how many measurements the mean follows.
const paceSmoothing = 16

// pace is how long a token takes for a signature of each algorithm, beside what else it does at the time. RSA-4096 may take a
// hundred times as long as P-256.
type pace struct {
	mu   sync.Mutex
	each map[token.Algorithm]time.Duration // recent means
}

func newPace() *pace { return &pace{each: make(map[token.Algorithm]time.Duration)} }

// of returns 0 before the first signature.
func (p *pace) of(a token.Algorithm) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.each[a]
}

// measured takes a call's mean time for a signature into the moving mean.
func (p *pace) measured(a token.Algorithm, took time.Duration) {
	took = max(took, 1)
	p.mu.Lock()
	defer p.mu.Unlock()
	mean, known := p.each[a]
	if !known {
		mean = took
	}
	p.each[a] = max(mean+(took-mean)/paceSmoothing, 1)
}
