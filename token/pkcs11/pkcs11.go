// Package pkcs11 drives a token behind a PKCS#11 module (OASIS PKCS#11 v2.40
// and, for Ed25519, v3.0).
//
// # Two libraries
//
// RSA and ECDSA keys are generated, found and used through
// github.com/ThalesGroup/crypto11. What it has no answer for goes through
// github.com/miekg/pkcs11 beside it: login (so that no copy of the PIN stays in
// a configuration struct), token flags, listing before login, Ed25519, import
// and destruction. Both share one initialised module.
//
// # Sessions
//
// All sessions are opened one after another by Open, since some modules hand
// out one handle twice when asked concurrently, and are held until Close. A
// signature takes one of them, in the order of arrival, and makes no login, no
// search and no C_OpenSession. Config.MaxSessions bounds them all together: one
// that keeps the module initialised, one that crypto11 keeps aside, some for
// what goes beside crypto11, and the rest for RSA and ECDSA signatures. A token
// that gives fewer than it says, down to MinSessions, is used with those.
//
// # Failing sessions and handles
//
// What happens after each return value of a module is one table, responses. A
// session that the token has dropped is replaced, a handle that went stale is
// looked up again, and the signature that met either is made after all. When
// the login is gone with the sessions, ErrLoginRequired says so: this package
// keeps no PIN. A new login makes every key handle be looked up again, because
// tokens reuse handle numbers. What new sessions do not mend is ErrBroken.
//
// # What cannot be bounded
//
// A call into the module cannot be cancelled: contexts bound the wait for a
// session, not the C function that runs on it. Put a token whose module may
// hang in a process of its own and end that process.
//
// A module that hangs keeps nobody from another module, if they are different
// files: while one is opened, closed or given new sessions, it has a lock of its
// own. The exception is a hang in C_Initialize, when it had returned a moment before, or in
// C_Finalize: crypto11 makes both calls under one lock for all modules.
//
// # Processes
//
// Login state belongs to the process: two Tokens opened on one token in one
// process share it, and what one of them does to it makes the other look its
// handles up again.
//
// # TPMs
//
// tpm2-pkcs11 works within limits. Without a resource manager a process can use
// one key that it made, or two that it found, since a TPM holds three objects;
// the public half of a new key, and a destroyed key, stay in the TPM until
// tpm2_flushcontext -t. It has no RSA-PSS, takes no keys from outside, gives all
// its tokens the same serial number (select them by label), and answers a wrong
// old PIN in ChangePIN with a general error, which the TPM has counted all the same.
package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	p11 "github.com/miekg/pkcs11"
	"golang.org/x/sync/semaphore"

	"chancery/token"
)

// Bounds of Config.MaxSessions.
const (
	// DefaultMaxSessions is what small HSMs offer in all.
	DefaultMaxSessions = 16
	// MinSessions are one that keeps the module initialised, one that crypto11
	// keeps aside, one to sign with RSA and ECDSA keys, and one for everything else.
	MinSessions = 4
)

// DefaultSessionWait is how long a call waits for a free session.
const DefaultSessionWait = 30 * time.Second

// Config selects a token and bounds what is asked of it.
type Config struct {
	// Module is the path of the PKCS#11 library.
	Module string
	// Serial or Label selects the token. When both are given both must fit.
	Serial, Label string
	// MaxSessions bounds the sessions opened, MinSessions at least. Zero means
	// DefaultMaxSessions. A lower limit that the token states is obeyed.
	MaxSessions int
	// SessionWait bounds the wait for a free session, whatever the caller's
	// context allows. Zero means DefaultSessionWait.
	SessionWait time.Duration
}

// Token is an open PKCS#11 token. It implements token.Token.
type Token struct {
	cfg        Config
	name       string // for messages: the label, or the serial when there is none
	serial     string
	algorithms []token.Algorithm
	pss        bool // the token has CKM_RSA_PKCS_PSS
	plan       plan
	missing    int // sessions of the plan that crypto11's pool could not open; whoever has alone reads and writes it

	module  *module
	anchor  *cryptoContext // keeps the module initialised and the login alive while the other context is replaced
	slot    atomic.Uint64
	raw     *sessions           // sessions beside crypto11
	signing *semaphore.Weighted // one unit for each session in crypto11's pool
	alone   *semaphore.Weighted // one taker of all of signing at a time
	changes *semaphore.Weighted // one change of the token's keys at a time
	logins  *semaphore.Weighted // one C_Login or C_SetPIN at a time

	mu      sync.Mutex // guards context
	context *cryptoContext
	denied  atomic.Uint64 // the module's epoch whose login the token denied, whatever the session's state says

	closed   atomic.Bool // no new calls
	closing  sync.Mutex  // guards released
	released bool        // nothing is open any more
}

var _ token.Token = (*Token)(nil)

// Open opens the token that cfg selects, without login. It takes all its
// sessions at once. Errors: token.ErrTokenAbsent when the module or the token
// is not there, an error that lists the candidates when several tokens fit.
func Open(cfg Config) (*Token, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("pkcs11: open: %w", err)
	}
	t, err := open(cfg)
	if err != nil {
		return nil, fmt.Errorf("pkcs11: open token %s: %w", cfg.selection(), explained(err))
	}
	return t, nil
}

func (c *Config) check() error {
	if c.Module == "" {
		return errors.New("no module: name the path of the PKCS#11 library")
	}
	if c.Serial == "" && c.Label == "" {
		return errors.New("neither serial nor label: one of them selects the token")
	}
	if c.MaxSessions == 0 {
		c.MaxSessions = DefaultMaxSessions
	}
	if c.MaxSessions < MinSessions {
		return fmt.Errorf("a limit of %d sessions is too low, %d are needed", c.MaxSessions, MinSessions)
	}
	if c.SessionWait <= 0 {
		c.SessionWait = DefaultSessionWait
	}
	return nil
}

// selection says in messages which token is meant.
func (c *Config) selection() string {
	var parts []string
	if c.Label != "" {
		parts = append(parts, fmt.Sprintf("%q", c.Label))
	}
	if c.Serial != "" {
		parts = append(parts, "serial "+c.Serial)
	}
	return strings.Join(parts, " ")
}

func open(cfg Config) (*Token, error) {
	l, err := libraryAt(cfg.Module)
	if err != nil {
		return nil, err
	}
	l.Lock()
	defer l.Unlock()
	cfg.Module = l.path
	seen, err := l.look(cfg)
	if err != nil {
		return nil, err
	}
	t, limit, err := newToken(cfg, seen)
	if err != nil {
		return nil, err
	}
	if t.anchor, err = t.connect(seen.slot, minPool+1); err != nil {
		return nil, err
	}
	if t.module, err = l.acquire(); err != nil {
		t.anchor.Close()
		return nil, err
	}
	if err := t.openSessions(limit, seen.mechanisms.signs(ckmEdDSA)); err != nil {
		t.anchor.Close()
		t.module.release()
		return nil, err
	}
	return t, nil
}

// newToken prepares a token that look has seen, and tells how many sessions it may have.
func newToken(cfg Config, seen *sighting) (*Token, int, error) {
	limit, err := sessionLimit(cfg.MaxSessions, seen.info)
	if err != nil {
		return nil, 0, err
	}
	t := &Token{
		cfg:        cfg,
		name:       seen.info.Label,
		serial:     seen.info.SerialNumber,
		algorithms: seen.mechanisms.algorithms(),
		pss:        seen.mechanisms.signs(p11.CKM_RSA_PKCS_PSS),
		alone:      semaphore.NewWeighted(1),
		changes:    semaphore.NewWeighted(1),
		logins:     semaphore.NewWeighted(1),
	}
	if t.name == "" {
		t.name = t.serial
	}
	t.slot.Store(uint64(seen.slot))
	return t, limit, nil
}

// Info reads the token's description and PIN flags anew.
func (t *Token) Info(ctx context.Context) (token.Info, error) {
	var info token.Info
	err := t.reading(ctx, func(s session) error {
		tokenInfo, err := s.api.GetTokenInfo(s.slot)
		if err != nil {
			return err
		}
		slotInfo, err := s.api.GetSlotInfo(s.slot)
		if err != nil {
			return err
		}
		info = describe(tokenInfo, slotInfo)
		info.LoggedIn, err = t.loggedIn(s)
		return err
	})
	if err != nil {
		return token.Info{}, t.failed("info", err)
	}
	info.MaxSessions = t.plan.total()
	if computesHere(info.Manufacturer) {
		info.Parallel = min(info.MaxSessions, runtime.NumCPU()+waitingCalls)
	}
	info.Algorithms = append([]token.Algorithm(nil), t.algorithms...)
	return info, nil
}

// Close closes all sessions, which ends the login, and gives the module back.
// It waits for calls under way up to Config.SessionWait. When one has not
// returned by then, nothing is taken from under it: Close fails with
// token.ErrBusy, and only the end of the process gives the token free.
func (t *Token) Close() error {
	t.closing.Lock()
	defer t.closing.Unlock()
	if t.released {
		return nil
	}
	t.closed.Store(true)
	if err := t.closeWhenIdle(); err != nil {
		return t.failed("close", err)
	}
	t.released = true
	return nil
}

func (t *Token) closeWhenIdle() error {
	ctx, cancel := context.WithTimeout(context.Background(), t.cfg.SessionWait)
	defer cancel()
	if t.alone.Acquire(ctx, 1) != nil {
		return fmt.Errorf("new sessions have not been opened: %w", token.ErrBusy)
	}
	defer t.alone.Release(1)
	all := int64(t.plan.signers() - t.missing)
	if t.signing.Acquire(ctx, all) != nil {
		return fmt.Errorf("a signature has not returned from the module: %w", token.ErrBusy)
	}
	defer t.signing.Release(all) // those who wait find the token closed
	if t.raw.closeAll(ctx) != nil {
		return fmt.Errorf("a call has not returned from the module: %w", token.ErrBusy)
	}
	t.module.library.Lock()
	defer t.module.library.Unlock()
	t.current().Close()
	t.anchor.Close()
	t.module.release()
	return nil
}

// ready refuses a closed token and a context that has ended.
func (t *Token) ready(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if t.closed.Load() {
		return token.ErrClosed
	}
	return nil
}

// failed says which token could not do what, with the module's codes explained.
func (t *Token) failed(what string, err error) error {
	return fmt.Errorf("pkcs11: %s on token %q: %w", what, t.name, explained(err))
}
