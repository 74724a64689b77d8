package signer

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"

	"chancery/audit"
	"chancery/token/worker"
	"chancery/tunnel/wire"
)

// line is where a session's signatures of one kind wait behind the call that waits for its turn at the token. More calls in the
// token's queue would gain nothing: each turn comes as soon for the first of them. Here what becomes ready meanwhile joins into
// fewer and larger calls, however the requests arrived.
type line struct{ waiting []*group }

// kind is what signatures have in common that one call can make.
type kind struct {
	capability worker.Capability
	scheme     wire.Scheme
	hash       wire.DigestAlgorithm // none for messages
}

func kindOf(opened *unlocked, j *job) kind {
	return kind{opened.capability, j.scheme, j.digest.Algorithm}
}

func (g *group) kind() kind {
	first := &g.present[0].work
	return kindOf(&first.opened, &first.job)
}

// slot is where the token's queue is.
func (g *group) slot() *slot { return g.present[0].work.opened.home.slot }

// lineUp has a group performed that is complete and not empty, now or when the calls before it have had their turns.
func (t *session) lineUp(g *group) {
	if t.enterLine(g.kind(), g) {
		t.handlers.Go(func() { t.performGroups([]*group{g}) })
	}
}

// enterLine tells whether the caller is the first in the line, and leaves it when the turn has come. Otherwise the group waits until
// then, unless it is nil.
func (t *session) enterLine(k kind, g *group) bool {
	t.linesMu.Lock()
	defer t.linesMu.Unlock()
	l := t.lines[k]
	if l == nil {
		t.lines[k] = &line{}
		return true
	}
	if g != nil {
		l.waiting = append(l.waiting, g)
		g.slot().inLines.Add(int64(len(g.present)))
	}
	return false
}

// leaveLine makes room for the next call, which is for as many as go into one.
func (t *session) leaveLine(k kind) {
	if next := t.nextInLine(k); len(next) > 0 {
		t.handlers.Go(func() { t.performGroups(next) })
	}
}

func (t *session) nextInLine(k kind) []*group {
	t.linesMu.Lock()
	defer t.linesMu.Unlock()
	l := t.lines[k]
	if len(l.waiting) == 0 {
		delete(t.lines, k)
		return nil
	}
	opened := &l.waiting[0].present[0].work.opened
	n, size, most := 1, len(l.waiting[0].present), opened.pieceSize(int(t.inFlight.Load()))
	for n < len(l.waiting) && size+len(l.waiting[n].present) <= most {
		size += len(l.waiting[n].present)
		n++
	}
	next := slices.Clone(l.waiting[:n])
	l.waiting = slices.Delete(l.waiting, 0, n)
	next[0].slot().inLines.Add(int64(-size))
	return next
}

// fallOut takes a group out of its line for which nobody waits any more, so that a peer whose requests end early fills no line.
func (t *session) fallOut(g *group) {
	t.linesMu.Lock()
	defer t.linesMu.Unlock()
	l := t.lines[g.kind()]
	if l == nil {
		return
	}
	if i := slices.Index(l.waiting, g); i >= 0 {
		l.waiting = slices.Delete(l.waiting, i, i+1)
		g.slot().inLines.Add(int64(-len(g.present)))
	}
}

// call is one that the first in a line makes, for the members of some groups.
type call struct {
	session *session
	ctx     context.Context // ends when nobody waits for a signature any more
	hasTurn func()
}

// performGroups signs and records for all members at once, being the first in the line. Where the token fails, which may be for one input, each gets a try of
// its own: they share a call, but no fate.
func (t *session) performGroups(groups []*group) {
	ctx, cancel := t.contextOf(groups)
	defer cancel()
	c := &call{session: t, ctx: ctx, hasTurn: sync.OnceFunc(func() { t.leaveLine(groups[0].kind()) })}
	defer c.hasTurn() // where there was none
	var members []*member
	for _, g := range groups {
		members = append(members, g.present...)
	}
	err := c.signAndRecord(members)
	if len(members) < 2 || !mayBeOneInput(err) {
		tell(members, err)
		return
	}
	for _, m := range members {
		tell([]*member{m}, c.signAndRecord([]*member{m}))
	}
}

// contextOf returns one that ends when those of all groups have ended.
func (t *session) contextOf(groups []*group) (context.Context, func()) {
	if len(groups) == 1 {
		return groups[0].ctx, groups[0].cancel
	}
	ctx, cancel := context.WithCancel(t.serving)
	ends := []func(){cancel}
	var left atomic.Int64
	left.Store(int64(len(groups)))
	for _, g := range groups {
		stop := context.AfterFunc(g.ctx, func() {
			if left.Add(-1) == 0 {
				cancel()
			}
		})
		ends = append(ends, func() { stop(); g.cancel() })
	}
	return ctx, func() {
		for _, end := range ends {
			end()
		}
	}
}

// mayBeOneInput tells whether the token failed for a reason that another input may be spared.
func mayBeOneInput(err error) bool {
	var failed *callError
	return errors.Is(err, errMixedGroup) || errors.As(err, &failed) && !isLost(err)
}

// signAndRecord does so for those of the members who still wait.
func (c *call) signAndRecord(members []*member) error {
	return c.session.guard(func() error {
		if members = remaining(members); len(members) == 0 {
			return nil
		}
		if err := c.sign(members); err != nil {
			return err
		}
		return c.record(remaining(members))
	})
}

func remaining(members []*member) []*member {
	return slices.DeleteFunc(slices.Clone(members), (*member).isGone)
}

// sign has the token sign in one call.
func (c *call) sign(members []*member) error {
	first := members[0].work
	jobs, signatures := make([]job, len(members)), make([]wire.Signature, len(members))
	for i, m := range members {
		if m.work.opened.capability != first.opened.capability {
			return errMixedGroup
		}
		jobs[i] = m.work.job
	}
	if err := c.session.perform(c.ctx, first.key, first.opened, jobs, signatures, c.hasTurn); err != nil {
		return err
	}
	for i, m := range members {
		m.signature = signatures[i]
	}
	return nil
}

// record makes durable what was signed.
func (c *call) record(members []*member) error {
	var records []audit.Record
	for _, m := range members {
		records = append(records, m.work.records...)
	}
	if len(records) == 0 {
		return nil
	}
	return c.session.server.record(c.ctx, records...)
}

// tell tells members how it ended: all of a group know of each other before the first of them replies.
func tell(members []*member, err error) {
	for _, m := range members {
		m.end(err)
	}
	for _, m := range members {
		close(m.done)
	}
}
