package signer

import (
	"math/rand/v2"
	"time"
)

// pause says when a token may be opened again. One that ends once is opened again at once; one that does not
// open, or ends again soon after, is given growing pauses.
type pause struct {
	least, most time.Duration

	until time.Time
	last  time.Duration // 0: none since reset
	quick bool          // the token ended soon after it was opened, and was opened at once
}

func (p *pause) over(now time.Time) bool { return !now.Before(p.until) }

func (p *pause) left(now time.Time) time.Duration { return max(p.until.Sub(now), 0) }

// grow begins a pause of twice the last one's length, more or less.
func (p *pause) grow(now time.Time) {
	p.last = min(max(2*p.last, p.least), p.most)
	p.until = now.Add(p.last/2 + rand.N(p.last/2+1))
}

// reset ends the pause: something has changed.
func (p *pause) reset() { p.until, p.last, p.quick = time.Time{}, 0, false }

// ended begins a pause for a token that was open since then, unless it was so for long or this is the first time.
func (p *pause) ended(opened, now time.Time) {
	if now.Sub(opened) > 2*p.most {
		p.reset()
	}
	if p.quick {
		p.grow(now)
	}
	p.quick = true
}
