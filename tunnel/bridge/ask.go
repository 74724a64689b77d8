package bridge

import (
	"errors"
	"time"

	"chancery/tunnel"
)

// maxUnanswered bounds how many legs one client may find silent, whatever
// Config.LegAnswer and Config.QueueWait are.
const maxUnanswered = 8

// reach brings the server its ack, and makes sure that it is there where that
// can be known: a client that has begun its inner handshake already must get
// an answer. The client has heard nothing yet, so that it can have another leg.
func (b *Bridge) reach(p *pair) error {
	if p.server.ack(tunnel.StatusOK, p.id) != nil {
		return errAck
	}
	before, eager := b.hub.ask(p)
	if !eager {
		return nil
	}
	// A server may be busy rather than gone: the more of them seem silent, the more time has the next.
	err := b.awaitAnswer(p, b.cfg.LegAnswer<<before)
	if errors.Is(err, errSilent) {
		b.strange.Warn("dropped a waiting connection that does not answer", "server", p.server.name, "peer", p.server.address(),
			"waited", time.Since(p.server.since), "client", p.client.name)
	}
	return err
}

// awaitAnswer passes on what the client has sent, and goes on doing so, until
// the first byte comes back.
func (b *Bridge) awaitAnswer(p *pair, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		more, answered, err := b.hub.progress(p)
		if answered || err != nil {
			return err
		}
		if len(more) > 0 && p.server.write(more, deadline) != nil {
			return errSilent
		}
		select {
		case <-p.news:
		case <-timer.C:
			return errSilent
		}
	}
}

// ask begins to wait for the server's answer, and returns how many other legs
// the client waited for in vain. It returns false where the client has sent
// nothing that could be answered.
func (h *hub) ask(p *pair) (before int, eager bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(p.client.early) == 0 {
		return 0, false
	}
	if p.server.state == joining {
		p.server.state = asked
	}
	p.client.news, p.server.news = p.news, p.news
	return p.client.unanswered, true
}

// progress returns what else of the client's early bytes the server is to get,
// or whether it has answered, or why it need not any more.
func (h *hub) progress(p *pair) (more []byte, done bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.dismissed:
		return nil, false, errDrained
	case p.client.state != joining:
		return nil, false, errPartner
	case p.server.state == answered:
		return nil, true, nil
	case p.server.state != asked:
		return nil, false, p.server.reason
	}
	more = p.client.early[p.asked:]
	p.asked = len(p.client.early)
	return more, false, nil
}
