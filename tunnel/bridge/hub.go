package bridge

import (
	"container/list"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"chancery/tunnel"
)

// Why a leg cannot wait.
var (
	errFull      = errors.New("too many connections are waiting")
	errPerClient = errors.New("too many connections of this client")
)

// hub holds the legs that wait and the pairs in progress. Its methods never
// block on a peer.
type hub struct {
	cfg *Config

	mu        sync.Mutex
	dismissed bool
	legs      map[*leg]struct{}     // all that wait, join or are paired
	clients   list.List             // of *leg, first come first
	servers   map[string]*list.List // waiting legs by server name
	waiting   int                   // legs in servers
	load      map[string]int        // joins and pairs in progress by server name
	perClient map[string]int        // connections by client name
	pairs     map[*pair]struct{}
	joins     int
	total     uint64
}

func newHub(cfg *Config) *hub {
	return &hub{
		cfg:       cfg,
		legs:      make(map[*leg]struct{}),
		servers:   make(map[string]*list.List),
		load:      make(map[string]int),
		perClient: make(map[string]int),
		pairs:     make(map[*pair]struct{}),
	}
}

func (h *hub) stats() Stats {
	h.mu.Lock()
	defer h.mu.Unlock()
	return Stats{WaitingClients: h.clients.Len(), WaitingServers: h.waiting, Pairs: len(h.pairs), Paired: h.total}
}

// enqueue lets a leg wait, or says why it may not.
func (h *hub) enqueue(l *leg) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.dismissed {
		return errDrained
	}
	if l.role == tunnel.RoleServer {
		if h.waiting >= h.cfg.MaxWaiting {
			return errFull
		}
		l.state = queued
		h.legs[l] = struct{}{}
		h.addServer(l)
		return nil
	}
	if h.clients.Len() >= h.cfg.MaxWaiting {
		return errFull
	}
	if h.perClient[l.name] >= h.cfg.MaxPerClient {
		return errPerClient
	}
	h.perClient[l.name]++
	h.legs[l] = struct{}{}
	l.state = queued
	h.clients.PushBack(l)
	l.expiry = time.AfterFunc(h.cfg.QueueWait, func() { h.end(l, errNobody) })
	return nil
}

func (h *hub) addServer(l *leg) {
	queue := h.servers[l.name]
	if queue == nil {
		queue = list.New()
		h.servers[l.name] = queue
	}
	queue.PushBack(l)
	h.waiting++
}

// take takes the next client and the server for it off their queues. It
// returns nil when there is nobody to pair, or no room for a pair.
func (h *hub) take() (client, server *leg) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.dismissed || h.clients.Len() == 0 || h.waiting == 0 || h.joins+len(h.pairs) >= h.cfg.MaxSessions {
		return nil, nil
	}
	client = h.clients.Remove(h.clients.Front()).(*leg)
	server = h.leastLoaded()
	h.removeServer(server)
	client.state, server.state = joining, joining
	h.joins++
	h.load[server.name]++
	return client, server
}

// leastLoaded returns the leg that waited longest at the server with the
// fewest pairs. At least one server leg waits.
func (h *hub) leastLoaded() *leg {
	var best *leg
	for name, queue := range h.servers {
		l := queue.Front().Value.(*leg)
		if best == nil || h.load[name] < h.load[best.name] ||
			h.load[name] == h.load[best.name] && l.since.Before(best.since) {
			best = l
		}
	}
	return best
}

func (h *hub) removeServer(l *leg) {
	queue := h.servers[l.name]
	removeLeg(queue, l)
	if queue.Len() == 0 {
		delete(h.servers, l.name)
	}
	h.waiting--
}

func removeLeg(queue *list.List, l *leg) {
	for e := queue.Front(); e != nil; e = e.Next() {
		if e.Value.(*leg) == l {
			queue.Remove(e)
			return
		}
	}
}

// commit makes a pair of two legs whose acks are written. It fails when one of
// them ended meanwhile.
func (h *hub) commit(p *pair) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if p.client.state != joining || p.server.state != joining || h.dismissed {
		return false
	}
	p.client.state, p.server.state = paired, paired
	p.client.pair, p.server.pair = p, p
	p.client.expiry.Stop()
	h.joins--
	h.pairs[p] = struct{}{}
	h.total++
	return true
}

// part undoes take. A client that is to be kept returns to the head of its
// queue, unless it ended meanwhile.
func (h *hub) part(client, server *leg, keepClient bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.joins--
	h.unload(server.name)
	if !keepClient {
		h.endLocked(server, errPartner)
		h.endLocked(client, errPartner)
		return
	}
	h.endLocked(server, errAck)
	if h.dismissed {
		h.endLocked(client, errDrained)
	}
	if client.state == joining {
		client.state = queued
		h.clients.PushFront(client)
	}
}

// check returns the leg's state after ending it if fault is not nil and it
// still waits.
func (h *hub) check(l *leg, fault error) state {
	h.mu.Lock()
	defer h.mu.Unlock()
	if fault != nil {
		h.endLocked(l, fault)
	}
	return l.state
}

// end stops a leg's wait for the given reason; a leg that is paired lives on.
func (h *hub) end(l *leg, reason error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.endLocked(l, reason)
}

func (h *hub) endLocked(l *leg, reason error) {
	switch l.state {
	case paired, gone:
		return
	case queued:
		if l.role == tunnel.RoleServer {
			h.removeServer(l)
		} else {
			removeLeg(&h.clients, l)
		}
	}
	l.state, l.reason = gone, reason
	if l.expiry != nil {
		l.expiry.Stop()
	}
	l.interrupt()
}

// cut ends a leg's wait or its pair for the given reason.
func (h *hub) cut(l *leg, reason error) {
	h.mu.Lock()
	p := l.pair
	if p == nil {
		h.endLocked(l, reason)
	}
	h.mu.Unlock()
	if p != nil {
		p.abort(reason)
	}
}

// all returns the legs that wait, join or are paired.
func (h *hub) all() []*leg {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Collect(maps.Keys(h.legs))
}

// forget gives back what an ended leg held.
func (h *hub) forget(l *leg) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.legs, l)
	if l.role == tunnel.RoleServer {
		return
	}
	if h.perClient[l.name]--; h.perClient[l.name] == 0 {
		delete(h.perClient, l.name)
	}
}

// finish takes a pair that ended off the books.
func (h *hub) finish(p *pair) {
	h.mu.Lock()
	delete(h.pairs, p)
	h.unload(p.server.name)
	h.mu.Unlock()
	h.forget(p.client)
	h.forget(p.server)
}

func (h *hub) unload(server string) {
	if h.load[server]--; h.load[server] == 0 {
		delete(h.load, server)
	}
}

// dismiss ends all waits and lets nobody wait any more.
func (h *hub) dismiss() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dismissed = true
	for h.clients.Len() > 0 {
		h.endLocked(h.clients.Front().Value.(*leg), errDrained)
	}
	for _, queue := range h.servers {
		for queue.Len() > 0 {
			h.endLocked(queue.Front().Value.(*leg), errDrained)
		}
	}
}

// abortAll cuts all pairs and returns how many there were.
func (h *hub) abortAll() int {
	h.mu.Lock()
	pairs := make([]*pair, 0, len(h.pairs))
	for p := range h.pairs {
		pairs = append(pairs, p)
	}
	h.mu.Unlock()
	for _, p := range pairs {
		p.abort(errDrained)
	}
	return len(pairs)
}
