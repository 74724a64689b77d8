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
	server = h.leastLoaded(client.unanswered > 0)
	h.removeServer(server)
	client.state, server.state = joining, joining
	h.joins++
	h.load[server.name]++
	return client, server
}

// leastLoaded returns, of the server with the fewest pairs, the leg that waited
// longest, or the newest one, which is the least likely to have died unseen. At
// least one server leg waits.
func (h *hub) leastLoaded(newest bool) *leg {
	var best *leg
	for name, queue := range h.servers {
		next := queue.Front()
		if newest {
			next = queue.Back()
		}
		l := next.Value.(*leg)
		if best == nil || h.load[name] < h.load[best.name] ||
			h.load[name] == h.load[best.name] && l.since.Before(best.since) != newest {
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
	ready := p.server.state == joining || p.server.state == answered
	if p.client.state != joining || !ready || h.dismissed {
		return false
	}
	p.client.state, p.server.state = paired, paired
	p.client.pair, p.server.pair = p, p
	p.client.expiry.Stop()
	p.client.early = p.client.early[p.asked:]
	h.joins--
	h.pairs[p] = struct{}{}
	h.total++
	return true
}

// part undoes take after the client was told that it has a partner.
func (h *hub) part(p *pair) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.joins--
	h.unload(p.server.name)
	h.endLocked(p.server, errPartner)
	h.endLocked(p.client, errPartner)
}

// retry undoes take where the server's leg was lost before the client heard of
// it. The client returns to the head of its queue, unless it ended meanwhile or
// has tried enough.
func (h *hub) retry(p *pair, lost error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.joins--
	h.unload(p.server.name)
	h.endLocked(p.server, lost)
	if lost != errAck {
		p.client.unanswered++
	}
	switch {
	case h.dismissed:
		h.endLocked(p.client, errDrained)
	case p.client.unanswered >= maxUnanswered:
		h.endLocked(p.client, errNobody)
	case p.client.state == joining:
		p.client.state = queued
		h.clients.PushFront(p.client)
	}
}

// heard notes what a waiting leg's read returned, and returns the state that
// the leg has then.
func (h *hub) heard(l *leg, b []byte, err error) state {
	h.mu.Lock()
	defer h.mu.Unlock()
	l.early = append(l.early, b...)
	if l.state == asked && len(b) > 0 {
		l.state = answered
	} else if fault := l.fault(len(b), err); fault != nil {
		h.endLocked(l, fault)
	}
	l.tell()
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
	was := l.state
	l.state, l.reason = gone, reason
	if was == answered {
		l.paired <- nil // it has room: nothing else is sent to a leg that is gone
	}
	if l.expiry != nil {
		l.expiry.Stop()
	}
	l.interrupt()
	l.tell()
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
	for l := range h.legs {
		l.tell()
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
