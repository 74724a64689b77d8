package guard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"chancery/token"
)

const serial = "0123abcd"

// card is a token that counts what it is sent.
type card struct {
	token.Token
	serial  string // empty: serial
	mu      sync.Mutex
	pin     string
	wrong   int  // since the last right one
	limit   int  // that many lock it; 0: as many as you like
	mute    bool // tells nothing of its counter
	in      bool
	sent    map[string]int
	answer  error // instead of a verdict
	after   error // of Info, once a PIN was sent
	failing bool
	panics  bool
}

func newCard(pin string) *card { return &card{pin: pin, limit: 3, sent: make(map[string]int)} }

func (c *card) Info(context.Context) (token.Info, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failing {
		return token.Info{}, c.after
	}
	info := token.Info{Serial: cmp.Or(c.serial, serial), LoggedIn: c.in}
	if c.limit > 0 && !c.mute {
		info.PIN = token.PINState{CountLow: c.wrong > 0, FinalTry: c.wrong == c.limit-1, Locked: c.wrong >= c.limit}
	}
	return info, nil
}

// take is what the token does with a PIN.
func (c *card) take(pin string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sent[pin]++
	c.failing = c.after != nil
	if c.panics {
		panic("a driver's mistake")
	}
	if pin == c.pin {
		c.wrong = 0
	} else {
		c.wrong++
	}
	switch {
	case c.answer != nil:
		return c.answer
	case pin != c.pin:
		return token.ErrPINIncorrect
	}
	return nil
}

func (c *card) Login(_ context.Context, pin []byte) error { return c.take(string(pin)) }

func (c *card) ChangePIN(_ context.Context, old, new []byte) error {
	if err := c.take(string(old)); err != nil {
		return err
	}
	c.pin = string(new)
	return nil
}

// quickGuard hashes cheaply, and no two of the tests' PINs alike.
func quickGuard(directory string) *Guard {
	var mu sync.Mutex
	numbers := make(map[string]uint16)
	return &Guard{directory: directory, derive: func(pin, _ []byte) tag {
		mu.Lock()
		defer mu.Unlock()
		n, ok := numbers[string(pin)]
		if !ok {
			n = uint16(len(numbers))
			numbers[string(pin)] = n
		}
		return tag{byte(n >> 8), byte(n)}
	}}
}

// newDirectory is in memory where there is such a place: a real disk takes its time for each of hundreds of logins.
func newDirectory(t testing.TB) string {
	t.Helper()
	above, err := os.MkdirTemp("/dev/shm", "guard-test-")
	if err != nil {
		above = t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(above) })
	return filepath.Join(above, "pins")
}

func login(c token.Token, pin string) error { return c.Login(context.Background(), []byte(pin)) }

func wantError(t testing.TB, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) || (want == nil && got != nil) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func TestRejectedPINIsSentOnce(t *testing.T) {
	directory := newDirectory(t)
	restarted := func() *Guard { return sharedGuard(directory) }
	c := newCard("right")
	for i, want := range []error{token.ErrPINIncorrect, token.ErrPINRejected, token.ErrPINRejected} {
		wantError(t, fmt.Sprint("try ", i), login(restarted().Wrap(c), "wrong"), want)
	}
	wantError(t, "the right one", login(restarted().Wrap(c), "right"), nil)
	wantError(t, "after the right one", login(restarted().Wrap(c), "wrong"), token.ErrPINRejected)
	if c.sent["wrong"] != 1 {
		t.Errorf("sent %d times", c.sent["wrong"])
	}
	n, err := restarted().Clear(serial)
	if n != 1 || err != nil {
		t.Errorf("cleared %d: %v", n, err)
	}
	wantError(t, "unblocked", login(restarted().Wrap(c), "wrong"), token.ErrPINIncorrect)
}

func TestARightPINLeavesNothing(t *testing.T) {
	directory := newDirectory(t)
	wantError(t, "login", login(quickGuard(directory).Wrap(newCard("right")), "right"), nil)
	if left := files(t, directory); len(left) != 1 || filepath.Base(left[0]) != lockName {
		t.Errorf("there are files %q", left)
	}
}

// files lists those below a directory.
func files(t testing.TB, directory string) (found []string) {
	t.Helper()
	err := filepath.WalkDir(directory, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			found = append(found, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestNothingIsSent(t *testing.T) {
	for name, test := range map[string]struct {
		set  func(*card)
		want error
	}{
		"logged in": {func(c *card) { c.in = true }, nil},
		"locked":    {func(c *card) { c.wrong = 3 }, token.ErrPINLocked},
		"last try":  {func(c *card) { c.wrong = 2 }, token.ErrFinalTry},
		"absent":    {func(c *card) { c.failing, c.after = true, token.ErrTokenAbsent }, token.ErrTokenAbsent},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCard("right")
			test.set(c)
			wantError(t, "login", login(quickGuard(newDirectory(t)).Wrap(c), "right"), test.want)
			if len(c.sent) > 0 {
				t.Error("a PIN was sent")
			}
		})
	}
}

// TestAnswers is about errors that do not speak of the PIN.
func TestAnswers(t *testing.T) {
	odd := errors.New("CKR_DEVICE_ERROR")
	for name, test := range map[string]struct {
		set  func(*card)
		pin  string
		want error // of the next try
	}{
		"an unmoved counter that is low already":  {func(c *card) { c.limit, c.wrong = 9, 3 }, "wrong", token.ErrPINIncorrect},
		"an error, and the counter as before":     {func(*card) {}, "right", nil},
		"an error, and the counter has moved":     {func(*card) {}, "wrong", token.ErrPINRejected},
		"the token went away meanwhile":           {func(c *card) { c.after = token.ErrTokenAbsent }, "right", nil},
		"it went away, and the counter has moved": {func(c *card) { c.after = token.ErrTokenAbsent }, "wrong", token.ErrPINRejected},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCard("right")
			c.answer = odd
			test.set(c)
			guard := quickGuard(newDirectory(t))
			wantError(t, "first", login(guard.Wrap(c), test.pin), odd)
			c.answer, c.after, c.failing = nil, nil, false
			wantError(t, "second", login(guard.Wrap(c), test.pin), test.want)
		})
	}
}

// TestErrorsWithoutVerdictDoNotAddUp lets a token err for a while.
func TestErrorsWithoutVerdictDoNotAddUp(t *testing.T) {
	c := newCard("right")
	guard := quickGuard(newDirectory(t))
	c.answer = errors.New("CKR_DEVICE_ERROR")
	for range 3 * maxUnfinished {
		wantError(t, "erring", login(guard.Wrap(c), "right"), c.answer)
	}
	c.answer = nil
	wantError(t, "in order again", login(guard.Wrap(c), "right"), nil)
}

// TestUnfinishedTries lets nobody learn how a login ended.
func TestUnfinishedTries(t *testing.T) {
	c := newCard("right")
	c.mute = true
	guard := quickGuard(newDirectory(t))
	die := func(pin string) (err error) {
		c.panics = true
		defer func() {
			c.panics = false
			if recover() != nil {
				err = errors.New("died")
			}
		}()
		return login(guard.Wrap(c), pin)
	}
	for range maxUnfinished {
		if err := die("right"); err == nil || err.Error() != "died" {
			t.Errorf("not sent: %v", err)
		}
	}
	wantError(t, "after three", login(guard.Wrap(c), "right"), token.ErrPINRejected)
	if c.sent["right"] != maxUnfinished {
		t.Errorf("sent %d times", c.sent["right"])
	}
	wantError(t, "another PIN", login(guard.Wrap(c), "other"), token.ErrPINIncorrect)
	if _, err := guard.Clear(serial); err != nil {
		t.Fatal(err)
	}
	_ = die("right")
	wantError(t, "once more", login(guard.Wrap(c), "right"), nil)
	_ = die("right")
	_ = die("right")
	wantError(t, "the row was broken", login(guard.Wrap(c), "right"), nil)
}

// TestSettledTryIsNotBlamedLater: only the PIN sent last can have moved the counter.
func TestSettledTryIsNotBlamedLater(t *testing.T) {
	c := newCard("right")
	guard := quickGuard(newDirectory(t))
	c.panics = true
	func() {
		defer func() { _ = recover() }()
		_ = login(guard.Wrap(c), "right")
	}()
	c.panics = false
	wantError(t, "another's", login(guard.Wrap(c), "wrong"), token.ErrPINIncorrect)
	wantError(t, "the right one", login(guard.Wrap(c), "right"), nil)
}

func TestChangePIN(t *testing.T) {
	ctx := context.Background()
	c := newCard("first")
	guard := quickGuard(newDirectory(t))
	wantError(t, "login with what comes next", login(guard.Wrap(c), "second"), token.ErrPINIncorrect)
	wantError(t, "the right one", login(guard.Wrap(c), "first"), nil)
	wantError(t, "change", guard.Wrap(c).ChangePIN(ctx, []byte("first"), []byte("second")), nil)
	wantError(t, "the new one", login(guard.Wrap(c), "second"), nil)
	wantError(t, "a wrong old one", guard.Wrap(c).ChangePIN(ctx, []byte("first"), []byte("third")), token.ErrPINIncorrect)
	wantError(t, "again", guard.Wrap(c).ChangePIN(ctx, []byte("first"), []byte("third")), token.ErrPINRejected)
	wantError(t, "at login too", login(guard.Wrap(c), "first"), token.ErrPINRejected)
}

func TestTooManyRejectedPINs(t *testing.T) {
	c := newCard("right")
	c.limit = 0
	guard := quickGuard(newDirectory(t))
	for i := range maxPINs {
		wantError(t, "wrong", login(guard.Wrap(c), fmt.Sprint("wrong", i)), token.ErrPINIncorrect)
	}
	wantError(t, "one more", login(guard.Wrap(c), "right"), token.ErrPINRejected)
	if c.sent["right"] != 0 {
		t.Error("it was sent")
	}
	if n, err := guard.Clear(serial); n != maxPINs || err != nil {
		t.Errorf("cleared %d: %v", n, err)
	}
	wantError(t, "unblocked", login(guard.Wrap(c), "right"), nil)
}

func TestUnusableDirectory(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, directory string){
		"a file in its place": func(t *testing.T, directory string) {
			if err := os.WriteFile(directory, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"no directory above": func(t *testing.T, directory string) {
			if err := os.Remove(filepath.Dir(directory)); err != nil {
				t.Fatal(err)
			}
		},
		"a full directory in the new record's place": func(t *testing.T, directory string) {
			guard := quickGuard(directory)
			f, err := guard.open(context.Background(), serial)
			if err != nil {
				t.Fatal(err)
			}
			defer f.close()
			if err := os.MkdirAll(filepath.Join(f.temporary(), "full"), 0o700); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			directory := newDirectory(t)
			spoil(t, directory)
			c := newCard("right")
			wantError(t, "login", login(quickGuard(directory).Wrap(c), "right"), token.ErrPINMemory)
			if len(c.sent) > 0 {
				t.Error("a PIN was sent")
			}
		})
	}
}

func TestAttesterStaysOne(t *testing.T) {
	if _, ok := New("x").Wrap(newCard("")).(token.Attester); ok {
		t.Error("a token that attests nothing became an attester")
	}
	attester := struct {
		*card
		token.Attester
	}{card: newCard("")}
	if _, ok := New("x").Wrap(attester).(token.Attester); !ok {
		t.Error("an attester is none any more")
	}
}

// TestNeverTheSameWrongPINTwice tries anything in any order.
func TestNeverTheSameWrongPINTwice(t *testing.T) {
	for seed := range uint64(100) {
		random := rand.New(rand.NewPCG(seed, 1))
		c := newCard("pin 3")
		c.limit = random.IntN(3) * 10
		guard := quickGuard(newDirectory(t))
		answers := []error{nil, nil, nil, errors.New("odd"), token.ErrTokenAbsent}
		rejected := make(map[string]int) // how often each was sent when it was rejected
		for range 40 {
			if c.limit > 0 {
				c.answer = answers[random.IntN(len(answers))]
			}
			pin := fmt.Sprint("pin ", random.IntN(6))
			if errors.Is(login(guard.Wrap(c), pin), token.ErrPINIncorrect) {
				rejected[pin] = c.sent[pin]
			}
		}
		for pin, n := range c.sent {
			if last, ok := rejected[pin]; ok && n > last || pin != c.pin && n > maxUnfinished {
				t.Errorf("seed %d: %q was sent %d times, and rejected at time %d", seed, pin, n, last)
			}
		}
	}
}

// TestHash is about the hash that is used in earnest.
func TestHash(t *testing.T) {
	c, guard := newCard("right"), New(newDirectory(t))
	wantError(t, "wrong", login(guard.Wrap(c), "wrong"), token.ErrPINIncorrect)
	wantError(t, "again", login(guard.Wrap(c), "wrong"), token.ErrPINRejected)
}

// TestWhatIsLeftInTheNextRecordsPlace: a login, and Clear, put aside what a killed process has left where the next record is written,
// or what the token's module has made there, which may write to the directory.
func TestWhatIsLeftInTheNextRecordsPlace(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	for name, plant := range map[string]func(path string) error{
		"half a record":   func(path string) error { return os.WriteFile(path, []byte("half a rec"), 0o600) },
		"a FIFO":          func(path string) error { return unix.Mkfifo(path, 0o600) },
		"a link":          func(path string) error { return os.Symlink(outside, path) },
		"an unread file":  func(path string) error { return os.WriteFile(path, nil, 0) },
		"a directory":     func(path string) error { return os.Mkdir(path, 0o700) },
		"a link to a dir": func(path string) error { return os.Symlink(filepath.Dir(outside), path) },
	} {
		t.Run(name, func(t *testing.T) {
			guard := quickGuard(newDirectory(t))
			if _, err := guard.Prepare(t.Context(), serial); err != nil {
				t.Fatal(err)
			}
			path := guard.file(serial).temporary()
			planted := func() {
				if err := plant(path); err != nil {
					t.Fatal(err)
				}
			}
			planted()
			ended := make(chan error, 1)
			go func() { ended <- login(guard.Wrap(newCard("right")), "wrong") }()
			select {
			case err := <-ended:
				wantError(t, "login", err, token.ErrPINIncorrect)
			case <-time.After(20 * time.Second):
				t.Fatal("the login does not return")
			}
			planted()
			if n, err := guard.Clear(serial); n != 1 || err != nil {
				t.Errorf("cleared %d: %v", n, err)
			}
			if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("it is still there: %v", err)
			}
			if _, err := os.Lstat(outside); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("something was written outside: %v", err)
			}
		})
	}
}
