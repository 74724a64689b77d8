package bridge

import (
	"container/list"
	"net"
	"net/netip"
	"time"
)

// maxAddresses bounds how many addresses a port remembers; each takes some 200
// bytes. The one not heard of for longest is forgotten first.
const maxAddresses = 16 << 10

// knownFor is how long an address counts as known after a peer from there has
// shown a valid certificate.
const knownFor = 10 * time.Minute

// address is what a port remembers of where connections come from. The door's
// mutex guards it.
type address struct {
	key        netip.Addr
	tokens     float64 // connections it may open at once
	asOf       time.Time
	guests     int // in their handshake now
	knownUntil time.Time
}

// addresses limits the rate of new connections with a token bucket for each
// address. A peer that shows a valid certificate gives its token back, so that
// only strangers use them up.
type addresses struct {
	rate, burst float64
	byKey       map[netip.Addr]*list.Element // of *address
	recent      list.List                    // the last heard of in front
}

func newAddresses(rate, burst int) *addresses {
	return &addresses{rate: float64(rate), burst: float64(burst), byKey: make(map[netip.Addr]*list.Element)}
}

// keyOf returns what counts as one address: an IPv4 address, or the /64 of an
// IPv6 one, all of which one host may have. What is no IP address is all one.
func keyOf(remote net.Addr) netip.Addr {
	tcp, ok := remote.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	ip := tcp.AddrPort().Addr().Unmap().WithZone("")
	if !ip.Is6() {
		return ip
	}
	prefix, err := ip.Prefix(64)
	if err != nil {
		return ip
	}
	return prefix.Addr()
}

// arrive takes a token for a new connection. There is always one for a known
// address.
func (t *addresses) arrive(key netip.Addr, now time.Time) (from *address, allowed bool) {
	from = t.find(key, now)
	from.tokens = min(t.burst, from.tokens+t.rate*now.Sub(from.asOf).Seconds())
	from.asOf = now
	if from.tokens < 1 {
		return from, now.Before(from.knownUntil)
	}
	from.tokens--
	return from, true
}

// welcome gives a token back and remembers the address as known.
func (t *addresses) welcome(from *address, now time.Time) {
	from.tokens = min(t.burst, from.tokens+1)
	from.knownUntil = now.Add(knownFor)
}

func (t *addresses) find(key netip.Addr, now time.Time) *address {
	if element, ok := t.byKey[key]; ok {
		t.recent.MoveToFront(element)
		return element.Value.(*address)
	}
	t.forgetOne()
	from := &address{key: key, tokens: t.burst, asOf: now}
	t.byKey[key] = t.recent.PushFront(from)
	return from
}

// forgetOne makes room for an address. Those with a connection in its handshake
// stay: they are few, and counted.
func (t *addresses) forgetOne() {
	if len(t.byKey) < maxAddresses {
		return
	}
	for element := t.recent.Back(); element != nil; element = element.Prev() {
		if from := element.Value.(*address); from.guests == 0 {
			t.recent.Remove(element)
			delete(t.byKey, from.key)
			return
		}
	}
}
