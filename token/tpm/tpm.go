// Package tpm keeps keys inside a TPM 2.0. A token is a directory of key files
// together with the one TPM that can load them: the files are wrapped by it and
// useless anywhere else, so a copy of the directory is a backup only for as
// long as that TPM lives and its owner hierarchy is not cleared.
//
// # Files
//
// token.json (mode 0600) names the TPM by the public half of its storage key,
// and holds the salt of the PIN and an object that tells a right PIN from a
// wrong one. keys-GENERATION/HEX-ID.pem has one key each, as a TSS2 PRIVATE
// KEY, which other TPM tools read. Changing the PIN writes a whole new
// generation beside the old one and replaces token.json by one rename.
//
// # PIN
//
// Each key's authorisation is derived from the PIN, and the TPM checks it for
// each signature. Wrong ones count against the lockout of the whole TPM (noDA
// is never set), which bounds guessing also for whoever has the files and the
// TPM. A lockout ends by itself after the TPM's recovery time.
//
// Neither the PIN nor what is derived from it crosses the wire to the TPM:
// sessions are HMAC sessions salted to the storage key, whose public half is
// the one in token.json and not what the wire says, and secrets that must cross
// (the authorisation of a new key) are encrypted with AES-128-CFB.
//
// # Sharing the TPM
//
// Behind /dev/tpmrm0 the kernel keeps programs apart. An emulator's socket
// serves one connection at a time: the driver then gives its connection up when
// nothing has been asked for a tenth of a second, and every two seconds in any case.
package tpm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"chancery/internal/durable"
	"chancery/token"
)

const (
	lockName  = "lock"
	lockPause = 10 * time.Millisecond
)

// Config says where a token is.
type Config struct {
	Device    string   // as for OpenTransport; empty for DefaultDevice
	Directory string   // of the key files
	Timeouts  Timeouts // of single commands
	// Parent is the handle of a persistent storage key (0x81000001 by convention),
	// for TPMs whose owner hierarchy has a password. 0: the key of ParentTemplate
	// is made anew for each connection, in some milliseconds. Only Create asks for it.
	Parent uint32
}

// Token is an open token. It implements token.Token and token.Attester.
type Token struct {
	dir    string
	label  string
	serial string

	turn chan struct{} // one caller at a time, as the TPM itself works; it guards all below
	idle *time.Timer   // nil unless the connection is shared with others

	closed     bool
	link       link
	auth       []byte // nil unless logged in
	generation string // of the key files that auth is for
	keys       map[string]*key
}

var (
	_ token.Token    = (*Token)(nil)
	_ token.Attester = (*Token)(nil)
)

// Open opens the token in config.Directory without login. It does not ask the
// TPM yet, which may be away for now. A directory without a token is
// token.ErrTokenAbsent; one that other users can enter is refused.
func Open(config Config) (*Token, error) {
	m, err := readManifest(config.Directory)
	if err == nil {
		err = checkPrivateDir(config.Directory)
	}
	if err != nil {
		return nil, fmt.Errorf("tpm: open %s: %w", config.Directory, err)
	}
	config.Parent = m.ParentHandle
	t := &Token{
		dir:    config.Directory,
		label:  m.Label,
		serial: m.serial(),
		turn:   make(chan struct{}, 1),
		link:   link{config: config, pinned: m.Parent},
		keys:   map[string]*key{},
	}
	if isSocket(config.Device) {
		t.idle = time.AfterFunc(shareIdle, t.giveUp)
	}
	return t, nil
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

// currentManifest reads token.json anew, since another process may have changed
// the PIN, and refuses another token's.
func (t *Token) currentManifest() (*manifest, error) {
	m, err := readManifest(t.dir)
	if err != nil {
		return nil, err
	}
	if m.serial() != t.serial {
		return nil, fmt.Errorf("serial is %s now and was %s: %w", m.serial(), t.serial, token.ErrTokenAbsent)
	}
	return m, nil
}

// take waits for the caller's turn at the TPM, which ends with give.
func (t *Token) take(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case t.turn <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", token.ErrBusy, ctx.Err())
	}
	if t.closed {
		<-t.turn
		return token.ErrClosed
	}
	return nil
}

func (t *Token) give() {
	if t.link.overheld() {
		t.link.close()
	}
	if t.link.shared() {
		t.idle.Reset(shareIdle)
	}
	<-t.turn
}

// giveUp closes an idle connection that others may wait for.
func (t *Token) giveUp() {
	select {
	case t.turn <- struct{}{}:
		t.link.close()
		<-t.turn
	default: // in use: give sets the timer again
	}
}

// use runs what works with the TPM when it is the caller's turn.
func (t *Token) use(ctx context.Context, what string, run func(*link) error) error {
	err := t.take(ctx)
	if err == nil {
		err = t.link.run(func() error { return run(&t.link) })
		t.give()
	}
	return t.failed(what, err)
}

// failed says which token could not do what; nil stays nil.
func (t *Token) failed(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("tpm: %s on token %q: %w", what, t.label, translate(err))
}

// locked runs change while no other process changes this token, with the
// manifest as it is then, and clears up after changes that were cut off.
func (t *Token) locked(ctx context.Context, change func(*manifest) error) error {
	unlock, err := durable.Lock(ctx, filepath.Join(t.dir, lockName), lockPause)
	switch {
	case errors.Is(err, durable.ErrLocked):
		return fmt.Errorf("%w: %w", token.ErrBusy, err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("directory is gone: %w", token.ErrTokenAbsent)
	case err != nil:
		return fmt.Errorf("%w: %w", errFile, err)
	}
	defer unlock()
	m, err := t.currentManifest()
	if err != nil {
		return err
	}
	if err := t.sweep(m); err != nil {
		return fmt.Errorf("%w: %w", errFile, err)
	}
	return change(m)
}

// sweep removes generations of key files that the manifest does not name: the
// new ones of a change of PIN that was cut off before, the old ones of one that
// was cut off after it took effect.
func (t *Token) sweep(m *manifest) error {
	entries, err := os.ReadDir(t.dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), keysPrefix) || entry.Name() == filepath.Base(m.keysDir(t.dir)) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(t.dir, entry.Name())); err != nil {
			return err
		}
	}
	return nil
}

// Info describes the token and reads the TPM's counter of wrong PINs, which is
// one for all that the TPM protects. A login with a PIN that another program has
// changed since is none, as for Key.
func (t *Token) Info(ctx context.Context) (token.Info, error) {
	var info token.Info
	err := t.use(ctx, "info", func(l *link) error {
		m, err := t.currentManifest()
		if err != nil {
			return err
		}
		offers, err := l.learn()
		if err != nil {
			return err
		}
		state, err := l.pinState()
		info = token.Info{
			Driver:       "tpm",
			Label:        t.label,
			Serial:       t.serial,
			Manufacturer: offers.manufacturer,
			Model:        offers.model,
			Hardware:     !isSocket(l.config.Device) && !offers.emulated(),
			LoggedIn:     t.auth != nil && t.generation == m.Generation,
			MaxSessions:  1,
			PIN:          state,
			Algorithms:   append([]token.Algorithm(nil), offers.algorithms...),
		}
		return err
	})
	if err != nil {
		return token.Info{}, err
	}
	return info, nil
}

// Close logs out, flushes all that is loaded and closes the connection. A
// command under way ends first, or its deadline passes.
func (t *Token) Close() error {
	t.turn <- struct{}{}
	defer func() { <-t.turn }()
	if t.closed {
		return nil
	}
	t.closed = true
	if t.idle != nil {
		t.idle.Stop()
	}
	t.logOut()
	t.link.close()
	t.keys = nil
	return nil
}
