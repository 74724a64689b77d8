package signer

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"chancery/audit"
	"chancery/token"
	"chancery/token/worker"
	"chancery/tunnel/wire"
	"chancery/users"
)

// counted is a token's process that notes how many inputs each call has.
type counted struct {
	worker.Handler
	mu    sync.Mutex
	calls []int
}

func (c *counted) Sign(ctx context.Context, order worker.Order) ([][]byte, error) {
	c.mu.Lock()
	c.calls = append(c.calls, len(order.Inputs))
	c.mu.Unlock()
	return c.Handler.Sign(ctx, order)
}

// newGroupWorld has a token that takes one call at once and is known to be fast, so that what arrives together is signed together.
func newGroupWorld(t *testing.T, adjust ...func(*world, *Config)) (*world, *counted, *client) {
	t.Helper()
	c := &counted{}
	w := newWorld(t, append([]func(*world, *Config){func(w *world, cfg *Config) {
		cfg.Open = func(ctx context.Context, record users.Token) (h worker.Handler, err error) {
			c.Handler, err = w.token.open(ctx, record)
			return c, err
		}
	}}, adjust...)...)
	alice := w.unlockedClient("p256")
	w.server.tokens.slots[1].queue.Resize(1)
	want[*wire.SignReply](alice, alice.call(signRequest("p256")))
	c.calls = nil
	return w, c, alice
}

// holdSignatures keeps P-256 signatures at the token until the channel is closed.
func (w *world) holdSignatures() (release chan struct{}) {
	release = make(chan struct{})
	w.keys[token.P256].before(func(context.Context, []byte) error { <-release; return nil })
	return release
}

// numbered is a request to sign the n-th text.
func numbered(n int) *wire.Sign {
	return &wire.Sign{Key: "p256", Digest: digestOf(wire.SHA256, fmt.Sprint("text ", n))}
}

// sendAll sends requests in one write.
func (c *client) sendAll(requests ...*wire.Sign) (ids []uint64) {
	c.t.Helper()
	var frames []byte
	for _, request := range requests {
		var id uint64
		frames, id = c.encode(frames, request)
		ids = append(ids, id)
	}
	c.write(frames)
	return ids
}

// receiveAll returns the answers to requests in their order.
func (c *client) receiveAll(ids []uint64) []wire.ResponseBody {
	c.t.Helper()
	answers := make([]wire.ResponseBody, len(ids))
	for range ids {
		response := c.receive()
		i := slices.Index(ids, response.ID)
		if i < 0 || answers[i] != nil {
			c.t.Fatalf("an answer to request %d", response.ID)
		}
		answers[i] = response.Body
	}
	return answers
}

// expectSigned verifies the signature of the n-th text.
func (w *world) expectSigned(n int, body wire.ResponseBody) {
	w.t.Helper()
	reply, ok := body.(*wire.SignReply)
	if !ok {
		w.t.Errorf("text %d is answered with %v", n, body)
		return
	}
	sum := sha256.Sum256(fmt.Append(nil, "text ", n))
	public := w.keys[token.P256].Public().(*ecdsa.PublicKey)
	if !ecdsa.VerifyASN1(public, sum[:], reply.Signature.Bytes) || reply.Signature.Hash != hex.EncodeToString(sum[:]) {
		w.t.Errorf("the signature of text %d is none", n)
	}
}

// requests returns the numbered ones up to n.
func requests(n int) []*wire.Sign {
	all := make([]*wire.Sign, n)
	for i := range all {
		all[i] = numbered(i)
	}
	return all
}

func TestWhatArrivesTogetherIsSignedTogether(t *testing.T) {
	w, c, alice := newGroupWorld(t)
	before := len(w.audit.of(audit.KindSign))
	for i, answer := range alice.receiveAll(alice.sendAll(requests(40)...)) {
		w.expectSigned(i, answer)
	}
	if len(c.calls) > 4 || slices.Max(c.calls) > maxPiece {
		t.Errorf("calls of %v inputs", c.calls)
	}
	records := w.audit.of(audit.KindSign)[before:]
	seen := make(map[string]bool)
	for _, record := range records {
		if len(record.Digests) != 1 || record.Outcome != audit.OutcomeOK {
			t.Errorf("record %+v", record)
		}
		seen[record.Digests[0]] = true
	}
	if len(records) != 40 || len(seen) != 40 {
		t.Errorf("%d records of %d texts", len(records), len(seen))
	}
}

func TestOnlyWhatOneCallCanServeIsSignedTogether(t *testing.T) {
	w, c, alice := newGroupWorld(t)
	other := numbered(1)
	other.Digest = digestOf(wire.SHA384, "text 1")
	ids := alice.sendAll(numbered(0), other, numbered(2), numbered(3))
	answers := alice.receiveAll(ids)
	want[*wire.SignReply](alice, answers[1])
	for _, i := range []int{0, 2, 3} {
		w.expectSigned(i, answers[i])
	}
	slices.Sort(c.calls)
	if !slices.Equal(c.calls, []int{1, 1, 2}) {
		t.Errorf("calls of %v inputs", c.calls)
	}
}

func TestARefusedMemberHoldsNobodyUp(t *testing.T) {
	w, c, alice := newGroupWorld(t)
	all := requests(4)
	all[1].Digest.Hex = strings.Repeat("z", len(all[1].Digest.Hex))
	for i, answer := range alice.receiveAll(alice.sendAll(all...)) {
		if i == 1 {
			if failure, ok := answer.(*wire.Error); !ok || failure.Code == wire.CodeInternal {
				t.Errorf("a bad digest: %v", answer)
			}
			continue
		}
		w.expectSigned(i, answer)
	}
	if !slices.Equal(c.calls, []int{3}) {
		t.Errorf("calls of %v inputs", c.calls)
	}
}

// TestARefusalThatIsBeingRecordedHoldsNobodyUp has the disk take its time for it.
func TestARefusalThatIsBeingRecordedHoldsNobodyUp(t *testing.T) {
	w, _, alice := newGroupWorld(t)
	gate := make(chan struct{})
	w.audit.change(func(f *fakeAudit) { f.gate, f.only = gate, audit.KindRefused })
	all := requests(3)
	all[0].Digest.Hex = strings.Repeat("z", len(all[0].Digest.Hex))
	ids := alice.sendAll(all...)
	answers := alice.receiveAll(ids[1:])
	w.expectSigned(1, answers[0])
	w.expectSigned(2, answers[1])
	close(gate)
	want[*wire.Error](alice, alice.receiveAll(ids[:1])[0])
}

// TestMembersShareNoFate has the token refuse one input, which must not fail the others.
func TestMembersShareNoFate(t *testing.T) {
	w, _, alice := newGroupWorld(t)
	bad := sha256.Sum256([]byte("text 2"))
	w.keys[token.P256].before(func(_ context.Context, input []byte) error {
		if slices.Equal(input, bad[:]) {
			return errors.New("fake: not that one")
		}
		return nil
	})
	before := len(w.audit.of(audit.KindSign))
	for i, answer := range alice.receiveAll(alice.sendAll(requests(5)...)) {
		if i == 2 {
			want[*wire.Error](alice, answer)
			continue
		}
		w.expectSigned(i, answer)
	}
	if made := len(w.audit.of(audit.KindSign)) - before; made != 4 {
		t.Errorf("%d records of 4 signatures", made)
	}
}

// TestAMemberWhoseTimeIsOverIsAnswered at once, while the token still signs for the others, and its signature is not recorded.
func TestAMemberWhoseTimeIsOverIsAnswered(t *testing.T) {
	w, _, alice := newGroupWorld(t)
	release := w.holdSignatures()
	all := requests(3)
	all[1].Terms.Deadline = 50 * time.Millisecond
	before := len(w.audit.of(audit.KindSign))
	ids := alice.sendAll(all...)
	first := alice.receive()
	if failure, ok := first.Body.(*wire.Error); first.ID != ids[1] || !ok || failure.Code != wire.CodeDeadlineExceeded {
		t.Fatalf("first answer: %d, %v", first.ID, first.Body)
	}
	close(release)
	answers := alice.receiveAll([]uint64{ids[0], ids[2]})
	w.expectSigned(0, answers[0])
	w.expectSigned(2, answers[1])
	if made := len(w.audit.of(audit.KindSign)) - before; made != 2 {
		t.Errorf("%d records of 2 signatures that left", made)
	}
}

// TestNobodyLeftEndsTheGroup gives the token's queue up when all members have been answered.
func TestNobodyLeftEndsTheGroup(t *testing.T) {
	w, _, alice := newGroupWorld(t)
	release := w.holdSignatures()
	blocking := alice.send(numbered(100))
	waiting := w.server.tokens.slots[1].queue
	w.eventually("the token to be busy", func() bool { return waiting.Stats().InUse == 1 })
	all := requests(3)
	for _, request := range all {
		request.Terms.Deadline = 30 * time.Millisecond
	}
	for _, answer := range alice.receiveAll(alice.sendAll(all...)) {
		want[*wire.Error](alice, answer)
	}
	w.eventually("the queue to be empty", func() bool { return waiting.Stats().Abandoned > 0 && waiting.Stats().Waiting[0] == 0 })
	close(release)
	w.expectSigned(100, alice.receiveAll([]uint64{blocking})[0])
}

// TestARepetitionWithinAGroup waits for the first, which must not wait for it.
func TestARepetitionWithinAGroup(t *testing.T) {
	w, _, alice := newGroupWorld(t)
	all := []*wire.Sign{numbered(0), numbered(1), numbered(1), numbered(2)}
	all[1].Terms.IdempotencyKey = uuid.New()
	all[2].Terms = all[1].Terms
	before := len(w.audit.of(audit.KindSign))
	answers := alice.receiveAll(alice.sendAll(all...))
	for i, n := range []int{0, 1, 1, 2} {
		w.expectSigned(n, answers[i])
	}
	if !slices.Equal(answers[1].(*wire.SignReply).Signature.Bytes, answers[2].(*wire.SignReply).Signature.Bytes) {
		t.Error("the repetition has another signature")
	}
	if made := len(w.audit.of(audit.KindSign)) - before; made != 3 {
		t.Errorf("%d records of 3 signatures", made)
	}
}

// TestARepetitionOutlivesTheFirst that fails: it is then signed by itself, and not in the group that it has left.
func TestARepetitionOutlivesTheFirst(t *testing.T) {
	for name, c := range map[string]struct {
		deadline time.Duration
		failures int64
	}{
		"at the token":    {0, 2}, // in the group, and by itself
		"at its deadline": {50 * time.Millisecond, 0},
	} {
		t.Run(name, func(t *testing.T) {
			w, _, alice := newGroupWorld(t)
			release := make(chan struct{})
			twice := sha256.Sum256([]byte("text 1"))
			var tries atomic.Int64
			w.keys[token.P256].before(func(_ context.Context, input []byte) error {
				<-release
				if slices.Equal(input, twice[:]) && tries.Add(1) <= c.failures {
					return errors.New("fake: not yet")
				}
				return nil
			})
			all := []*wire.Sign{numbered(0), numbered(1), numbered(1), numbered(2)}
			all[1].Terms.IdempotencyKey = uuid.New()
			all[2].Terms.IdempotencyKey = all[1].Terms.IdempotencyKey
			all[1].Terms.Deadline = c.deadline
			ids := alice.sendAll(all...)
			time.Sleep(2 * c.deadline)
			close(release)
			answers := alice.receiveAll(ids)
			w.expectSigned(0, answers[0])
			w.expectSigned(2, answers[3])
			// Which of the two was the first is for the scheduler to say; the other was signed.
			if _, failed := answers[1].(*wire.Error); failed {
				w.expectSigned(1, answers[2])
				return
			}
			w.expectSigned(1, answers[1])
		})
	}
}

// TestGivingUpEarlyIsNobodyElsesEnd has one member give up before the other has come.
func TestGivingUpEarlyIsNobodyElsesEnd(t *testing.T) {
	w, _, _ := newGroupWorld(t)
	s := w.onlySession()
	opened, err := s.authorise("p256", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	j, err := newJob(opened.algorithm, wire.SchemeDefault, numbered(1).Digest, nil)
	if err != nil {
		t.Fatal(err)
	}
	s.handlers.Add(1) // as each member's does
	defer s.handlers.Done()
	members := s.newGroup(2)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := members[0].sign(ended, work{key: "p256", opened: opened, job: j}); !errors.Is(err, context.Canceled) {
		t.Errorf("the one who gave up: %v", err)
	}
	if _, err := members[1].sign(t.Context(), work{key: "p256", opened: opened, job: j}); err != nil {
		t.Errorf("the other: %v", err)
	}
}

// onlySession is the session of the only client.
func (w *world) onlySession() *session {
	w.t.Helper()
	w.server.mu.Lock()
	defer w.server.mu.Unlock()
	for s := range w.server.sessions {
		return s
	}
	w.t.Fatal("there is no session")
	return nil
}

// foreign is a context of another package than context, below which each context with a cancel function is a goroutine.
type foreign struct{ context.Context }

func (foreign) Done() <-chan struct{} { return make(chan struct{}) }

// TestNothingIsMadeOfNothing has nothing hang on the context that lives as long as the server where no request is held.
func TestNothingIsMadeOfNothing(t *testing.T) {
	empty := &assembly{session: &session{serving: foreign{t.Context()}}}
	before := runtime.NumGoroutine()
	for range 100 {
		empty.release()
	}
	if left := runtime.NumGoroutine() - before; left > 50 {
		t.Errorf("%d contexts were left behind", left)
	}
}

// TestGroupsLeaveNothingBehind, whether their members came, left or gave up.
func TestGroupsLeaveNothingBehind(t *testing.T) {
	w, _, _ := newGroupWorld(t)
	s := w.onlySession()
	s.handlers.Add(1) // as each member's does
	defer s.handlers.Done()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for name, end := range map[string]func([]*member){
		"all left":            func(m []*member) { m[0].leave(); m[1].leave(); m[1].leave() },
		"all gave up":         func(m []*member) { m[0].sign(ended, work{}); m[1].sign(ended, work{}) },
		"one left, one went":  func(m []*member) { m[0].leave(); m[1].sign(ended, work{}) },
		"one went, then left": func(m []*member) { m[0].sign(ended, work{}); m[1].leave() },
	} {
		members := s.newGroup(2)
		end(members)
		select {
		case <-members[0].group.ctx.Done():
		case <-time.After(patience):
			t.Errorf("%s: the group goes on", name)
		}
	}
}

// TestGoodAnswersWaitForNoRefusal lets the record of one member's failure take its time.
func TestGoodAnswersWaitForNoRefusal(t *testing.T) {
	w, _, alice := newGroupWorld(t)
	bad := sha256.Sum256([]byte("text 2"))
	w.keys[token.P256].before(func(_ context.Context, input []byte) error {
		if slices.Equal(input, bad[:]) {
			return errors.New("fake: not that one")
		}
		return nil
	})
	gate := make(chan struct{})
	w.audit.change(func(f *fakeAudit) { f.gate, f.only = gate, audit.KindRefused })
	began := time.Now()
	ids := alice.sendAll(requests(4)...)
	failing := ids[2]
	for i, answer := range alice.receiveAll(slices.Delete(slices.Clone(ids), 2, 3)) {
		w.expectSigned([]int{0, 1, 3}[i], answer)
	}
	if took := time.Since(began); took >= refusalPatience {
		t.Errorf("they came after %v", took)
	}
	close(gate)
	want[*wire.Error](alice, alice.receiveAll([]uint64{failing})[0])
}

// TestNothingIsTriedForTheGone after a call that failed.
func TestNothingIsTriedForTheGone(t *testing.T) {
	w, c, alice := newGroupWorld(t)
	release := make(chan struct{})
	var tries atomic.Int64
	w.keys[token.P256].before(func(context.Context, []byte) error {
		<-release
		if tries.Add(1) == 1 {
			return errors.New("fake: the first fails")
		}
		return nil
	})
	all := requests(4)
	for _, request := range all[1:] {
		request.Terms.Deadline = 50 * time.Millisecond
	}
	ids := alice.sendAll(all...)
	for _, answer := range alice.receiveAll(ids[1:]) {
		want[*wire.Error](alice, answer)
	}
	close(release)
	w.expectSigned(0, alice.receiveAll(ids[:1])[0])
	if !slices.Equal(c.calls, []int{4, 1}) {
		t.Errorf("calls of %v inputs", c.calls)
	}
}

// TestAGroupFitsTheLimits starts what is held back before anything waits for room, which it may be in the way of.
func TestAGroupFitsTheLimits(t *testing.T) {
	w, _, alice := newGroupWorld(t, func(_ *world, cfg *Config) { cfg.SessionRequests = 3 })
	for i, answer := range alice.receiveAll(alice.sendAll(requests(20)...)) {
		w.expectSigned(i, answer)
	}
}

// TestLimitedUnlocksAreUsedOneByOne, since a call that fails uses up what all its signatures may.
func TestLimitedUnlocksAreUsedOneByOne(t *testing.T) {
	w, c, alice := newGroupWorld(t)
	w.change(func(s *fakeStore) {
		for i := range s.grants {
			s.grants[i].LeaseUses, s.grants[i].Generation = 5, s.grants[i].Generation+1
		}
	})
	want[*wire.UnlockReply](alice, alice.call(unlockRequest("p256", passphrase)))
	signed := 0
	for _, answer := range alice.receiveAll(alice.sendAll(requests(8)...)) {
		if _, ok := answer.(*wire.SignReply); ok {
			signed++
		}
	}
	if signed != 5 || slices.Max(c.calls) != 1 {
		t.Errorf("%d signatures in calls of %v inputs", signed, c.calls)
	}
}

func TestAGroupWithoutARecordSignsNothing(t *testing.T) {
	w, _, alice := newGroupWorld(t)
	gate := make(chan struct{})
	w.keys[token.P256].before(func(context.Context, []byte) error { <-gate; return nil })
	ids := alice.sendAll(requests(6)...)
	w.eventually("the token to be asked", func() bool { return w.keys[token.P256].busy.Load() > 0 })
	w.audit.fail(audit.ErrUnavailable)
	close(gate)
	for _, answer := range alice.receiveAll(ids) {
		if failure := want[*wire.Error](alice, answer); failure.Code != wire.CodeAuditUnavailable {
			t.Errorf("%v", failure)
		}
	}
}

// TestAPanicFailsItsGroupOnly answers all members, and the session goes on.
func TestAPanicFailsItsGroupOnly(t *testing.T) {
	w, _, alice := newGroupWorld(t)
	w.keys[token.P256].before(func(context.Context, []byte) error { panic("in the token") })
	for _, answer := range alice.receiveAll(alice.sendAll(requests(3)...)) {
		want[*wire.Error](alice, answer)
	}
	w.keys[token.P256].before(func(context.Context, []byte) error { return nil })
	for i, answer := range alice.receiveAll(alice.sendAll(requests(3)...)) {
		w.expectSigned(i, answer)
	}
}

// TestARevocationInAQueueStopsTheGroup looks at the grant when the turn has come.
func TestARevocationInAQueueStopsTheGroup(t *testing.T) {
	w, _, alice := newGroupWorld(t)
	release := w.holdSignatures()
	blocking := alice.send(numbered(100))
	waiting := w.server.tokens.slots[1].queue
	w.eventually("the token to be busy", func() bool { return waiting.Stats().InUse == 1 })
	ids := alice.sendAll(requests(3)...)
	w.eventually("the group to wait", func() bool { return waiting.Stats().Waiting[0] > 0 })
	w.change(func(s *fakeStore) { s.grants = nil })
	close(release)
	for _, answer := range alice.receiveAll(append(ids, blocking))[:3] {
		want[*wire.Error](alice, answer)
	}
}

func TestPieceSize(t *testing.T) {
	for name, c := range map[string]struct {
		each              time.Duration
		slots, signatures int
		want              int
	}{
		"nobody knows how fast it is":   {0, 1, 100, 1},
		"fewer than calls":              {time.Microsecond, 16, 15, 1},
		"calls are full":                {time.Millisecond, 16, 64, 4},
		"many":                          {time.Millisecond, 4, 1000, maxPiece},
		"slow":                          {30 * time.Millisecond, 1, 64, 3},
		"slower than a piece may take":  {time.Second, 1, 64, 1},
		"faster than anything measured": {1, 1, 64, maxPiece},
	} {
		if got := pieceSize(c.each, c.slots, c.signatures); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}

// TestAFastKeyMakesNoSlowOneWaitLonger keeps the pace of each algorithm by itself.
func TestAFastKeyMakesNoSlowOneWaitLonger(t *testing.T) {
	w, c, alice := newGroupWorld(t)
	slow := string(token.RSA2048)
	want[*wire.UnlockReply](alice, alice.call(unlockRequest(slow, passphrase)))
	w.keys[token.RSA2048].before(func(context.Context, []byte) error { time.Sleep(pieceTime); return nil })
	want[*wire.SignReply](alice, alice.call(signRequest(slow)))
	for i := range 40 {
		w.expectSigned(i, alice.receiveAll(alice.sendAll(numbered(i)))[0])
	}
	c.calls = nil
	all := make([]*wire.Sign, 6)
	for i := range all {
		all[i] = signRequest(slow)
	}
	for _, answer := range alice.receiveAll(alice.sendAll(all...)) {
		want[*wire.SignReply](alice, answer)
	}
	if slices.Max(c.calls) != 1 {
		t.Errorf("calls of %v inputs", c.calls)
	}
}

func TestGroupsOfASlowTokenAreSmall(t *testing.T) {
	w, c, alice := newGroupWorld(t)
	w.keys[token.P256].before(func(context.Context, []byte) error { time.Sleep(pieceTime); return nil })
	for i := range 20 { // until the queue knows
		w.expectSigned(i, alice.receiveAll(alice.sendAll(numbered(i)))[0])
	}
	c.calls = nil
	for i, answer := range alice.receiveAll(alice.sendAll(requests(6)...)) {
		w.expectSigned(i, answer)
	}
	if slices.Max(c.calls) != 1 {
		t.Errorf("calls of %v inputs", c.calls)
	}
}

// TestVersion2KeepsItsOrder signs one after the other for a peer that wants its answers in the order of its requests.
func TestVersion2KeepsItsOrder(t *testing.T) {
	w, c, _ := newGroupWorld(t)
	plain := w.connect("alice", false)
	want[*wire.UnlockReply](plain, plain.call(unlockRequest("p256", passphrase)))
	ids := plain.sendAll(requests(10)...)
	for i, id := range ids {
		response := plain.receive()
		if response.ID != id {
			t.Fatalf("answer %d is to request %d", i, response.ID)
		}
		w.expectSigned(i, response.Body)
	}
	if slices.Max(c.calls) != 1 {
		t.Errorf("calls of %v inputs", c.calls)
	}
}
