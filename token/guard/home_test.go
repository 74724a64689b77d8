package guard

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"chancery/token"
)

// earlier makes what an earlier version has left: files beside each other, in which the token has rejected "wrong".
func earlier(t *testing.T) (directory string, theirs *file) {
	t.Helper()
	directory = newDirectory(t)
	if err := makeDirectory(directory); err != nil {
		t.Fatal(err)
	}
	g := sharedGuard(directory)
	theirs = g.file(serial)
	r := newRecord(theirs.name)
	r.wrong(g.derive([]byte("wrong"), r.Salt[:]))
	for suffix, data := range map[string][]byte{"": r.encode(), ".lock": nil, ".new": []byte("half a rec")} {
		if err := os.WriteFile(theirs.home+suffix, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return directory, theirs
}

// rename moves what is there.
func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// TestWhatAnEarlierVersionRemembersHolds, wherever the move to a directory was interrupted.
func TestWhatAnEarlierVersionRemembersHolds(t *testing.T) {
	for name, interrupt := range map[string]func(theirs *file){
		"not begun": func(*file) {},
		"a directory was made": func(theirs *file) {
			if err := os.Mkdir(theirs.home+movingSuffix, 0o700); err != nil {
				t.Fatal(err)
			}
		},
		"the record is in it": func(theirs *file) {
			if err := os.Mkdir(theirs.home+movingSuffix, 0o700); err != nil {
				t.Fatal(err)
			}
			rename(t, theirs.home, filepath.Join(theirs.home+movingSuffix, recordName))
		},
	} {
		t.Run(name, func(t *testing.T) {
			directory, theirs := earlier(t)
			interrupt(theirs)
			c := newCard("right")
			for range 2 {
				wantError(t, "rejected before", login(sharedGuard(directory).Wrap(c), "wrong"), token.ErrPINRejected)
			}
			wantError(t, "the right one", login(sharedGuard(directory).Wrap(c), "right"), nil)
			wantError(t, "after the right one", login(sharedGuard(directory).Wrap(c), "wrong"), token.ErrPINRejected)
			if c.sent["wrong"] != 0 {
				t.Errorf("sent %d times", c.sent["wrong"])
			}
			if left := files(t, directory); len(left) != 2 || filepath.Dir(left[0]) != theirs.home || filepath.Dir(left[1]) != theirs.home {
				t.Errorf("there are files %q", left)
			}
			if n, err := sharedGuard(directory).Clear(serial); n != 1 || err != nil {
				t.Errorf("cleared %d: %v", n, err)
			}
			wantError(t, "unblocked", login(sharedGuard(directory).Wrap(c), "wrong"), token.ErrPINIncorrect)
		})
	}
}

// TestUnblockForgetsWhatAnEarlierVersionRemembers before anything else has moved it.
func TestUnblockForgetsWhatAnEarlierVersionRemembers(t *testing.T) {
	directory, _ := earlier(t)
	if n, err := sharedGuard(directory).Clear(serial); n != 1 || err != nil {
		t.Errorf("cleared %d: %v", n, err)
	}
	wantError(t, "unblocked", login(sharedGuard(directory).Wrap(newCard("right")), "wrong"), token.ErrPINIncorrect)
}

// TestAnEarlierVersionFindsNothingItCanRead, so that it sends no PIN: it has not lost its memory but the way to it.
func TestAnEarlierVersionFindsNothingItCanRead(t *testing.T) {
	directory, theirs := earlier(t)
	if _, err := sharedGuard(directory).Prepare(t.Context(), serial); err != nil {
		t.Fatal(err)
	}
	_, err := (&file{name: theirs.name, path: theirs.home}).load()
	wantError(t, "what it does first", err, token.ErrPINMemory)
}

// TestTwoRecordsLetNoPINPass: an earlier version has begun anew where the move was interrupted.
func TestTwoRecordsLetNoPINPass(t *testing.T) {
	directory, theirs := earlier(t)
	if err := os.Mkdir(theirs.home+movingSuffix, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(theirs.home+movingSuffix, recordName), newRecord(theirs.name).encode(), 0o600); err != nil {
		t.Fatal(err)
	}
	c := newCard("right")
	err := login(sharedGuard(directory).Wrap(c), "right")
	wantError(t, "login", err, token.ErrPINMemory)
	if len(c.sent) > 0 || !strings.Contains(fmt.Sprint(err), movingSuffix) {
		t.Errorf("sent %v: %v", c.sent, err)
	}
}

// TestALoginOfAnEarlierVersionEndsFirst: its record is not moved from under it.
func TestALoginOfAnEarlierVersionEndsFirst(t *testing.T) {
	directory, theirs := earlier(t)
	locked, err := lock(t.Context(), theirs.home+".lock")
	if err != nil {
		t.Fatal(err)
	}
	defer locked.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = sharedGuard(directory).Prepare(ctx, serial)
	wantError(t, "meanwhile", err, token.ErrBusy)
	if there, err := isDirectory(theirs.home); there || err != nil {
		t.Errorf("it was moved: %v", err)
	}
	locked.Close()
	if _, err = sharedGuard(directory).Prepare(t.Context(), serial); err != nil {
		t.Error(err)
	}
}

func TestSeveralMoveItAtOnce(t *testing.T) {
	directory, _ := earlier(t)
	c := newCard("right")
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			wantError(t, "rejected before", login(sharedGuard(directory).Wrap(c), "wrong"), token.ErrPINRejected)
		})
	}
	all.Wait()
	if len(c.sent) > 0 {
		t.Errorf("sent %v", c.sent)
	}
}

// TestUnblockKeepsTheDirectory: a process that may write to nothing else would have lost it.
func TestUnblockKeepsTheDirectory(t *testing.T) {
	g := sharedGuard(newDirectory(t))
	home, err := g.Prepare(t.Context(), serial)
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(home)
	if err != nil {
		t.Fatal(err)
	}
	wantError(t, "wrong", login(g.Wrap(newCard("right")), "wrong"), token.ErrPINIncorrect)
	if _, err := g.Clear(serial); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(home); err != nil || !os.SameFile(before, after) {
		t.Errorf("it is another one: %v", err)
	}
}
