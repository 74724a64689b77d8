package worker

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chancery/access"
	"chancery/token"
	"chancery/users"
)

// onBoth runs a test on a vault in this process, and on one in a process of its own.
func onBoth(t *testing.T, cfg fakeConfig, test func(t *testing.T, h Handler, home home)) {
	t.Run("vault", func(t *testing.T) {
		s, home := newFakeHome(t, cfg)
		open, err := openFake(s.Fake)
		if err != nil {
			t.Fatal(err)
		}
		vault := NewVault(open, slog.New(slog.DiscardHandler))
		defer vault.Close()
		test(t, vault, home)
	})
	t.Run("process", func(t *testing.T) {
		s, home := newFakeHome(t, cfg)
		test(t, start(t, s, nil), home)
	})
}

func want(t testing.TB, what string, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Errorf("%s: %v, not %v", what, err, target)
	}
}

func TestACapabilityIsGoodForItsSessionUserAndKeyOnly(t *testing.T) {
	onBoth(t, fakeConfig{}, func(t *testing.T, h Handler, home home) {
		mine, other := home.unlocking(t, 0, 1), home.unlocking(t, 0, 2)
		capability, others := mustUnlock(t, h, mine), mustUnlock(t, h, other)
		public := home.keys[0].Public
		good := ordering(mine, capability, digest(1))
		for name, change := range map[string]func(*Order){
			"another session":               func(o *Order) { o.Session[15]++ },
			"another user":                  func(o *Order) { o.User++ },
			"another key":                   func(o *Order) { o.KeyID = []byte{2} },
			"no key":                        func(o *Order) { o.KeyID = nil },
			"another secret":                func(o *Order) { o.Capability.Secret[31]++ },
			"another number":                func(o *Order) { o.Capability.Number += 1000 },
			"no capability":                 func(o *Order) { o.Capability = Capability{} },
			"somebody else's capability":    func(o *Order) { o.Capability = others },
			"somebody else's number":        func(o *Order) { o.Capability.Number = others.Number },
			"a key with a long identifier":  func(o *Order) { o.KeyID = make([]byte, 1<<16) },
			"a key that begins as that one": func(o *Order) { o.KeyID = []byte{1, 0} },
		} {
			order := good
			change(&order)
			want(t, name, signing(h, order, public), ErrCapability)
		}
		if err := signing(h, good, public); err != nil {
			t.Error(err)
		}
		h.Lock(capability)
		want(t, "after Lock", signing(h, good, public), ErrCapability)
		if err := signing(h, ordering(other, others, digest(2)), public); err != nil {
			t.Errorf("another capability ended, too: %v", err)
		}
		h.Lock(capability) // once more
	})
}

func TestOptionsThatTheLinkCannotSayAreRefused(t *testing.T) {
	s, home := newFakeHome(t, fakeConfig{})
	p := start(t, s, nil)
	u := home.unlocking(t, 0, 1)
	capability := mustUnlock(t, p, u)
	for name, options := range map[string]crypto.SignerOpts{
		"none":           nil,
		"short salt":     &rsa.PSSOptions{SaltLength: 20, Hash: crypto.SHA256},
		"no PSS options": (*rsa.PSSOptions)(nil),
		"context":        &ed25519.Options{Context: "x"},
		"hash 261":       crypto.Hash(256 + uint(crypto.SHA256)),
		"PSS, hash 261":  &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto, Hash: crypto.Hash(256 + uint(crypto.SHA256))},
	} {
		order := ordering(u, capability, digest(1))
		order.Options = options
		_, err := p.Sign(t.Context(), order)
		want(t, name, err, token.ErrUnsupported)
	}
}

func TestLeases(t *testing.T) {
	onBoth(t, fakeConfig{}, func(t *testing.T, h Handler, home home) {
		public := home.keys[0].Public
		u := home.unlocking(t, 0, 1)
		u.Uses = 3
		capability := mustUnlock(t, h, u)
		if err := signing(h, ordering(u, capability, digest(1), digest(2)), public); err != nil {
			t.Error(err)
		}
		want(t, "two where one is left", signing(h, ordering(u, capability, digest(1), digest(2)), public), ErrCapability)
		if err := signing(h, ordering(u, capability, digest(3)), public); err != nil {
			t.Error(err)
		}
		want(t, "none left", signing(h, ordering(u, capability, digest(1)), public), ErrCapability)
		eventually(t, "logged out once they are used up", func() bool { return !isLoggedIn(t, h) })

		u.Uses, u.Lasts = 0, 200*time.Millisecond
		capability = mustUnlock(t, h, u)
		batch := make([][]byte, 100)
		for i := range batch {
			batch[i] = command("slow")
		}
		want(t, "the time ends within a batch", signing(h, ordering(u, capability, batch...), public), ErrCapability)
		want(t, "afterwards", signing(h, ordering(u, capability, digest(1)), public), ErrCapability)

		for _, over := range []Unlock{{Uses: -1}, {Lasts: -1}} {
			u.Uses, u.Lasts = over.Uses, over.Lasts
			ledger := notebookOf(u)
			_, err := h.Unlock(t.Context(), u, ledger)
			want(t, "over before it begins", err, ErrCapability)
		}
	})
}

// Whoever asks for the unlock says how long it may last, but the wraps are bound to when the grant expires.
func TestACapabilityEndsWithItsGrant(t *testing.T) {
	now := time.Now()
	for name, test := range map[string]struct{ lasts, expires, want time.Duration }{
		"neither":             {},
		"a lease":             {lasts: time.Minute, want: time.Minute},
		"an expiry":           {expires: time.Hour, want: time.Hour},
		"the expiry is first": {lasts: time.Hour, expires: time.Minute, want: time.Minute},
		"the lease is first":  {lasts: time.Minute, expires: time.Hour, want: time.Minute},
		"it is over":          {expires: -time.Hour, want: 1},
	} {
		u := Unlock{Lasts: test.lasts}
		if test.expires != 0 {
			u.Grant.Binding.Expires = now.Add(test.expires)
		}
		if got := u.lasts(now); got != test.want {
			t.Errorf("%s: it lasts %v", name, got)
		}
	}
	onBoth(t, fakeConfig{}, func(t *testing.T, h Handler, home home) {
		u := home.unlocking(t, 0, 1)
		u.Grant.Binding.Expires = time.Now().Add(-time.Second)
		_, err := h.Unlock(t.Context(), u.withPIN(t, home.pin, 1), notebookOf(u))
		want(t, "an expired grant", err, ErrCapability)
		u.Grant.Binding.Expires = time.Now().Add(time.Second)
		u = u.withPIN(t, home.pin, 1)
		capability := mustUnlock(t, h, u)
		eventually(t, "logged out when the grant has expired", func() bool { return !isLoggedIn(t, h) })
		want(t, "afterwards", signing(h, ordering(u, capability, digest(1)), home.keys[0].Public), ErrCapability)
	})
}

func TestTheLastLockLogsOut(t *testing.T) {
	onBoth(t, fakeConfig{}, func(t *testing.T, h Handler, home home) {
		first, second := home.unlocking(t, 0, 1), home.unlocking(t, 0, 2)
		one, two := mustUnlock(t, h, first), mustUnlock(t, h, second)
		h.Lock(one)
		if err := signing(h, ordering(second, two, digest(1)), home.keys[0].Public); err != nil {
			t.Error(err)
		}
		h.Lock(two)
		eventually(t, "logged out", func() bool { return !isLoggedIn(t, h) })
		again := mustUnlock(t, h, first)
		if err := signing(h, ordering(first, again, digest(1)), home.keys[0].Public); err != nil {
			t.Error(err)
		}
		if n := len(home.attempts(t)); n != 2 {
			t.Errorf("%d logins", n)
		}
	})
}

// stubborn fails to log out as often as it is told.
type stubborn struct {
	*fake
	fails   int32
	logouts atomic.Int32
}

func (s *stubborn) Logout(ctx context.Context) error {
	if s.logouts.Add(1) <= s.fails {
		return fmt.Errorf("fake: %w", token.ErrBusy)
	}
	return s.fake.Logout(ctx)
}

// stubbornVault has a token that nobody has unlocked any more and that has failed to log out once.
func stubbornVault(t *testing.T, fails int32, pause time.Duration) (*Vault, *stubborn, Unlock) {
	t.Helper()
	s, home := newFakeHome(t, fakeConfig{})
	open, err := openFake(s.Fake)
	if err != nil {
		t.Fatal(err)
	}
	u := home.unlocking(t, 0, 1)
	tok := &stubborn{fake: open}
	v := NewVault(tok, slog.New(slog.DiscardHandler))
	v.logoutPause = pause
	t.Cleanup(func() { v.Close() })
	capability := mustUnlock(t, v, u)
	tok.logouts.Store(0)
	tok.fails = fails
	v.Lock(capability)
	eventually(t, "it tries to log out", func() bool { return tok.logouts.Load() > 0 })
	return v, tok, u
}

func TestALogoutThatFailsIsTriedAgain(t *testing.T) {
	t.Run("until it succeeds", func(t *testing.T) {
		v, stubborn, _ := stubbornVault(t, 3, time.Millisecond)
		eventually(t, "logged out", func() bool { return !isLoggedIn(t, v) })
		if n := stubborn.logouts.Load(); n != 4 {
			t.Errorf("it took %d tries", n)
		}
	})
	t.Run("not for ever", func(t *testing.T) {
		_, stubborn, _ := stubbornVault(t, 1000, 0)
		eventually(t, "all tries are made", func() bool { return stubborn.logouts.Load() == 1+maxLogouts })
		time.Sleep(20 * time.Millisecond)
		if n := stubborn.logouts.Load(); n != 1+maxLogouts {
			t.Errorf("it tried %d times", n)
		}
	})
	t.Run("not while somebody has a key unlocked", func(t *testing.T) {
		v, stubborn, u := stubbornVault(t, 1, 50*time.Millisecond)
		mustUnlock(t, v, u)
		tried := stubborn.logouts.Load()
		time.Sleep(100 * time.Millisecond)
		if n := stubborn.logouts.Load(); n != tried || !isLoggedIn(t, v) {
			t.Errorf("it tried %d times more", n-tried)
		}
	})
	t.Run("not once the vault is closed", func(t *testing.T) {
		v, stubborn, _ := stubbornVault(t, 1000, 50*time.Millisecond)
		v.Close()
		tried := stubborn.logouts.Load()
		time.Sleep(100 * time.Millisecond)
		if n := stubborn.logouts.Load(); n != tried {
			t.Errorf("it tried %d times more", n-tried)
		}
	})
}

func isLoggedIn(t testing.TB, h Handler) bool {
	t.Helper()
	info, err := h.Info(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return info.LoggedIn
}

// Logins come one at a time (the fake panics otherwise), and no lock takes the login from under an unlock.
func TestUnlocksAndLocksAtOnce(t *testing.T) {
	onBoth(t, fakeConfig{Login: time.Millisecond}, func(t *testing.T, h Handler, home home) {
		var all sync.WaitGroup
		for i := range 4 {
			u := home.unlocking(t, 0, byte(i))
			all.Go(func() {
				for n := range 3 {
					capability, err := h.Unlock(context.Background(), u, notebookOf(u))
					if err != nil {
						t.Errorf("unlock: %v", err)
						return
					}
					if err := signing(h, ordering(u, capability, digest(n)), home.keys[0].Public); err != nil {
						t.Errorf("sign: %v", err)
					}
					h.Lock(capability)
				}
			})
		}
		all.Wait()
		eventually(t, "logged out", func() bool { return !isLoggedIn(t, h) })
	})
}

func TestAWrongGrantIsRefused(t *testing.T) {
	onBoth(t, fakeConfig{}, func(t *testing.T, h Handler, home home) {
		u := home.unlocking(t, 0, 1)
		refused := func(what string, u Unlock, target error) {
			t.Helper()
			ledger := notebookOf(u)
			_, err := h.Unlock(t.Context(), u, ledger)
			want(t, what, err, target)
			if derived, _ := ledger.seen(); derived != 1 {
				t.Errorf("%s: told %d times of a derivation", what, derived)
			}
		}
		wrong := u
		wrong.Passphrase = []byte("not the passphrase")
		refused("wrong passphrase", wrong, access.ErrWrongPassphrase)
		wrong = u
		wrong.Grant.Binding.User = "bob"
		refused("another user's grant", wrong, access.ErrWrongPassphrase)
		wrong = u
		wrong.Token.Serial = "another"
		refused("another token", wrong, token.ErrTokenAbsent)
		wrong = u
		wrong.Key.ID = []byte{9}
		refused("no such key", wrong, token.ErrNoKey)
		if isLoggedIn(t, h) {
			t.Error("logged in for nobody")
		}
		capability := mustUnlock(t, h, u)
		refused("another PIN than the token's", u.withPIN(t, "999999", 1), access.ErrWrongPassphrase)
		if err := signing(h, ordering(u, capability, digest(1)), home.keys[0].Public); err != nil {
			t.Error(err)
		}
		if sent := home.attempts(t); len(sent) != 2 { // for the key that is not there, and for the one that is
			t.Errorf("sent %q", sent)
		}
	})
}

func TestThePINWasChangedSinceTheLogin(t *testing.T) {
	onBoth(t, fakeConfig{}, func(t *testing.T, h Handler, home home) {
		public := home.keys[0].Public
		old := home.unlocking(t, 0, 1)
		capability := mustUnlock(t, h, old)
		home.setPIN(t, "654321")
		renewed := home.unlocking(t, 0, 2).withPIN(t, "654321", 2)
		another := mustUnlock(t, h, renewed)
		for _, order := range []Order{ordering(old, capability, digest(1)), ordering(renewed, another, digest(1))} {
			if err := signing(h, order, public); err != nil {
				t.Error(err)
			}
		}
		wrong := home.unlocking(t, 0, 3).withPIN(t, "000000", 3)
		for range 2 { // the second time it is not sent
			ledger := notebookOf(wrong)
			_, err := h.Unlock(t.Context(), wrong, ledger)
			want(t, "a PIN that the token does not take", err, token.ErrPINIncorrect)
			if _, told := ledger.seen(); fmt.Sprint(told) != "[reject 3 3 false]" {
				t.Errorf("the ledger was told %q", told)
			}
		}
		if err := signing(h, ordering(renewed, another, digest(2)), public); err != nil {
			t.Errorf("the login did not come back: %v", err)
		}
		want := "[123456 654321 000000 654321 654321]"
		if sent := fmt.Sprint(home.attempts(t)); sent != want {
			t.Errorf("sent %s, not %s", sent, want)
		}
	})
}

// A token that has lost its login must not be told a forged grant's PIN, nor take it for the right one.
func TestAForgedGrantMeetsALostLogin(t *testing.T) {
	s, home := newFakeHome(t, fakeConfig{})
	open, err := openFake(s.Fake)
	if err != nil {
		t.Fatal(err)
	}
	vault := NewVault(open, slog.New(slog.DiscardHandler))
	defer vault.Close()
	mine := home.unlocking(t, 0, 1)
	capability := mustUnlock(t, vault, mine)
	if err := open.Logout(t.Context()); err != nil {
		t.Fatal(err)
	}
	forged := home.unlocking(t, 0, 2).withPIN(t, "000000", 1)
	_, err = vault.Unlock(t.Context(), forged, notebookOf(forged))
	want(t, "a forged grant", err, access.ErrWrongPassphrase)
	if err := signing(vault, ordering(mine, capability, digest(1)), home.keys[0].Public); err != nil {
		t.Error(err)
	}
	if sent := fmt.Sprint(home.attempts(t)); sent != "[123456 123456]" {
		t.Errorf("sent %s", sent)
	}
}

func TestALostLoginComesBackOnce(t *testing.T) {
	onBoth(t, fakeConfig{}, func(t *testing.T, h Handler, home home) {
		u := home.unlocking(t, 0, 1)
		capability := mustUnlock(t, h, u)
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				if err := signing(h, ordering(u, capability, command("lose")), home.keys[0].Public); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if sent := home.attempts(t); len(sent) != 2 {
			t.Errorf("sent %q", sent)
		}
	})
}

// A PIN that the token rejected at a login by itself is not sent again: not by other signatures, and not by the same grant.
func TestALostLoginWhosePINIsWrongNow(t *testing.T) {
	onBoth(t, fakeConfig{}, func(t *testing.T, h Handler, home home) {
		u := home.unlocking(t, 0, 1)
		capability := mustUnlock(t, h, u)
		home.setPIN(t, "654321")
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				err := signing(h, ordering(u, capability, command("lose")), home.keys[0].Public)
				if !errors.Is(err, ErrCapability) && !errors.Is(err, token.ErrLoginRequired) {
					t.Errorf("a signature: %v", err)
				}
			})
		}
		all.Wait()
		want(t, "another signature", signing(h, ordering(u, capability, digest(1)), home.keys[0].Public), ErrCapability)
		_, err := h.Unlock(t.Context(), u, notebookOf(u))
		want(t, "the same grant", err, token.ErrPINIncorrect)
		if sent := home.attempts(t); len(sent) != 2 {
			t.Errorf("sent %q", sent)
		}
		mustUnlock(t, h, home.unlocking(t, 0, 1).withPIN(t, "654321", 2))
	})
}

// Whoever can show grants of their own making finds no PIN out, although a kept login resets the token's own count.
func TestWrongPINsAreBounded(t *testing.T) {
	for name, version := range map[string]int64{"held against the login": 0, "shown to the token": 1} {
		t.Run(name, func(t *testing.T) {
			s, home := newFakeHome(t, fakeConfig{})
			p := start(t, s, nil)
			u := home.unlocking(t, 0, 1)
			mustUnlock(t, p, u)
			for i := range maxWrongPINs {
				guess := u.withPIN(t, fmt.Sprintf("9%05d", i), 1+version*int64(i+1))
				_, err := p.Unlock(t.Context(), guess, notebookOf(guess))
				if !errors.Is(err, access.ErrWrongPassphrase) && !errors.Is(err, token.ErrPINIncorrect) {
					t.Fatalf("guess %d: %v", i, err)
				}
			}
			_, err := p.Unlock(t.Context(), u, notebookOf(u))
			want(t, "even the right one", err, users.ErrPINRejected)
		})
	}
}

// TestDerivationsAreBounded asks for more unlocks than a vault derives at once, as no daemon does that counts them itself.
func TestDerivationsAreBounded(t *testing.T) {
	s, home := newFakeHome(t, fakeConfig{})
	open, err := openFake(s.Fake)
	if err != nil {
		t.Fatal(err)
	}
	vault := NewVault(open, slog.New(slog.DiscardHandler))
	defer vault.Close()
	var mu sync.Mutex
	running, most, proceed := 0, 0, make(chan struct{})
	count := func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		running += n
		most = max(most, running)
		return running
	}
	vault.deriveKey = func([]byte, access.Parameters) (*access.Key, error) {
		count(1)
		defer count(-1)
		<-proceed
		return accessKey(), nil
	}
	var all sync.WaitGroup
	for i := range 4 * DefaultDerivations {
		u := home.unlocking(t, 0, byte(i))
		all.Go(func() { mustUnlock(t, vault, u) })
	}
	eventually(t, "as many derivations as there may be", func() bool { return count(0) >= DefaultDerivations })
	time.Sleep(20 * time.Millisecond) // for the others to begin where nothing keeps them
	close(proceed)
	all.Wait()
	if most != DefaultDerivations {
		t.Errorf("%d at once", most)
	}
}

// TestARoomIsFreeWhenTheLedgerHearsOfIt: who counts derivations at the other end never waits here.
func TestARoomIsFreeWhenTheLedgerHearsOfIt(t *testing.T) {
	s, home := newFakeHome(t, fakeConfig{})
	open, err := openFake(s.Fake)
	if err != nil {
		t.Fatal(err)
	}
	vault := NewVault(open, slog.New(slog.DiscardHandler))
	defer vault.Close()
	u := home.unlocking(t, 0, 1)
	counting := &listening{notebook: notebookOf(u), derived: func() {
		if n := len(vault.derivations); n != 0 {
			t.Errorf("%d are still under way", n)
		}
	}}
	if _, err := vault.Unlock(t.Context(), u, counting); err != nil {
		t.Fatal(err)
	}
}

// listening is a notebook that does something when it hears of a derivation.
type listening struct {
	*notebook
	derived func()
}

func (l *listening) Derived() { l.derived() }

func TestWaitingForADerivationEnds(t *testing.T) {
	s, home := newFakeHome(t, fakeConfig{})
	open, err := openFake(s.Fake)
	if err != nil {
		t.Fatal(err)
	}
	vault := NewVault(open, slog.New(slog.DiscardHandler))
	for range DefaultDerivations {
		vault.derivations <- struct{}{}
	}
	impatient, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	u := home.unlocking(t, 0, 1)
	ledger := notebookOf(u)
	_, err = vault.Unlock(impatient, u, ledger)
	want(t, "one that does not wait", err, context.DeadlineExceeded)
	if derived, _ := ledger.seen(); derived != 1 {
		t.Errorf("told %d times of a derivation", derived)
	}
	failed := make(chan error, 1)
	go func() {
		_, err := vault.Unlock(context.Background(), u, notebookOf(u))
		failed <- err
	}()
	if err := vault.Close(); err != nil {
		t.Error(err)
	}
	want(t, "one whose vault closes", <-failed, token.ErrClosed)
}

func TestCorruptSignaturesStay(t *testing.T) {
	onBoth(t, fakeConfig{}, func(t *testing.T, h Handler, home home) {
		u := home.unlocking(t, 0, 1)
		capability := mustUnlock(t, h, u)
		if err := signing(h, ordering(u, capability, command("once")), home.keys[0].Public); err != nil {
			t.Error(err)
		}
		want(t, "always corrupt", signing(h, ordering(u, capability, digest(1), command("corrupt")), home.keys[0].Public), ErrCorrupt)
	})
}

func TestClosed(t *testing.T) {
	onBoth(t, fakeConfig{}, func(t *testing.T, h Handler, home home) {
		u := home.unlocking(t, 0, 1)
		capability := mustUnlock(t, h, u)
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				if err := h.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		<-h.Done()
		err := signing(h, ordering(u, capability, digest(1)), home.keys[0].Public)
		if !errors.Is(err, ErrGone) && !errors.Is(err, ErrCapability) {
			t.Errorf("sign: %v", err)
		}
		ledger := notebookOf(u)
		if _, err := h.Unlock(t.Context(), u, ledger); !errors.Is(err, ErrGone) && !errors.Is(err, token.ErrClosed) {
			t.Errorf("unlock: %v", err)
		}
		if derived, _ := ledger.seen(); derived != 1 {
			t.Errorf("told %d times of a derivation", derived)
		}
		h.Lock(capability)
	})
}

// What no secret may be in is printed in many places.
func TestAPassphraseIsNotAmongWhatIsEncoded(t *testing.T) {
	_, home := newFakeHome(t, fakeConfig{})
	u := home.unlocking(t, 0, 1)
	body := appendUnlock(nil, []byte("{}"), u.Passphrase)
	got, err := parseUnlock(body)
	if err != nil || string(got.Passphrase) != passphrase {
		t.Errorf("%q, %v", got.Passphrase, err)
	}
	if text := string(encodeError(errors.New(strings.Repeat("x", 1<<20)))); len(text) > 2*maxErrorText {
		t.Errorf("an error of %d bytes", len(text))
	}
}
