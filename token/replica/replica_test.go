package replica_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/token"
	"chancery/token/replica"
)

func TestSignaturesAreSpread(t *testing.T) {
	p := newGroup(t, replica.Config{}, 3)
	p.mustSign(t, 30)
	for i, h := range p.hsms {
		if n := get(h, func(h *hsm) int { return h.signed }); n < 10 {
			t.Errorf("member %d made %d of 30 signatures", i, n)
		}
	}
	info, err := p.Info(t.Context())
	if err != nil || info.Serial != "0042" || info.MaxSessions != 12 || !info.LoggedIn || info.Driver != "fake" {
		t.Errorf("%+v, %v", info, err)
	}
}

// TestOneMemberFails has one of two fail in every way while clients sign: none of them notices, and the member is
// taken back once it is in order.
func TestOneMemberFails(t *testing.T) {
	for _, c := range []struct {
		name      string
		breaks    func(h *hsm)
		mends     func(h *hsm)
		passively bool // nothing needs mending
	}{
		{"absent", func(h *hsm) { h.absent = true }, func(h *hsm) { h.absent = false }, false},
		{"corrupts", func(h *hsm) { h.corrupts = true }, func(h *hsm) { h.corrupts = false }, false},
		{"corrupts and tests", func(h *hsm) { h.corrupts, h.tests = true, true }, func(h *hsm) { h.corrupts = false }, false},
		{"hangs", func(h *hsm) { h.hangs = make(chan struct{}) }, (*hsm).release, false},
		{"panics", func(h *hsm) { h.panics = true }, func(h *hsm) { h.panics = false }, false},
		{"broken", func(h *hsm) { h.fails = errors.New("CKR_DEVICE_MEMORY") }, func(h *hsm) { h.fails = nil }, false},
		{"busy", func(h *hsm) { h.fails = token.ErrBusy }, func(h *hsm) { h.fails = nil }, false},
		{"lost its login", func(h *hsm) { h.session.in = false }, nil, true},
		{"was closed", func(h *hsm) { h.session.closed = true }, nil, true},
	} {
		for _, member := range []int{0, 1} {
			t.Run(fmt.Sprintf("%s/%d", c.name, member), func(t *testing.T) {
				t.Parallel()
				p := newPair(t)
				h := p.hsms[member]
				before := get(h, func(h *hsm) int { return h.opens })
				stop := make(chan struct{})
				var clients sync.WaitGroup
				for range 4 {
					clients.Go(func() {
						for {
							select {
							case <-stop:
								return
							default:
							}
							if err := sign(t.Context(), p.key); err != nil {
								t.Errorf("%v", err)
							}
						}
					})
				}
				h.set(c.breaks)
				if !c.passively {
					p.await(t, member, replica.StateLeftOut)
					h.set(c.mends)
				}
				eventually(t, "opened anew", func() bool { return get(h, func(h *hsm) int { return h.opens }) > before })
				p.await(t, member, replica.StateHealthy)
				signed := get(h, func(h *hsm) int { return h.signed })
				eventually(t, "signing again", func() bool { return get(h, func(h *hsm) int { return h.signed }) > signed+1 })
				close(stop)
				clients.Wait()
			})
		}
	}
}

// TestHungMemberGetsNoMoreCalls counts what reaches a member whose calls do not return.
func TestHungMemberGetsNoMoreCalls(t *testing.T) {
	p := newPair(t)
	var before int
	p.hsms[0].set(func(h *hsm) {
		h.hangs = make(chan struct{})
		before = h.calls
	})
	p.await(t, 0, replica.StateLeftOut)
	p.mustSign(t, 50)
	time.Sleep(200 * time.Millisecond) // ten probes
	status := p.Members()[0]
	hung := get(p.hsms[0], func(h *hsm) int { return h.calls }) - before
	if hung == 0 || status.Behind != hung || status.InFlight != hung {
		t.Errorf("%d calls hang, %+v", hung, status)
	}
	p.hsms[0].set((*hsm).release)
	p.await(t, 0, replica.StateHealthy)
	if status := p.Members()[0]; status.Behind != 0 || status.Err != nil {
		t.Errorf("%+v", status)
	}
}

// TestMemberWithoutAKeyThatFits is not taken back as long as its driver finds that no key's halves fit together.
func TestMemberWithoutAKeyThatFits(t *testing.T) {
	p := newPair(t)
	p.hsms[0].set(func(h *hsm) { h.corrupts, h.tests = true, true })
	p.mustSign(t, 20)
	p.await(t, 0, replica.StateLeftOut)
	time.Sleep(200 * time.Millisecond) // ten attempts
	if status := p.Members()[0]; status.State != replica.StateLeftOut {
		t.Errorf("%+v", status)
	}
	p.hsms[0].set(func(h *hsm) { h.corrupts = false })
	p.await(t, 0, replica.StateHealthy)
	p.mustSign(t, 20)
}

// TestRequestWaitsForMember has all members vanish: the request is served once one returns.
func TestRequestWaitsForMember(t *testing.T) {
	p := newPair(t)
	for _, h := range p.hsms {
		h.set(func(h *hsm) { h.absent = true })
	}
	signed := make(chan error, 1)
	go func() { signed <- sign(t.Context(), p.key) }()
	p.await(t, 0, replica.StateLeftOut)
	p.await(t, 1, replica.StateLeftOut)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	wantError(t, "with a context that ends", sign(ctx, p.key), context.DeadlineExceeded)
	select {
	case err := <-signed:
		t.Fatalf("without any member: %v", err)
	default:
	}
	p.hsms[1].set(func(h *hsm) { h.absent = false })
	if err := <-signed; err != nil {
		t.Error(err)
	}
}

func TestAwaitMemberEnds(t *testing.T) {
	p := newGroup(t, replica.Config{AwaitMember: 50 * time.Millisecond}, 2)
	for _, h := range p.hsms {
		h.set(func(h *hsm) { h.absent = true })
	}
	wantError(t, "sign", sign(t.Context(), p.key), token.ErrTokenAbsent)
	wantError(t, "login after logout", func() error {
		if err := p.Logout(t.Context()); err != nil {
			t.Error(err)
		}
		return p.Login(t.Context(), pin)
	}(), token.ErrTokenAbsent)
}

// TestErrorsOfTheRequest are tried at every member and leave none out.
func TestErrorsOfTheRequest(t *testing.T) {
	p := newPair(t)
	_, err := p.Key(t.Context(), []byte("nowhere"))
	wantError(t, "find", err, token.ErrNoKey)
	_, err = p.key.Sign(t.Context(), []byte("short"), crypto.SHA256)
	wantError(t, "short digest", err, token.ErrUnsupported)
	for _, h := range p.hsms {
		h.set(func(h *hsm) { h.fails = token.ErrUnsupported })
	}
	wantError(t, "unsupported", sign(t.Context(), p.key), token.ErrUnsupported)
	for _, h := range p.hsms {
		h.set(func(h *hsm) { h.fails = nil })
	}
	for _, status := range p.Members() {
		if status.State != replica.StateHealthy {
			t.Errorf("%+v", status)
		}
	}
	p.mustSign(t, 4)
}

// TestBurst has members that have just signed be busy many times in a row.
func TestBurst(t *testing.T) {
	p := newGroup(t, replica.Config{SignTimeout: time.Minute}, 2)
	p.mustSign(t, 2)
	for _, h := range p.hsms {
		h.set(func(h *hsm) { h.fails = token.ErrBusy })
	}
	for range 10 {
		wantError(t, "sign", sign(t.Context(), p.key), token.ErrBusy)
	}
	for i, h := range p.hsms {
		if status := p.Members()[i]; status.State != replica.StateHealthy {
			t.Errorf("%+v", status)
		}
		h.set(func(h *hsm) { h.fails = nil })
	}
	p.mustSign(t, 2)
}

// TestMembersThatSignOneAfterTheOther has so many signatures asked for at once that the last ones wait for much longer than one may take.
func TestMembersThatSignOneAfterTheOther(t *testing.T) {
	p := newGroup(t, replica.Config{SignTimeout: 300 * time.Millisecond}, 2)
	for _, h := range p.hsms {
		h.set(func(h *hsm) { h.takes = 50 * time.Millisecond })
	}
	var group sync.WaitGroup
	for range 32 {
		group.Go(func() {
			if err := sign(t.Context(), p.key); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	for i, h := range p.hsms {
		if opens := get(h, func(h *hsm) int { return h.opens }); opens != 1 {
			t.Errorf("member %d was opened %d times: %+v", i, opens, p.Members()[i])
		}
	}
}

// TestDifferentKey has a member with another key pair under the same identifier.
func TestDifferentKey(t *testing.T) {
	keys := newKeys(t, "a", "b")
	primary, other := newHSM(keys), newHSM(map[string]*ecdsa.PrivateKey{"a": newKeys(t, "a")["a"], "b": keys["b"]})
	p := &pair{Token: openFakes(t, replica.Config{}, primary, other), hsms: []*hsm{primary, other}}
	if err := p.Login(t.Context(), pin); err != nil {
		t.Fatal(err)
	}
	var err error
	if p.key, err = p.Key(t.Context(), []byte("a")); err != nil {
		t.Fatal(err)
	}
	p.mustSign(t, 20)
	if n := get(other, func(h *hsm) int { return h.signed }); n != 0 {
		t.Errorf("the other key made %d signatures", n)
	}
	both, err := p.Key(t.Context(), []byte("b"))
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		if err := sign(t.Context(), both); err != nil {
			t.Error(err)
		}
	}
	if n := get(other, func(h *hsm) int { return h.signed }); n == 0 {
		t.Error("the member is left out for its good key too")
	}
	other.set(func(h *hsm) { h.keys = keys }) // cloned at last
	eventually(t, "used for both keys", func() bool {
		before := get(other, func(h *hsm) int { return h.signed })
		p.mustSign(t, 2)
		return get(other, func(h *hsm) int { return h.signed }) > before
	})
}

// TestReplacedKey has another key pair under the same identifier everywhere.
func TestReplacedKey(t *testing.T) {
	p := newPair(t)
	next := newKeys(t, "a")
	for _, h := range p.hsms {
		h.set(func(h *hsm) { h.keys = next })
	}
	found, err := p.Key(t.Context(), []byte("a"))
	if err != nil {
		t.Fatal(err)
	}
	if !next["a"].PublicKey.Equal(found.Public()) || p.key.Public().(*ecdsa.PublicKey).Equal(found.Public()) {
		t.Error("not the new key")
	}
	if err := sign(t.Context(), found); err != nil {
		t.Error(err)
	}
}

// TestThePrimaryReturnsWithAnotherKey has a second member show a key first that the primary, which was away, has otherwise.
func TestThePrimaryReturnsWithAnotherKey(t *testing.T) {
	keys, others := newKeys(t, "a"), newKeys(t, "a")
	primary, second := newHSM(keys), newHSM(others)
	primary.absent = true
	p := &pair{Token: openFakes(t, replica.Config{}, primary, second), hsms: []*hsm{primary, second}}
	if err := p.Login(t.Context(), pin); err != nil {
		t.Fatal(err)
	}
	found := func(when string, keys map[string]*ecdsa.PrivateKey) {
		t.Helper()
		k, err := p.Key(t.Context(), []byte("a"))
		if err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		if !keys["a"].PublicKey.Equal(k.Public()) {
			t.Fatalf("%s: not the key that counts", when)
		}
		if err := sign(t.Context(), k); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	found("while the primary is away", others)
	primary.set(func(h *hsm) { h.absent = false })
	p.await(t, 0, replica.StateHealthy)
	found("once it is back", keys)
	second.set(func(h *hsm) { h.keys = keys })    // cloned at last
	primary.set(func(h *hsm) { h.keys = others }) // replaced, which counts for less than what it has shown before
	found("as long as a member has what the primary has shown", keys)
}

func TestWrongPIN(t *testing.T) {
	keys := newKeys(t, "a")
	primary, second := newHSM(keys), newHSM(keys)
	tok := openFakes(t, replica.Config{}, primary, second)
	wantError(t, "wrong PIN", tok.Login(t.Context(), []byte("wrong")), token.ErrPINIncorrect)
	if sent := get(second, func(h *hsm) int { return len(h.logins) }); sent != 0 {
		t.Error("a PIN that the primary rejected was sent to the next")
	}
	if err := tok.Login(t.Context(), pin); err != nil {
		t.Errorf("the right one: %v", err)
	}
	if err := tok.Login(t.Context(), []byte("not even looked at")); err != nil {
		t.Errorf("logged in already: %v", err)
	}
}

// TestBarred has the second member reject the PIN that the primary took.
func TestBarred(t *testing.T) {
	keys := newKeys(t, "a")
	primary, second := newHSM(keys), newHSM(keys)
	second.pin = "of its own"
	cfg := replica.Config{AwaitMember: 100 * time.Millisecond}
	p := &pair{Token: openFakes(t, cfg, primary, second), hsms: []*hsm{primary, second}}
	for range 3 {
		if err := p.Login(t.Context(), pin); err != nil {
			t.Fatal(err)
		}
		p.await(t, 1, replica.StateBarred)
		if err := p.Logout(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(100 * time.Millisecond) // some probes
	if sent := get(second, func(h *hsm) int { return len(h.logins) }); sent != 1 {
		t.Errorf("%d PINs were sent", sent)
	}
	eventually(t, "closed", func() bool { return get(second, func(h *hsm) bool { return h.session.closed }) })
	wantError(t, "change PIN", p.ChangePIN(t.Context(), pin, []byte("next")), token.ErrTokenAbsent)
	primary.set(func(h *hsm) { h.absent = true })
	if err := p.Login(t.Context(), pin); err == nil {
		t.Error("logged in without a member")
	}
}

// TestWithoutPrimary sends the PIN to the others; when all reject it, it is wrong and none is barred.
func TestWithoutPrimary(t *testing.T) {
	keys := newKeys(t, "a")
	primary, second, third := newHSM(keys), newHSM(keys), newHSM(keys)
	primary.absent = true
	tok := openFakes(t, replica.Config{}, primary, second, third)
	wantError(t, "wrong PIN", tok.Login(t.Context(), []byte("wrong")), token.ErrPINIncorrect)
	for _, status := range tok.Members() {
		if status.State == replica.StateBarred {
			t.Errorf("%+v", status)
		}
	}
	second.set(func(h *hsm) { h.state = token.PINState{} })
	third.set(func(h *hsm) { h.state = token.PINState{} })
	if err := tok.Login(t.Context(), pin); err != nil {
		t.Error(err)
	}
	primary.set(func(h *hsm) { h.absent = false })
	p := &pair{Token: tok}
	p.await(t, 0, replica.StateHealthy)
	if sent := get(primary, func(h *hsm) []string { return h.logins }); !slices.Equal(sent, []string{string(pin)}) {
		t.Errorf("the returned primary got %q", sent)
	}
}

// TestRetryCounter sends no PIN to a member that counts wrong ones, until it counts none.
func TestRetryCounter(t *testing.T) {
	for name, state := range map[string]token.PINState{
		"low": {CountLow: true}, "final try": {CountLow: true, FinalTry: true}, "locked": {Locked: true},
	} {
		t.Run(name, func(t *testing.T) {
			keys := newKeys(t, "a")
			primary, second := newHSM(keys), newHSM(keys)
			second.state = state
			p := &pair{Token: openFakes(t, replica.Config{}, primary, second)}
			if err := p.Login(t.Context(), pin); err != nil {
				t.Fatal(err)
			}
			p.await(t, 1, replica.StateLeftOut)
			eventually(t, "told why", func() bool { return errors.Is(p.Members()[1].Err, token.ErrPINLocked) })
			if sent := get(second, func(h *hsm) int { return len(h.logins) }); sent != 0 {
				t.Errorf("%d PINs were sent", sent)
			}
			second.set(func(h *hsm) { h.state = token.PINState{} })
			p.await(t, 1, replica.StateHealthy)
		})
	}
}

func TestLogout(t *testing.T) {
	p := newPair(t)
	p.hsms[1].set(func(h *hsm) { h.absent = true })
	p.await(t, 1, replica.StateLeftOut)
	if err := p.Logout(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantError(t, "sign", sign(t.Context(), p.key), token.ErrLoginRequired)
	p.hsms[1].set(func(h *hsm) { h.absent = false; h.logins = nil })
	p.await(t, 1, replica.StateHealthy)
	if sent := get(p.hsms[1], func(h *hsm) int { return len(h.logins) }); sent != 0 {
		t.Error("a PIN was sent after Logout")
	}
	if err := p.Login(t.Context(), pin); err != nil {
		t.Fatal(err)
	}
	p.mustSign(t, 4)
}

// TestHiddenObjects has members that list no keys without login.
func TestHiddenObjects(t *testing.T) {
	p := newPair(t)
	for _, h := range p.hsms {
		h.set(func(h *hsm) { h.hides = true })
	}
	if keys, err := p.Keys(t.Context()); err != nil || len(keys) != 2 {
		t.Errorf("%v, %v", keys, err)
	}
	if err := p.Logout(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err := p.Keys(t.Context())
	wantError(t, "without login", err, token.ErrLoginRequired)
	for _, status := range p.Members() {
		if status.State != replica.StateHealthy {
			t.Errorf("%+v", status)
		}
	}
}

var next = []byte("next PIN")

func TestChangePIN(t *testing.T) {
	p := newGroup(t, replica.Config{}, 3)
	if err := p.ChangePIN(t.Context(), pin, next); err != nil {
		t.Fatal(err)
	}
	p.hsms[2].set(func(h *hsm) { h.session.closed = true })
	eventually(t, "logged in anew", func() bool {
		return get(p.hsms[2], func(h *hsm) bool { return h.opens == 2 && h.session.in })
	})
	if sent := get(p.hsms[2], func(h *hsm) []string { return h.logins }); sent[len(sent)-1] != string(next) {
		t.Errorf("logged in anew with %q", sent)
	}
}

func TestChangePINWhileMemberIsLost(t *testing.T) {
	p := newPair(t)
	p.hsms[0].set(func(h *hsm) { h.afterChange = func() { h.session.closed = true } })
	p.hsms[1].set(func(h *hsm) { h.afterChange = func() { time.Sleep(200 * time.Millisecond) } })
	if err := p.ChangePIN(t.Context(), pin, next); err != nil {
		t.Fatal(err)
	}
	eventually(t, "logged in anew", func() bool { return get(p.hsms[0], func(h *hsm) bool { return h.opens == 2 && h.session.in }) })
	if get(p.hsms[0], func(h *hsm) bool { return h.state.CountLow }) {
		t.Error("the old PIN was sent after the change")
	}
}

func TestChangePINNeedsAll(t *testing.T) {
	p := newGroup(t, replica.Config{}, 3)
	p.hsms[2].set(func(h *hsm) { h.absent = true })
	p.await(t, 2, replica.StateLeftOut)
	wantError(t, "change", p.ChangePIN(t.Context(), pin, next), token.ErrTokenAbsent)
	if got := p.pins(); slices.Contains(got, string(next)) {
		t.Errorf("%q", got)
	}
}

func TestChangePINFails(t *testing.T) {
	p := newGroup(t, replica.Config{}, 3)
	p.hsms[1].set(func(h *hsm) { h.pin = "changed behind our back" })
	err := p.ChangePIN(t.Context(), pin, next)
	wantError(t, "change", err, token.ErrPINIncorrect)
	if got := p.pins(); got[0] != string(pin) || got[2] != string(pin) || !strings.Contains(err.Error(), `"B"`) {
		t.Errorf("%q: %v", got, err)
	}
}

func TestChangePINNotUndone(t *testing.T) {
	p := newGroup(t, replica.Config{}, 3)
	p.hsms[0].set(func(h *hsm) { h.afterChange = func() { p.hsms[0].absent = true } })
	p.hsms[1].set(func(h *hsm) { h.pin = "changed behind our back" })
	err := p.ChangePIN(t.Context(), pin, next)
	wantError(t, "change", err, token.ErrPINIncorrect)
	if !strings.Contains(err.Error(), `member "A" kept the new PIN`) {
		t.Error(err)
	}
}

func TestChangePINHangs(t *testing.T) {
	p := newGroup(t, replica.Config{CallTimeout: time.Second}, 3)
	p.hsms[0].set(func(h *hsm) {
		h.afterChange = func() {
			p.hsms[1].set(func(h *hsm) {
				if h.hangs == nil {
					h.hangs = make(chan struct{})
				}
			})
		}
	})
	err := p.ChangePIN(t.Context(), pin, next)
	p.hsms[0].set(func(h *hsm) { h.afterChange = nil })
	if got := get(p.hsms[0], func(h *hsm) string { return h.pin }); got != string(pin) || err == nil || !strings.Contains(err.Error(), "may have the old PIN or the new one") {
		t.Errorf("%q, %v", got, err)
	}
}

func TestChangePINWrongOld(t *testing.T) {
	p := newPair(t)
	wantError(t, "change", p.ChangePIN(t.Context(), []byte("wrong"), next), token.ErrPINIncorrect)
}

// pins are what the members have now.
func (p *pair) pins() (all []string) {
	for _, h := range p.hsms {
		all = append(all, get(h, func(h *hsm) string { return h.pin }))
	}
	return all
}

func TestOpenRefuses(t *testing.T) {
	h := newHSM(newKeys(t, "a"))
	a := replica.Member{Name: "A", Open: h.open}
	for name, cfg := range map[string]replica.Config{
		"no serial":       {Members: []replica.Member{a}},
		"no members":      {Serial: "1"},
		"no name":         {Serial: "1", Members: []replica.Member{{Open: h.open}}},
		"nothing to open": {Serial: "1", Members: []replica.Member{{Name: "A"}}},
		"one name twice":  {Serial: "1", Members: []replica.Member{a, a}},
	} {
		if tok, err := replica.Open(t.Context(), cfg); err == nil {
			t.Errorf("%s: opened, close: %v", name, tok.Close())
		}
	}
	h.absent = true
	_, err := replica.Open(t.Context(), quickly(replica.Config{Members: []replica.Member{a}}))
	wantError(t, "all absent", err, token.ErrTokenAbsent)
}

// TestOpenWithHungMember leaves behind what hangs while it is opened, and closes what it opens after all.
func TestOpenWithHungMember(t *testing.T) {
	keys := newKeys(t, "a")
	good, hung := newHSM(keys), newHSM(keys)
	hung.hangs = make(chan struct{})
	p := &pair{Token: openFakes(t, replica.Config{CallTimeout: time.Second}, good, hung), hsms: []*hsm{good, hung}}
	if err := p.Login(t.Context(), pin); err != nil {
		t.Fatal(err)
	}
	hung.set((*hsm).release)
	p.await(t, 1, replica.StateHealthy)
	if opens := get(hung, func(h *hsm) int { return h.opens }); opens != 2 {
		t.Errorf("opened %d times", opens)
	}
}

func TestCloseWithHungMember(t *testing.T) {
	p := newPair(t)
	p.hsms[0].set(func(h *hsm) { h.hangs = make(chan struct{}) })
	p.await(t, 0, replica.StateLeftOut)
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	wantError(t, "sign", sign(t.Context(), p.key), token.ErrClosed)
	if !get(p.hsms[1], func(h *hsm) bool { return h.session.closed }) {
		t.Error("the other member is still open")
	}
}

func TestKeysAreMadeElsewhere(t *testing.T) {
	p := newPair(t)
	_, err := p.Generate(t.Context(), token.KeySpec{ID: []byte("x"), Algorithm: token.P256})
	wantError(t, "generate", err, token.ErrUnsupported)
	_, err = p.Import(t.Context(), token.KeySpec{ID: []byte("x"), Algorithm: token.P256}, newKeys(t, "x")["x"])
	wantError(t, "import", err, token.ErrUnsupported)
	wantError(t, "destroy", p.Destroy(t.Context(), []byte("a")), token.ErrUnsupported)
}

func wantError(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}
