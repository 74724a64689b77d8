package bridge

import (
	"container/list"
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"chancery/tunnel"
)

// How long a connection is left alone before it may be shed for another one.
const (
	silentGrace  = 250 * time.Millisecond // without having sent a byte
	stalledGrace = time.Second            // while the bridge waits for the rest
)

// roomAgain is how soon at the latest a full door looks for room again.
const roomAgain = 20 * time.Millisecond

var (
	errShed    = errors.New("made room for others: it had not finished its handshake")
	errTooFast = errors.New("too many new connections from its address")
)

// door holds the connections of one port that have not yet said a valid hello.
// When it is full, or one address has more than its share, the connection that
// kept the bridge waiting for longest makes room: strangers can then fill the
// door, but not bar it.
type door struct {
	capacity   int
	perAddress int
	freed      chan struct{} // holds one value when a place came free

	mu        sync.Mutex
	guests    list.List // of *guest, the longest here in front
	addresses *addresses
}

// guest is a connection in the door.
type guest struct {
	conn    net.Conn
	since   time.Time
	heard   atomic.Bool // it has sent a byte
	waiting atomic.Bool // the bridge waits for its bytes
	lost    atomic.Bool // it is refused, and only its goodbye is under way
	shed    atomic.Bool

	// Guarded by the door's mutex.
	place *list.Element // nil once it has left
	from  *address      // nil once it is no stranger
}

func newDoor(cfg *Config) *door {
	return &door{
		capacity: cfg.MaxHandshakes, perAddress: cfg.MaxHandshakesPerAddress,
		freed:     make(chan struct{}, 1),
		addresses: newAddresses(cfg.ConnectionRate, cfg.ConnectionBurst),
	}
}

// enter lets a connection in. It waits for room only while all places are
// taken by others who still have their grace, at most until ctx is done.
func (d *door) enter(ctx context.Context, conn net.Conn) (*guest, error) {
	now := time.Now()
	d.mu.Lock()
	from, allowed := d.addresses.arrive(keyOf(conn.RemoteAddr()), now)
	if allowed {
		from.guests++ // it cannot be forgotten now
	}
	d.mu.Unlock()
	if !allowed {
		return nil, errTooFast
	}
	g := &guest{conn: conn, from: from}
	for {
		if d.seat(g) {
			return g, nil
		}
		select {
		case <-d.freed:
		case <-time.After(roomAgain):
		case <-ctx.Done():
			d.leave(g)
			return nil, ctx.Err()
		}
	}
}

// seat gives a place to a guest unless there is none.
func (d *door) seat(g *guest) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	if g.from.guests > d.perAddress && now.After(g.from.knownUntil) {
		d.shedLocked(d.find(func(other *guest) bool { return other.from == g.from && (other.lost.Load() || !other.heard.Load()) }))
	}
	if d.guests.Len() >= d.capacity {
		d.shedLocked(d.slowest(now))
	}
	if d.guests.Len() >= d.capacity {
		return false
	}
	g.since = now
	g.place = d.guests.PushBack(g)
	return true
}

// slowest returns who has to make room: somebody who is refused already, or has
// been silent or stalled for longer than the grace; nil if there is nobody.
func (d *door) slowest(now time.Time) *guest {
	silent := d.find(func(g *guest) bool {
		return g.lost.Load() || !g.heard.Load() && now.Sub(g.since) >= silentGrace
	})
	if silent != nil {
		return silent
	}
	return d.find(func(g *guest) bool { return g.waiting.Load() && now.Sub(g.since) >= stalledGrace })
}

// find returns the guest that is here for longest of those that match.
func (d *door) find(match func(*guest) bool) *guest {
	for place := d.guests.Front(); place != nil; place = place.Next() {
		if g := place.Value.(*guest); match(g) {
			return g
		}
	}
	return nil
}

// shedLocked cuts a guest off; its goroutine then ends by itself.
func (d *door) shedLocked(g *guest) {
	if g == nil {
		return
	}
	g.shed.Store(true)
	d.leaveLocked(g)
	hangUp(g.conn)
}

// welcome ends the stranger's limits for a guest with a valid certificate.
func (d *door) welcome(g *guest) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if g.from == nil {
		return
	}
	d.addresses.welcome(g.from, time.Now())
	g.from.guests--
	g.from = nil
}

// leave gives the guest's place back; it may be called again.
func (d *door) leave(g *guest) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.leaveLocked(g)
}

func (d *door) leaveLocked(g *guest) {
	if g.from != nil {
		g.from.guests--
		g.from = nil
	}
	if g.place == nil {
		return
	}
	d.guests.Remove(g.place)
	g.place = nil
	select {
	case d.freed <- struct{}{}:
	default:
	}
}

// hangUp closes a stranger's connection at once, without a goodbye that would
// keep memory in the kernel.
func hangUp(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}

// watched is a transport that tells the door what its guest does. The
// connection's own goroutine alone reads, and sets guest to nil afterwards.
type watched struct {
	*tunnel.Transport
	guest *guest
}

func (w *watched) Read(b []byte) (int, error) {
	g := w.guest
	if g == nil {
		return w.Transport.Read(b)
	}
	g.waiting.Store(true)
	n, err := w.Transport.Read(b)
	g.waiting.Store(false)
	if n > 0 {
		g.heard.Store(true)
	}
	return n, err
}
