package bridge

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"chancery/tunnel"
)

// Why a pair was cut.
var (
	errStall  = errors.New("a peer took in nothing for too long")
	errIdle   = errors.New("idle for too long")
	errLinger = errors.New("one direction ended and the other did not follow in time")
)

// flow counts one direction of a pair.
type flow struct {
	bytes  atomic.Uint64
	writes atomic.Uint64 // odd while a write is in progress
}

// pair is a client and a server that talk.
type pair struct {
	id             tunnel.SessionID
	client, server *leg
	asked          int           // of the client's early bytes, how many the server got before the pair began
	news           chan struct{} // holds one value when a leg did something meanwhile
	began          time.Time
	up, down       flow         // from the client, from the server
	running        atomic.Int32 // directions still copying
	cut            atomic.Bool

	mu       sync.Mutex
	reason   error // of the abort
	finished bool
	linger   *time.Timer
	watch    *time.Timer
}

// match pairs as many waiting legs as there are partners for. The acks are
// written elsewhere, so that no peer holds it up.
func (b *Bridge) match() {
	for {
		client, server := b.hub.take()
		if client == nil {
			return
		}
		b.legs.Go(func() { b.join(client, server) })
	}
}

// join writes both acks and lets the two legs' goroutines copy.
func (b *Bridge) join(client, server *leg) {
	p := &pair{id: tunnel.NewSessionID(), client: client, server: server, news: make(chan struct{}, 1)}
	p.running.Store(2)
	if err := b.reach(p); err != nil {
		b.hub.retry(p, err)
		b.match()
		return
	}
	p.began = time.Now()
	if client.ack(tunnel.StatusOK, p.id) != nil || !b.hub.commit(p) {
		b.hub.part(p)
		b.match()
		return
	}
	p.up.bytes.Add(uint64(p.asked))
	b.bytesUp.Add(uint64(p.asked))
	b.cfg.Observer.Paired(p.began.Sub(client.since), p.began.Sub(server.since))
	b.log.Info("paired", "session", p.id.String(), "client", client.name, "server", server.name,
		"client_address", client.address(), "server_address", server.address(), "waited", p.began.Sub(client.since))
	p.guard(b.cfg.IdleTimeout, b.cfg.Stall)
	for _, l := range []*leg{client, server} {
		l.interrupt()
		l.paired <- p
	}
}

// copyFrom copies from one leg to its partner until that direction ends. The
// direction that ends last closes both legs.
func (b *Bridge) copyFrom(p *pair, from *leg) {
	to, through, total := p.server, &p.up, &b.bytesUp
	if from == p.server {
		to, through, total = p.client, &p.down, &b.bytesDown
	}
	if err := p.pump(from, to, through, total); err != nil {
		p.abort(err)
	} else {
		p.halfClose(to, b.cfg.Linger)
	}
	if p.running.Add(-1) == 0 {
		b.finish(p)
	}
}

// pump moves bytes until the orderly end of from (nil) or an error.
func (p *pair) pump(from, to *leg, through *flow, total *atomic.Uint64) error {
	if p.cut.Load() { // wait may have lifted the deadline that abort had set
		return net.ErrClosed
	}
	var space buffer
	defer space.release()
	for chunk, end := from.early, error(nil); ; {
		if len(chunk) > 0 {
			through.writes.Add(1)
			_, err := to.conn.Write(chunk)
			through.writes.Add(1)
			if err != nil {
				return err
			}
			through.bytes.Add(uint64(len(chunk)))
			total.Add(uint64(len(chunk)))
		}
		if errors.Is(end, io.EOF) {
			return nil
		}
		if end != nil {
			return end
		}
		from.early = nil
		var n int
		into := space.next(len(chunk))
		n, end = from.conn.Read(into)
		chunk = into[:n]
	}
}

// halfClose passes an orderly end on and gives the other direction its limit.
func (p *pair) halfClose(to *leg, linger time.Duration) {
	// A peer that ended first may have closed its socket and be gone.
	if err := to.conn.CloseWrite(); err != nil && p.running.Load() == 2 {
		p.abort(err)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.linger == nil {
		p.linger = time.AfterFunc(linger, func() { p.abort(errLinger) })
	}
}

// ticks is how often guard looks within the shorter of its two limits.
const ticks = 4

// guard cuts the pair when no byte passed for the idle time, or when one write
// took longer than stall. It looks at counters now and then, which costs the
// copying less than a deadline for each read and write, and leaves no stale
// deadline behind for what TLS writes by itself.
func (p *pair) guard(idle, stall time.Duration) {
	tick := min(idle, stall) / ticks
	var passed, writesUp, writesDown uint64
	lastByte := time.Now()
	lastUp, lastDown := lastByte, lastByte
	p.mu.Lock()
	defer p.mu.Unlock()
	p.watch = time.AfterFunc(tick, func() {
		now := time.Now()
		if changed(&passed, p.up.bytes.Load()+p.down.bytes.Load()) {
			lastByte = now
		}
		if changed(&writesUp, p.up.writes.Load()) || writesUp%2 == 0 {
			lastUp = now
		}
		if changed(&writesDown, p.down.writes.Load()) || writesDown%2 == 0 {
			lastDown = now
		}
		switch {
		case now.Sub(lastUp) > stall:
			p.abort(fmt.Errorf("%w: server", errStall))
		case now.Sub(lastDown) > stall:
			p.abort(fmt.Errorf("%w: client", errStall))
		case now.Sub(lastByte) > idle:
			p.abort(errIdle)
		default:
			p.mu.Lock()
			defer p.mu.Unlock()
			if p.running.Load() > 0 {
				p.watch.Reset(tick)
			}
		}
	})
}

// changed stores a counter's present value and tells whether it moved.
func changed(seen *uint64, now uint64) bool {
	moved := *seen != now
	*seen = now
	return moved
}

// abort makes both directions fail. The first reason counts. A pair that has
// finished is left alone, so that no late timer cuts off its goodbyes.
func (p *pair) abort(reason error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.finished {
		return
	}
	if p.reason == nil {
		p.reason = reason
	}
	p.cut.Store(true)
	for _, l := range []*leg{p.client, p.server} {
		_ = l.conn.SetDeadline(time.Unix(1, 0))
	}
}

// finish closes both legs, each with its close_notify, and records the end.
func (b *Bridge) finish(p *pair) {
	p.mu.Lock()
	reason := p.reason
	p.finished = true
	p.watch.Stop()
	if p.linger != nil {
		p.linger.Stop()
	}
	p.mu.Unlock()
	var closing sync.WaitGroup
	for _, l := range []*leg{p.client, p.server} {
		closing.Go(func() { closeLeg(l.conn, l.transport) })
	}
	closing.Wait()
	b.hub.finish(p)
	b.match() // a session slot came free
	end, word := "closed", ReasonClosed
	if reason != nil {
		end, word = reason.Error(), wordFor(reason, ReasonFailed)
	}
	b.cfg.Observer.Ended(time.Since(p.began), word)
	b.log.Info("pair ended", "session", p.id.String(), "client", p.client.name, "server", p.server.name,
		"bytes_up", p.up.bytes.Load(), "bytes_down", p.down.bytes.Load(), "duration", time.Since(p.began), "reason", end)
	<-p.client.transport.Done()
	<-p.server.transport.Done()
}
