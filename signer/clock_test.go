package signer

import (
	"crypto/sha256"
	"errors"
	"testing"
	"time"
	"unsafe"

	"github.com/google/uuid"

	"chancery/tunnel/wire"
	"chancery/users"
)

// jumped returns the moment as a clock shows it that was set forward by this much, or back: the time of day
// is another, the monotonic clock goes on. Package time has no way to make one, so that its memory is changed:
// the seconds of a Time with a monotonic reading are the 33 bits above its nanoseconds.
func jumped(t *testing.T, now time.Time, by time.Duration) time.Time {
	t.Helper()
	later := now
	*(*uint64)(unsafe.Pointer(&later)) += uint64(int64(by/time.Second)) << 30
	if later.Sub(now) != 0 || later.Round(0).Sub(now.Round(0)) != by {
		t.Fatalf("package time has changed: %v was to be %v after %v", later, by, now)
	}
	return later
}

// jumps are what a clock may do, both far beyond every duration that matters here.
var jumps = map[string]time.Duration{"forward": 2000 * time.Hour, "back": -2000 * time.Hour, "not at all": 0}

// An expiry is a date: it holds by the time of day, and a clock that is set right makes it right again.
func TestAGrantExpiresByTheTimeOfDay(t *testing.T) {
	now := time.Now()
	for name, c := range map[string]struct {
		expires time.Duration // from now
		jump    time.Duration
		usable  bool
	}{
		"still valid":                    {time.Hour, 0, true},
		"forward past the expiry":        {time.Hour, 2 * time.Hour, false},
		"forward and short of it":        {3 * time.Hour, 2 * time.Hour, true},
		"forward to the very moment":     {2 * time.Hour, 2 * time.Hour, false},
		"back while valid":               {time.Hour, -2000 * time.Hour, true},
		"no expiry, however far forward": {0, 200000 * time.Hour, true},
	} {
		t.Run(name, func(t *testing.T) {
			grant := users.Grant{ID: 1, UserID: 1, KeyID: 1, TokenID: 1}
			if c.expires != 0 {
				// Whole seconds, as a store keeps them, and without a monotonic reading.
				grant.Expires = now.Add(c.expires).Round(0)
			}
			snapshot := users.NewSnapshot(1, []users.User{{ID: 1, Name: "alice"}}, nil, []users.Key{{ID: 1, Name: "k"}}, []users.Grant{grant})
			if _, usable := snapshot.Usable(1, 1, jumped(t, now, c.jump)); usable != c.usable {
				t.Errorf("usable: %t", usable)
			}
			if _, usable := snapshot.Usable(1, 1, now); !usable {
				t.Error("once the clock is right again, the grant is not usable")
			}
		})
	}
}

// A lease is a duration: a clock that is set makes it neither shorter nor longer.
func TestALeaseDoesNotHeedTheTimeOfDay(t *testing.T) {
	now := time.Now()
	l := (&Server{}).newLease(&users.Grant{Lease: time.Minute}, now)
	for name, jump := range jumps {
		if l.ended(jumped(t, now.Add(59*time.Second), jump)) {
			t.Errorf("%s: the lease ends early", name)
		}
		if !l.ended(jumped(t, now.Add(time.Minute), jump)) {
			t.Errorf("%s: the lease lives on", name)
		}
	}
}

// Neither does the pause after wrong passphrases: setting the clock is no way around it, nor does it lock anybody out.
func TestThePauseAfterWrongPassphrasesDoesNotHeedTheTimeOfDay(t *testing.T) {
	now := time.Now()
	for name, jump := range jumps {
		t.Run(name, func(t *testing.T) {
			g := newGuesses(&Config{Store: &fakeStore{}, FailurePause: time.Second, FailureMax: time.Hour})
			who := target{1, 1}
			for range freeGuesses + 3 {
				g.failed(t.Context(), who, now) // 8 s
			}
			if err := g.check(who, "k", jumped(t, now.Add(7*time.Second), jump)); !errors.Is(err, errGuessing) {
				t.Errorf("within the pause: %v", err)
			}
			if err := g.check(who, "k", jumped(t, now.Add(8*time.Second), jump)); err != nil {
				t.Errorf("after the pause: %v", err)
			}
			// A failure while the clock is wrong counts like any other, and is over by the right time.
			g.failed(t.Context(), who, jumped(t, now.Add(8*time.Second), jump)) // 16 s
			if err := g.check(who, "k", now.Add(23*time.Second)); !errors.Is(err, errGuessing) {
				t.Errorf("after one more: %v", err)
			}
			if err := g.check(who, "k", now.Add(24*time.Second)); err != nil {
				t.Errorf("after its pause: %v", err)
			}
		})
	}
}

// After a restart only the time of day is left. Whatever it is, nobody waits for longer than after a failure at this
// moment, and the count survives: the next wrong passphrase costs as much as ever.
func TestAClockThatWasSetDuringARestart(t *testing.T) {
	now := time.Now()
	for name, jump := range jumps {
		t.Run(name, func(t *testing.T) {
			store := &fakeStore{failures: []users.UnlockFailures{{UserID: 1, KeyID: 1, Count: freeGuesses + 3, Last: now.Round(0)}}}
			g := newGuesses(&Config{Store: store, FailurePause: time.Second, FailureMax: time.Hour})
			restarted := jumped(t, now, jump)
			if err := g.load(t.Context(), restarted); err != nil {
				t.Fatal(err)
			}
			who := target{1, 1}
			waits := errors.Is(g.check(who, "k", restarted.Add(7*time.Second)), errGuessing)
			if waits != (jump <= 0) {
				t.Errorf("waits: %t", waits)
			}
			// The clock may be set right meanwhile.
			if err := g.check(who, "k", now.Add(8*time.Second)); err != nil {
				t.Errorf("locked out: %v", err)
			}
			g.failed(t.Context(), who, restarted.Add(8*time.Second)) // 16 s
			if err := g.check(who, "k", now.Add(23*time.Second)); !errors.Is(err, errGuessing) {
				t.Errorf("the count is forgotten: %v", err)
			}
		})
	}
}

// A request that is repeated within the window is answered from memory, whatever the time of day says:
// otherwise a clock that jumps would sign twice.
func TestTheRepeatWindowDoesNotHeedTheTimeOfDay(t *testing.T) {
	for name, jump := range jumps {
		t.Run(name, func(t *testing.T) {
			r := newRepetitions(&Config{RepeatWindow: 10 * time.Minute, RepeatRequests: 8, RepeatUserBytes: 1 << 20, RepeatBytes: 1 << 20})
			id, body := uuid.New(), sha256.Sum256([]byte("x"))
			first, _, err := r.begin(1, id, body)
			if err != nil {
				t.Fatal(err)
			}
			r.end(first, &wire.WhoAmIReply{User: "alice"})
			now := time.Now()
			r.sweep(jumped(t, now.Add(9*time.Minute), jump))
			if known, isFirst, err := r.begin(1, id, body); isFirst || err != nil || known != first {
				t.Errorf("it would be signed again: %v", err)
			}
			r.sweep(jumped(t, now.Add(20*time.Minute), jump))
			if len(r.users) != 0 || r.bytes != 0 {
				t.Error("the answer is kept for ever")
			}
		})
	}
}

// In a session, an expiry that has passed refuses at once, what was unlocked before included; after a clock that is set
// right again, or a grant that is extended, the key is unlocked again.
func TestAnExpiryRefusesInALiveSession(t *testing.T) {
	w := newWorld(t)
	c := w.unlockedClient("p256")
	want[*wire.SignReply](c, c.call(signRequest("p256")))
	expire := func(at time.Time) {
		w.change(func(s *fakeStore) {
			for i := range s.grants {
				s.grants[i].Expires = at
			}
		})
	}
	before := w.store.grants[0].Expires
	expire(time.Now().Add(-2000 * time.Hour).Round(0)) // as after a clock that went forward
	failure := c.refused(signRequest("p256"), wire.CodeGrantExpired)
	if failure.Retry == wire.RetryLater {
		t.Errorf("advice %+v", failure)
	}
	c.refused(unlockRequest("p256", passphrase), wire.CodeGrantExpired)
	expire(before)
	c.refused(signRequest("p256"), wire.CodeNotUnlocked)
	want[*wire.UnlockReply](c, c.call(unlockRequest("p256", passphrase)))
	want[*wire.SignReply](c, c.call(signRequest("p256")))
}
