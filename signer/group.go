package signer

import (
	"context"
	"errors"
	"slices"
	"sync"

	"chancery/audit"
	"chancery/tunnel/wire"
)

// group is requests to sign that arrived together, for one key and in one way. They go to the token in one call and into the
// audit log with one sync, as the signatures of a batch do, and their replies leave in one write. In everything else each is
// by itself: authorised, refused, counted, repeated and given up. The group goes to the token when the last member has come or left.
type group struct {
	session *session
	ctx     context.Context // ends when nobody waits for a signature any more
	cancel  context.CancelFunc

	mu      sync.Mutex
	absent  int // members that have neither come nor left
	present []*member
	waiting int      // of those present
	expect  int      // replies with a signature that are still to be made
	replies []*reply // of these, until the last is there
}

// member is one request's part in a group. A nil one is that of a request that is signed by itself. Its handler
// calls it, except where the group's work is done.
type member struct {
	group  *group
	called bool // it has come or left

	work work
	done chan struct{} // closed when signature or err is set

	// guarded by the group's mutex
	gone   bool // it waits no more
	served bool // it was given its signature before it had gone

	signature wire.Signature
	err       error
}

// work is what a member has the group do.
type work struct {
	key     string
	opened  unlocked
	job     job
	records []audit.Record // of the signature, once it is made
}

// newGroup makes a group of n and its members.
func (t *session) newGroup(n int) []*member {
	g := &group{session: t, absent: n}
	g.ctx, g.cancel = context.WithCancel(t.serving)
	members := make([]*member, n)
	for i := range members {
		members[i] = &member{group: g, done: make(chan struct{})}
	}
	return members
}

// leave tells the others not to wait for this one: it was refused, or has to wait for something else. After that, and after
// it has come, it does nothing.
func (m *member) leave() {
	if m == nil || m.called {
		return
	}
	m.called = true
	m.group.arrived(nil)
}

// isOpen tells whether the group still waits for it. A repetition has left, and may have to be signed all the same.
func (m *member) isOpen() bool { return m != nil && !m.called }

// sign makes and records the signature together with the others', or returns when ctx ends. It is for members that are open.
func (m *member) sign(ctx context.Context, w work) (wire.Signature, error) {
	m.called, m.work = true, w
	m.group.arrived(m)
	select {
	case <-m.done:
		return m.signature, m.err
	case <-ctx.Done():
		m.group.givenUp(m)
		return wire.Signature{}, ctx.Err()
	}
}

// reply sends the answer of a member, or of a request without a group.
func (m *member) reply(r *reply, send chan<- *reply) {
	if m == nil {
		send <- r
		return
	}
	for _, r := range m.group.collect(m, r) {
		send <- r
	}
}

// collect returns the replies that are to be sent now: one without a signature at once, and those with one when the last of
// them is there, which is soon, for they were all made together.
func (g *group) collect(m *member, r *reply) []*reply {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !m.served {
		return []*reply{r}
	}
	if g.replies = append(g.replies, r); len(g.replies) < g.expect {
		return nil
	}
	complete := g.replies
	g.replies, g.expect = nil, 0
	return complete
}

// arrived counts a member that has come, or, for nil, one that has left. The last one has the group do its work.
func (g *group) arrived(m *member) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if m != nil {
		g.present = append(g.present, m)
		g.waiting++
	}
	if g.absent--; g.absent > 0 {
		return
	}
	if g.waiting == 0 {
		g.cancel()
		return
	}
	g.session.handlers.Go(g.perform)
}

func (g *group) givenUp(m *member) {
	g.mu.Lock()
	defer g.mu.Unlock()
	m.gone = true
	if g.waiting--; g.waiting == 0 && g.absent == 0 {
		g.cancel()
	}
}

// perform signs and records for all members at once. Where the token fails, which may be for one input, each gets a try of
// its own: they share a call, but no fate.
func (g *group) perform() {
	defer g.cancel()
	err := g.signAndRecord(g.present)
	if len(g.present) < 2 || !mayBeOneInput(err) {
		g.tell(g.present, err)
		return
	}
	for _, m := range g.present {
		g.tell([]*member{m}, g.signAndRecord([]*member{m}))
	}
}

// mayBeOneInput tells whether the token failed for a reason that another input may be spared.
func mayBeOneInput(err error) bool {
	var failed *callError
	return errors.Is(err, errMixedGroup) || errors.As(err, &failed) && !isLost(err)
}

// signAndRecord does so for those of the members who still wait.
func (g *group) signAndRecord(members []*member) error {
	return g.session.guard(func() error {
		if members = g.remaining(members); len(members) == 0 {
			return nil
		}
		if err := g.sign(members); err != nil {
			return err
		}
		return g.record(g.remaining(members))
	})
}

func (g *group) remaining(members []*member) []*member {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(members), func(m *member) bool { return m.gone })
}

// sign has the token sign in one call.
func (g *group) sign(members []*member) error {
	first := members[0].work
	jobs, signatures := make([]job, len(members)), make([]wire.Signature, len(members))
	for i, m := range members {
		if m.work.opened.capability != first.opened.capability {
			return errMixedGroup
		}
		jobs[i] = m.work.job
	}
	if err := g.session.perform(g.ctx, first.key, first.opened, jobs, signatures); err != nil {
		return err
	}
	for i, m := range members {
		m.signature = signatures[i]
	}
	return nil
}

// record makes durable what was signed.
func (g *group) record(members []*member) error {
	var records []audit.Record
	for _, m := range members {
		records = append(records, m.work.records...)
	}
	if len(records) == 0 {
		return nil
	}
	return g.session.server.record(g.ctx, records...)
}

// tell tells members how it ended.
func (g *group) tell(members []*member, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, m := range members {
		m.err = err
		if m.served = err == nil && !m.gone; m.served {
			g.expect++
		}
	}
	for _, m := range members {
		close(m.done)
	}
}

// assembly holds requests to sign back for as long as more of the kind are known to have arrived.
type assembly struct {
	session *session
	ctx     context.Context
	most    int // members of the group
	held    []heldRequest
}

type heldRequest struct {
	reply   *reply
	request *wire.Request
}

// add takes a request of a peer that understands replies in any order, or starts it at once. Arrived is how many
// requests, this one included, are known to be there.
func (a *assembly) add(r *reply, request *wire.Request, arrived int) {
	sign, ok := request.Body.(*wire.Sign)
	if !ok || !a.session.extended || r.noRoom {
		a.release()
		a.session.start(a.ctx, r, request, nil, nil)
		return
	}
	if len(a.held) > 0 && !alike(sign, a.held[0].request.Body.(*wire.Sign)) {
		a.release()
	}
	if len(a.held) == 0 {
		a.most = a.session.groupSize(sign.Key, arrived)
	}
	a.held = append(a.held, heldRequest{r, request})
	if len(a.held) >= a.most {
		a.release()
	}
}

// alike tells whether one call to the token can serve both.
func alike(a, b *wire.Sign) bool {
	return a.Key == b.Key && a.Scheme == b.Scheme && a.Digest.Algorithm == b.Digest.Algorithm && (a.Message == nil) == (b.Message == nil)
}

// release starts what is held.
func (a *assembly) release() {
	held := a.held
	a.held = a.held[:0]
	switch len(held) {
	case 0:
		return
	case 1:
		a.session.start(a.ctx, held[0].reply, held[0].request, nil, nil)
		return
	}
	members := a.session.newGroup(len(held))
	for i, h := range held {
		a.session.start(a.ctx, h.reply, h.request, nil, members[i])
	}
	clear(held)
}

// groupSize is how many of the requests that have arrived go to the token in one call.
func (t *session) groupSize(key string, arrived int) int {
	if arrived < 2 {
		return 1
	}
	opened, ok := t.lookUp(key)
	if !ok || opened.lease.limited { // which signs by itself, see signOne
		return 1
	}
	return opened.pieceSize(int(t.inFlight.Load()) + arrived)
}

// lookUp finds what the session has unlocked under a name, good or not. It is for the reader, which must not wait for a token.
func (t *session) lookUp(name string) (unlocked, bool) {
	key, ok := t.server.snapshot.Load().Key(name)
	if !ok {
		return unlocked{}, false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	opened, ok := t.unlocked[key.ID]
	return opened, ok
}
