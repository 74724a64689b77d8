package e2e

import (
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
)

// cutter stands between two programs and copies what they send, until it is told to hold
// replies back or to cut connections.
type cutter struct {
	Address string

	listener net.Listener
	target   string
	budget   atomic.Int64 // connections are cut after up to so many bytes; zero never
	cuts     atomic.Int64
	holding  atomic.Bool // what comes back is kept until the connection is cut

	mu    sync.Mutex
	pairs map[*cutPair]bool
	ended bool
	all   sync.WaitGroup
}

// newCutter listens on loopback for who wants to reach the target.
func newCutter(t testing.TB, target string) *cutter {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{Address: listener.Addr().String(), listener: listener, target: target, pairs: make(map[*cutPair]bool)}
	c.all.Go(c.accept)
	t.Cleanup(func() {
		listener.Close()
		c.mu.Lock()
		c.ended = true
		c.mu.Unlock()
		c.cut()
		c.all.Wait()
	})
	return c
}

func (c *cutter) accept() {
	for {
		near, err := c.listener.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", c.target)
		if err != nil {
			near.Close()
			continue
		}
		c.join(near.(*net.TCPConn), far.(*net.TCPConn))
	}
}

// cutPair is one connection through the cutter.
type cutPair struct {
	cutter    *cutter
	near, far *net.TCPConn
	left      atomic.Int64 // bytes until the cut; negative from then on
	once      sync.Once
}

func (c *cutter) join(near, far *net.TCPConn) {
	p := &cutPair{cutter: c, near: near, far: far}
	if budget := c.budget.Load(); budget > 0 {
		p.left.Store(1 + rand.Int64N(budget))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		p.close()
		return
	}
	c.pairs[p] = true
	var copying sync.WaitGroup
	copying.Go(func() { p.copy(far, near, false) })
	copying.Go(func() { p.copy(near, far, true) })
	c.all.Go(func() {
		copying.Wait()
		p.close()
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.pairs, p)
	})
}

// copy passes bytes on until one side ends or the budget is used up.
func (p *cutPair) copy(to, from *net.TCPConn, back bool) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if err == io.EOF {
			to.CloseWrite()
			return
		}
		if err != nil {
			p.close()
			return
		}
		if back && p.cutter.holding.Load() {
			continue
		}
		if p.cutter.budget.Load() > 0 && p.left.Load() > 0 {
			if p.left.Add(int64(-n)) <= 0 {
				p.cutter.cuts.Add(1)
				p.close()
				return
			}
		}
		if _, err := to.Write(buffer[:n]); err != nil {
			p.close()
			return
		}
	}
}

// close resets both sides: what is on the way is lost.
func (p *cutPair) close() {
	p.once.Do(func() {
		for _, side := range []*net.TCPConn{p.near, p.far} {
			side.SetLinger(0)
			side.Close()
		}
	})
}

// cut resets every connection.
func (c *cutter) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for p := range c.pairs {
		p.close()
	}
}
