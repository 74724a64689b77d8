package audit

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// volatileFS keeps files on the real file system and notes what of them would
// be left after a power failure: contents as of their last sync, and names as of
// their directory's. After a failed sync the cache holds what the disk does
// not, and further syncs say that all is well, as Linux does.
type volatileFS struct {
	disk
	names   map[string]*volatile // as everybody sees them, by base name
	durable map[string]*volatile
}

type volatile struct {
	history  [][]byte // what was there after each write
	durable  []byte
	poisoned bool // the cache holds what the disk does not
}

type volatileFile struct {
	diskFile
	state *volatile
}

func newVolatileFS() *volatileFS {
	return &volatileFS{names: make(map[string]*volatile), durable: make(map[string]*volatile)}
}

func (v *volatileFS) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	file, err := openFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	base := filepath.Base(name)
	if v.names[base] == nil || flag&os.O_TRUNC != 0 {
		v.names[base] = &volatile{}
	}
	return &volatileFile{diskFile{file}, v.names[base]}, nil
}

func (v *volatileFS) Rename(from, to string) error {
	if err := v.disk.Rename(from, to); err != nil {
		return err
	}
	v.names[filepath.Base(to)] = v.names[filepath.Base(from)]
	delete(v.names, filepath.Base(from))
	return nil
}

func (v *volatileFS) SyncDir(string) error {
	clear(v.durable)
	for name, state := range v.names {
		v.durable[name] = state
	}
	return nil
}

func (f *volatileFile) content() []byte {
	content, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		panic(err)
	}
	return content
}

func (f *volatileFile) WriteAt(p []byte, offset int64) (int, error) {
	n, err := f.diskFile.WriteAt(p, offset)
	f.state.history = append(f.state.history, f.content())
	return n, err
}

func (f *volatileFile) Sync() error {
	content := f.content()
	if f.state.poisoned {
		f.state.durable = f.state.durable[:min(len(content), len(f.state.durable))]
		return nil
	}
	f.state.durable, f.state.history = content, [][]byte{content}
	return nil
}

func (f *volatileFile) Forget() error {
	if !f.state.poisoned {
		return nil
	}
	f.state.poisoned, f.state.history = false, nil
	if err := f.diskFile.Truncate(0); err != nil {
		return err
	}
	_, err := f.diskFile.WriteAt(f.state.durable, 0)
	return err
}

// fail ends the power: it makes a directory of what is left.
func (v *volatileFS) fail(t *testing.T, dice *rand.Rand) string {
	dir := memoryDirectory(t)
	names := v.durable
	if dice.IntN(2) == 0 {
		names = v.names
	}
	for name, state := range names {
		if err := os.WriteFile(filepath.Join(dir, name), state.left(dice), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// left returns what was synced, what was written since, or something between the two.
func (s *volatile) left(dice *rand.Rand) []byte {
	if s.poisoned || len(s.history) == 0 || dice.IntN(3) == 0 {
		return s.durable
	}
	left := append([]byte(nil), s.history[dice.IntN(len(s.history))]...)
	if len(left) <= len(s.durable) {
		return left
	}
	if fresh := left[len(s.durable):]; dice.IntN(2) == 0 {
		from := dice.IntN(len(fresh))
		clear(fresh[from : from+dice.IntN(len(fresh)-from)])
	}
	return left[:len(s.durable)+dice.IntN(len(left)-len(s.durable)+1)]
}

// The power fails at any operation, with or without a disk that failed before.
func TestPowerMayFailAtAnyOperation(t *testing.T) {
	for _, faulty := range []bool{false, true} {
		t.Run(fmt.Sprintf("faulty=%v", faulty), func(t *testing.T) {
			for last := 0; ; last++ {
				dice := rand.New(rand.NewPCG(uint64(last), 0))
				if complete := appendUntilPowerFails(t, last, faulty, dice); complete || t.Failed() {
					t.Logf("%d operations", last)
					return
				}
			}
		})
	}
}

var errNoPower = errors.New("no power")

func appendUntilPowerFails(t *testing.T, last int, faulty bool, dice *rand.Rand) (complete bool) {
	operations := 0
	store := newVolatileFS()
	faults := &faultyFS{FS: store}
	faults.hook = func(operation, name string) error {
		if operations++; operations > last {
			return errNoPower
		}
		if faulty && operations > 20 && dice.IntN(15) == 0 {
			if operation == "sync" && store.names[name] != nil {
				store.names[name].poisoned = true
			}
			return []error{syscall.EIO, errHalf}[dice.IntN(2)]
		}
		return nil
	}
	acknowledged := make(map[string]Position)
	l, err := Open(Config{Directory: memoryDirectory(t), FS: faults, SegmentBytes: 2800, RetryDelay: quick})
	if err == nil {
		for i := 0; i < 40 && operations <= last; i++ {
			user := fmt.Sprintf("user%d", i)
			if position, err := l.Append(t.Context(), sign(user)); err == nil {
				acknowledged[user] = position
			} else if errors.Is(err, ErrDamaged) {
				t.Errorf("at operation %d: %v", last, err)
			}
		}
		l.Close()
	}
	left := store.fail(t, dice)
	for range dice.IntN(3) { // and again while that is put right
		left = recoverUntilPowerFails(t, left, dice)
	}
	mustSurvive(t, left, acknowledged)
	if t.Failed() {
		t.Logf("the power failed at operation %d, with %d acknowledged", last, len(acknowledged))
	}
	return operations <= last
}

// recoverUntilPowerFails opens what is left, and loses power again on the way.
func recoverUntilPowerFails(t *testing.T, dir string, dice *rand.Rand) string {
	store := volatileFSOf(t, dir)
	left := 1 + dice.IntN(40)
	l, err := Open(Config{Directory: dir, FS: &faultyFS{FS: store, hook: func(string, string) error {
		if left--; left < 0 {
			return errNoPower
		}
		return nil
	}}})
	if err == nil {
		l.Close()
	}
	return store.fail(t, dice)
}

// volatileFSOf takes what a directory holds as durable.
func volatileFSOf(t *testing.T, dir string) *volatileFS {
	t.Helper()
	store := newVolatileFS()
	defer store.SyncDir(dir)
	found, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range found {
		content, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		if err != nil {
			t.Fatal(err)
		}
		store.names[entry.Name()] = &volatile{durable: content, history: [][]byte{content}}
	}
	return store
}

// mustSurvive opens what a power failure left, and goes on with it.
func mustSurvive(t *testing.T, dir string, acknowledged map[string]Position) {
	t.Helper()
	l, err := Open(Config{Directory: dir, FS: newVolatileFS()})
	if err != nil {
		t.Error(err)
		return
	}
	defer l.Close()
	mustHold(t, dir, acknowledged)
	mustVerify(t, dir, mustAppend(t, l, sign("after")).Head)
	for _, e := range entries(t, dir, Filter{Kind: KindRecovered}) {
		if e.Details["reason"] == "torn" {
			mustBeSetAside(t, dir, e.Details["file"])
		}
	}
}

// mustBeSetAside holds a torn-… file against the hash in its name.
func mustBeSetAside(t *testing.T, dir, name string) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		content, err = os.ReadFile(filepath.Join(dir, name+pendingSuffix)) // its new name was not durable yet
	}
	var seq uint64
	if _, scanErr := fmt.Sscanf(name, tornPrefix+"%d-", &seq); scanErr != nil || err != nil {
		t.Errorf("set aside as %q: %v, %v", name, scanErr, err)
	}
	if name != tornName(seq, sha256.Sum256(content)) {
		t.Errorf("%s holds %d bytes of something else", name, len(content))
	}
}
