// Package guard keeps a token from being locked by wrong PINs. It remembers, across restarts and for all
// processes of a server, which PINs a token rejected, and never has one of them sent again
// until an operator says so.
//
// # What is sent
//
// Login, and ChangePIN for its old PIN, of a wrapped token go one at a time between all processes. A PIN is
// sent only when it was not rejected earlier, the token is neither locked nor has its last try left, and
// the file has durably taken a mark that this PIN is on its way. When the file cannot be read or written, no
// PIN is sent.
//
// # Tries without an answer
//
// A software token counts no wrong PINs, so that none of this is for it: however often its process is killed, its PIN may be sent.
//
// A process that is killed while the token checks a PIN leaves that mark. Whoever comes next asks the token: when its flags now
// speak of a wrong PIN, the PIN on its way counts as rejected. Otherwise it may be sent once more, and
// after three such tries in a row no more, since some tokens have no flags.
//
// A driver that returns an error other than token.ErrPINIncorrect has had an answer, though none about the PIN. When the flags have
// become worse meanwhile, the PIN counts as rejected. When they spoke of a wrong PIN before, so that they cannot tell, the try counts
// among the three, unless the error says that nothing was sent. Otherwise it is forgotten: a token may err for a while.
//
// # What a thief of the file learns
//
// A PIN is short, the file has to hold all that is needed for comparing, and a rejected PIN may be one
// keystroke away from the right one; during a try, the mark is of the right PIN itself. So a PIN
// is kept as 16 bits of its Argon2id hash (46 MiB, one pass; RFC 9106), under a random salt for each file. Slow hashing makes
// every guess cost what a login costs, and so few bits fit one in 65,536 of all
// PINs: among eight digits, some 1,500. The price is that a right PIN is taken for a rejected one as rarely, per
// PIN that is remembered; an operator's unblock helps there too. A try that ends well takes its mark away, and with the last mark the file goes.
package guard

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"path/filepath"
	"time"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/blake2b"

	"chancery/token"
)

const (
	// maxPINs bounds how many PINs are remembered of one token.
	maxPINs = 64
	// maxUnfinished is how often a PIN is sent in a row without an answer.
	maxUnfinished = 3
	// lockPatience bounds how long a login, or Clear, waits for another login of the same token.
	lockPatience = 15 * time.Second
	// answerPatience bounds how long the token may take to tell its flags after a login that failed.
	answerPatience = 10 * time.Second
)

// Guard remembers rejected PINs in one directory, in which each token has one of its own. Its methods may be called from several goroutines and in
// several processes at once.
type Guard struct {
	directory string
	derive    func(pin, salt []byte) tag
}

// New makes a guard. Nothing is touched before it is needed.
func New(directory string) *Guard {
	return &Guard{directory: directory, derive: slowTag}
}

// Prepare makes the directory of the token with this serial number and returns it. Whoever can write there and nowhere else beside it can
// log in to this token; making it takes the right to write above, so call this before a process loses that. It waits as Clear does.
func (g *Guard) Prepare(ctx context.Context, serial string) (directory string, err error) {
	ctx, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	f := g.file(serial)
	return f.home, f.furnish(ctx)
}

// Wrap lets PINs pass to t only through the guard. The wrapped token is a token.Attester if t is one.
func (g *Guard) Wrap(t token.Token) token.Token {
	guarded := &guarded{Token: t, guard: g}
	if attester, ok := t.(token.Attester); ok {
		return &attesting{guarded: guarded, Attester: attester}
	}
	return guarded
}

// Inside puts what wrap makes of a token between it and its guard, if it has one. A watch over the calls to the token then takes
// neither the wait for another process's login for one of them, nor the slow hashing.
func Inside(t token.Token, wrap func(token.Token) token.Token) token.Token {
	switch outer := t.(type) {
	case *guarded:
		return outer.guard.Wrap(wrap(outer.Token))
	case *attesting:
		return outer.guard.Wrap(wrap(outer.Token))
	}
	return wrap(t)
}

// Clear forgets all PINs that are remembered of the token with this serial number, a damaged file included, and
// tells how many they were (of a damaged file: none). While a login is under way it waits up to 15 seconds; token.ErrBusy
// says that it is still going on, and a retry helps.
func (g *Guard) Clear(serial string) (n int, err error) {
	f, err := g.open(context.Background(), serial)
	if err != nil {
		return 0, err
	}
	defer f.close()
	if r, err := f.load(); err == nil {
		n = len(r.Rejected) + len(r.Unfinished)
	}
	return n, f.remove()
}

// open takes the lock of a token's file.
func (g *Guard) open(ctx context.Context, serial string) (_ *file, err error) {
	ctx, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	f := g.file(serial)
	if err := f.furnish(ctx); err != nil {
		return nil, err
	}
	if f.locked, err = lock(ctx, filepath.Join(f.home, lockName)); err != nil {
		return nil, err
	}
	return f, nil
}

// file names a token's record, without touching anything.
func (g *Guard) file(serial string) *file {
	sum := sha256.Sum256([]byte(serial))
	name := hex.EncodeToString(sum[:])
	home := filepath.Join(g.directory, name)
	return &file{name: name, home: home, path: filepath.Join(home, recordName)}
}

// slowTag is a PIN as it is remembered.
func slowTag(pin, salt []byte) tag {
	const passes, memory, lanes, length = 1, 46 << 10, 1, 32 // KiB, bytes
	// Argon2 begins with BLAKE2b over the PIN and then the salt, and leaves its buffer of one block to the garbage collector, which
	// wipes nothing. A salt of two whole blocks takes the PIN's place there, wherever in the buffer that was.
	padded := make([]byte, 2*blake2b.BlockSize)
	copy(padded, salt)
	return tag(argon2.IDKey(pin, padded, passes, memory, lanes, length)[:len(tag{})])
}
