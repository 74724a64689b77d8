// Package soft is the embedded software token: keys in files, sealed under the
// PIN. It needs no hardware and no library, and protects keys no better than
// its PIN and the host do; every listing says "hardware: no".
//
// # Files
//
// A token is a directory of mode 0700. token.json has the label, the serial,
// the Argon2id parameters (RFC 9106) and a random master key sealed with
// AES-256-GCM under the key that Argon2id makes of the PIN. keys/HEX-ID.json
// has one key each: its public half in the clear, and its private half sealed
// under the master key with serial, identifier, algorithm, label and public
// half as associated data, so that no part can be swapped for another key's.
//
// # Processes
//
// Several processes may have the token open: changes are made under a file lock
// and appear by rename, and Keys and Key read the directory anew. A key that
// another process destroys is gone for Key at once, while a Key already handed
// out goes on signing until Logout or Close.
//
// # PIN
//
// There is no counter of wrong PINs, since whoever can try can also copy the
// files. Argon2id is what slows them down; choose the PIN accordingly.
package soft

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"chancery/internal/durable"
	"chancery/token"
)

// Lengths of a PIN in bytes.
const (
	MinPINLength = 4
	MaxPINLength = 255
)

const (
	driverName    = "soft"
	tokenFileName = "token.json"
	keysDirName   = "keys"
	lockFileName  = "lock"
	serialBytes   = 8 // 16 hexadecimal digits, as long as a PKCS#11 serial

	maxFileSize = 64 << 10 // far above the largest file of this format, an RSA-4096 key's 6 KiB
)

// Token is an open software token. It implements token.Token.
type Token struct {
	dir    string
	serial string
	label  string

	login sync.Mutex // one Argon2id at a time: each takes the memory that its parameters say

	mu     sync.RWMutex // signers hold it for reading, so that Close wipes nothing in use
	master []byte       // nil unless logged in
	keys   map[string]*key
	closed bool
}

var _ token.Token = (*Token)(nil)

// Create makes a new token in dir, which must be absent or empty. The PIN has
// MinPINLength to MaxPINLength bytes (else token.ErrPINInvalid); no reference
// to it is kept.
func Create(dir, label string, pin []byte) error {
	return create(dir, label, pin, defaultParameters)
}

func create(dir, label string, pin []byte, parameters kdfParameters) error {
	if err := checkNewPIN(pin); err != nil {
		return fmt.Errorf("soft: create token %q: %w", label, err)
	}
	if err := checkTokenLabel(label); err != nil {
		return fmt.Errorf("soft: create token %q: %w", label, err)
	}
	if err := prepareDir(dir); err != nil {
		return fmt.Errorf("soft: create token %q: %w", label, err)
	}
	master := randomBytes(masterKeySize)
	defer clear(master)
	file := tokenFile{Version: fileVersion, Serial: hex.EncodeToString(randomBytes(serialBytes)), Label: label}
	if err := file.seal(master, pin, parameters); err != nil {
		return fmt.Errorf("soft: create token %q: %w", label, err)
	}
	if err := durable.PublishNew(filepath.Join(dir, tokenFileName), file.encode()); err != nil {
		return fmt.Errorf("soft: create token %q: %w", label, err)
	}
	return nil
}

func checkTokenLabel(label string) error {
	if label == "" {
		return errors.New("a token needs a label")
	}
	return token.CheckLabel(label)
}

// prepareDir makes the token's directories, or takes over an empty one.
func prepareDir(dir string) error {
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
			return err
		}
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
	case err != nil:
		return err
	case len(entries) > 0:
		return fmt.Errorf("directory %s is not empty; name a new one", dir)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return err
	}
	return os.Mkdir(filepath.Join(dir, keysDirName), 0o700)
}

// Open opens the token in dir without login. A directory without a token is
// token.ErrTokenAbsent; one that other users can enter is refused.
func Open(dir string) (*Token, error) {
	file, err := readTokenFile(dir)
	if err != nil {
		return nil, fmt.Errorf("soft: open %s: %w", dir, err)
	}
	if err := checkPrivateDir(dir); err != nil {
		return nil, fmt.Errorf("soft: open %s: %w", dir, err)
	}
	return &Token{dir: dir, serial: file.Serial, label: file.Label, keys: map[string]*key{}}, nil
}

func checkPrivateDir(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return fmt.Errorf("directory has mode %04o and holds keys; run chmod 0700 on it", perm)
	}
	return nil
}

// readTokenFile tells an absent token from an unreadable one.
func readTokenFile(dir string) (*tokenFile, error) {
	data, err := durable.ReadLimited(filepath.Join(dir, tokenFileName), maxFileSize)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no token here: %w", token.ErrTokenAbsent)
	}
	if err != nil {
		return nil, err
	}
	return decodeTokenFile(data)
}

// currentTokenFile reads the token file anew, since another process may have
// changed the PIN, and refuses another token's.
func (t *Token) currentTokenFile() (*tokenFile, error) {
	file, err := readTokenFile(t.dir)
	if err != nil {
		return nil, err
	}
	if file.Serial != t.serial {
		return nil, fmt.Errorf("serial is %s now and was %s: %w", file.Serial, t.serial, token.ErrTokenAbsent)
	}
	return file, nil
}

// Info describes the token; Hardware is always false.
func (t *Token) Info(ctx context.Context) (token.Info, error) {
	if err := t.ready(ctx); err != nil {
		return token.Info{}, t.failed("info", err)
	}
	if _, err := t.currentTokenFile(); err != nil {
		return token.Info{}, t.failed("info", err)
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	return token.Info{
		Driver:       driverName,
		Label:        t.label,
		Serial:       t.serial,
		Manufacturer: "Chancery",
		Model:        "software token",
		LoggedIn:     t.master != nil,
		MaxSessions:  runtime.NumCPU(),
		Algorithms:   token.Algorithms(),
	}, nil
}

// Login opens the master key with the PIN. It takes about a tenth of a second
// and 64 MiB, which Argon2id spends on purpose.
func (t *Token) Login(ctx context.Context, pin []byte) error {
	t.login.Lock()
	defer t.login.Unlock()
	if err := t.ready(ctx); err != nil {
		return t.failed("login", err)
	}
	if t.loggedIn() {
		return nil
	}
	file, err := t.currentTokenFile()
	if err != nil {
		return t.failed("login", err)
	}
	master, err := file.open(pin)
	if err != nil {
		return t.failed("login", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		clear(master)
		return t.failed("login", token.ErrClosed)
	}
	t.master = master
	return nil
}

// Logout forgets the master key and all private keys. Signatures under way end first.
func (t *Token) Logout(ctx context.Context) error {
	t.login.Lock()
	defer t.login.Unlock()
	if err := t.ready(ctx); err != nil {
		return t.failed("logout", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wipe()
	return nil
}

// wipe forgets everything secret. The caller holds mu.
func (t *Token) wipe() {
	clear(t.master)
	t.master = nil
	for _, k := range t.keys {
		k.wipe()
	}
}

// ChangePIN seals the master key under a new PIN. Only token.json changes, by
// one rename: after a crash either the old PIN or the new one works.
func (t *Token) ChangePIN(ctx context.Context, old, new []byte) error {
	t.login.Lock()
	defer t.login.Unlock()
	if err := t.ready(ctx); err != nil {
		return t.failed("change PIN", err)
	}
	if err := checkNewPIN(new); err != nil {
		return t.failed("change PIN", err)
	}
	return t.failed("change PIN", t.locked(ctx, func() error {
		file, err := t.currentTokenFile()
		if err != nil {
			return err
		}
		master, err := file.open(old)
		if err != nil {
			return err
		}
		defer clear(master)
		if err := file.seal(master, new, file.KDF.kdfParameters); err != nil {
			return err
		}
		return durable.Replace(filepath.Join(t.dir, tokenFileName), file.encode())
	}))
}

// Close forgets the master key and all private keys. Signatures under way end first.
func (t *Token) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	t.closed = true
	t.wipe()
	t.keys = nil
	return nil
}

func (t *Token) loggedIn() bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.master != nil
}

// ready refuses a closed token and a context that has ended.
func (t *Token) ready(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.closed {
		return token.ErrClosed
	}
	return nil
}

// failed says which token could not do what; nil stays nil.
func (t *Token) failed(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("soft: %s on token %q: %w", what, t.label, err)
}

// locked runs change while no other process changes this token.
func (t *Token) locked(ctx context.Context, change func() error) error {
	unlock, err := durable.Lock(ctx, filepath.Join(t.dir, lockFileName), 10*time.Millisecond)
	switch {
	case errors.Is(err, durable.ErrLocked):
		return fmt.Errorf("another process is changing this token: %w: %w", token.ErrBusy, err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("directory is gone: %w", token.ErrTokenAbsent)
	case err != nil:
		return err
	}
	defer unlock()
	return change()
}

func checkNewPIN(pin []byte) error {
	if len(pin) < MinPINLength || len(pin) > MaxPINLength {
		return fmt.Errorf("a PIN has %d to %d bytes: %w", MinPINLength, MaxPINLength, token.ErrPINInvalid)
	}
	return nil
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails: it ends the program instead
	return b
}
