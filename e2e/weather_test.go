package e2e

import (
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"
)

// weather is a network between two programs: a proxy with a delay that varies, little bandwidth, and connections
// that die without a word to either end. The ends' kernels talk to the proxy's, so that TCP's keepalive sees nothing
// of it: a program is left with its own time limits, as behind a box that answers for a peer it has forgotten.
type weather struct {
	Address string

	listener net.Listener
	target   string
	delay    time.Duration // each way
	jitter   time.Duration // more or less
	rate     int           // bytes a second each way; zero: no limit

	mu      sync.Mutex
	out     bool // new connections are silent, too
	ended   bool
	flows   []*flow // in the order of their arrival
	arrived int
	all     sync.WaitGroup
}

// flow is one connection through it.
type flow struct {
	near, far net.Conn
	silent    chan struct{} // closed: nothing passes any more, not even an end
	quiet     sync.Once
	done      chan struct{}
	finish    sync.Once
}

// newWeather listens on loopback for who wants to reach the target. The conditions are fixed from then on.
func newWeather(t *testing.T, target string, delay, jitter time.Duration, rate int) *weather {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &weather{Address: listener.Addr().String(), listener: listener, target: target, delay: delay, jitter: jitter, rate: rate}
	w.all.Go(w.accept)
	t.Cleanup(func() {
		listener.Close()
		w.mu.Lock()
		w.ended = true
		w.mu.Unlock()
		w.reset()
		w.all.Wait()
	})
	return w
}

func (w *weather) accept() {
	for {
		near, err := w.listener.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", w.target)
		if err != nil {
			near.Close()
			continue
		}
		f := &flow{near: near, far: far, silent: make(chan struct{}), done: make(chan struct{})}
		w.mu.Lock()
		w.flows = append(w.flows, f)
		w.arrived++
		if w.out {
			f.silence()
		}
		if w.ended {
			f.reset()
		}
		w.mu.Unlock()
		w.all.Go(func() { w.carry(f, far, near) })
		w.all.Go(func() { w.carry(f, near, far) })
	}
}

func (f *flow) silence() { f.quiet.Do(func() { close(f.silent) }) }

func (f *flow) isSilent() bool {
	select {
	case <-f.silent:
		return true
	default:
		return false
	}
}

func (f *flow) reset() {
	f.finish.Do(func() {
		close(f.done)
		for _, side := range []net.Conn{f.near, f.far} {
			side.(*net.TCPConn).SetLinger(0)
			side.Close()
		}
	})
}

// parcel is some bytes, or the end, on their way.
type parcel struct {
	bytes []byte
	due   time.Time
	end   bool
}

// carry takes bytes from one end and hands them over to the other when they are due.
func (w *weather) carry(f *flow, to, from net.Conn) {
	way := make(chan parcel, 1024)
	w.all.Go(func() { f.deliver(to, way) })
	defer close(way)
	var due, sent time.Time
	for {
		buffer := make([]byte, 1400) // about a packet of Ethernet
		n, err := from.Read(buffer)
		now := time.Now()
		if w.rate > 0 {
			if sent.Before(now) {
				sent = now
			}
			sent = sent.Add(time.Duration(n) * time.Second / time.Duration(w.rate))
			now = sent
		}
		now = now.Add(w.delay - w.jitter + rand.N(2*w.jitter+1))
		if now.After(due) { // TCP keeps the order
			due = now
		}
		select {
		case way <- parcel{buffer[:n], due, err != nil}:
		case <-f.done:
			return
		}
		if err != nil {
			return
		}
	}
}

func (f *flow) deliver(to net.Conn, way <-chan parcel) {
	for p := range way {
		select {
		case <-time.After(time.Until(p.due)):
		case <-f.done:
			return
		}
		if f.isSilent() {
			<-f.done
			return
		}
		if _, err := to.Write(p.bytes); err != nil {
			f.reset()
			return
		}
		if p.end {
			to.(*net.TCPConn).CloseWrite()
		}
	}
}

// silence lets so many of the connections that came first die without a word. Negative: all.
func (w *weather) silence(count int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.flows {
		if count == 0 {
			return
		}
		if !f.isSilent() {
			f.silence()
			count--
		}
	}
}

// goOut silences every connection, and those to come.
func (w *weather) goOut() {
	w.mu.Lock()
	w.out = true
	w.mu.Unlock()
	w.silence(-1)
}

// heal lets new connections through. Those that died stay dead.
func (w *weather) heal() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.out = false
}

// notice resets the connections that are dead, as the ends' own kernels do when keepalive is not answered.
func (w *weather) notice() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.flows {
		if f.isSilent() {
			f.reset()
		}
	}
}

// reset cuts everything.
func (w *weather) reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.flows {
		f.reset()
	}
}

// connections tells how many came since the start.
func (w *weather) connections() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.arrived
}
