package tpm

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"github.com/google/go-tpm/tpm2"

	"chancery/token"
)

const (
	maxLoaded  = 2                      // keys kept loaded: a TPM has three slots at least (part 2, section 6.13, TPM_PT_HR_TRANSIENT_MIN), and the parent has one
	maxOrphans = 64                     // far more than an emulator has slots
	shareIdle  = 100 * time.Millisecond // a socket is given up after that long without a call,
	shareHold  = 2 * time.Second        // and after that long in any case, for others to have a turn
)

// link is the connection to the TPM with all that is loaded through it. It is
// opened when needed and opened anew when it broke. Whoever has the token's turn uses it.
type link struct {
	config    Config
	pinned    []byte // the parent's public area as the token's directory has it
	transport *Transport
	parent    *Parent
	session   *loginSession
	loaded    []loadedObject // the most recently used one is the last
	opened    time.Time
	repeat    bool // what failed because the link had broken may be tried once more

	offers *capabilities // of the TPM, not of the connection
}

// loginSession authorises commands with the PIN, so that it costs one salted
// session a connection instead of one a signature.
type loginSession struct {
	tpm2.Session
	auth  []byte
	close func() error
}

type loadedObject struct {
	object *object
	handle tpm2.NamedHandle
}

// run has use work with an open link. When the link broke since the last call
// (a TPM that was restarted, an emulator's connection that ended), it is
// opened anew and use runs once more.
func (l *link) run(use func() error) error {
	held := l.transport != nil
	err := l.try(use)
	if held && l.transport == nil && l.repeat {
		err = l.try(use)
	}
	return err
}

func (l *link) try(use func() error) error {
	l.repeat = true
	err := l.guarded(use)
	if l.broken(err) {
		l.drop()
	}
	return err
}

// guarded outlives go-tpm's panics over answers that end too early: its
// accessors of a union assume that there is something in it.
func (l *link) guarded(use func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(runtime.Error); !ok {
				panic(r)
			}
			err = errMalformed
		}
	}()
	if err := l.open(); err != nil {
		return err
	}
	return use()
}

// errMalformed says that an answer has the right length and not the right contents.
var errMalformed = errors.New("the TPM's answer cannot be read")

// broken tells whether nothing more can be had from this connection: it failed,
// what was loaded is not there any more, or an answer was not authentic.
func (l *link) broken(err error) bool {
	if l.transport == nil || err == nil {
		return false
	}
	if l.transport.failure != nil || isStale(err) {
		return true
	}
	var code tpm2.TPMRC
	return !errors.As(err, &code) && !isOurs(err)
}

func (l *link) open() error {
	if l.transport != nil {
		return nil
	}
	opened, err := OpenTransport(l.config.Device, l.config.Timeouts)
	if err != nil {
		return err
	}
	l.transport, l.opened = opened, time.Now()
	if err = l.clearOrphans(); err == nil {
		err = l.openParent()
	}
	if err != nil {
		l.close()
		return err
	}
	return nil
}

// clearOrphans flushes what connections that were cut off (a killed process)
// left in an emulator's few slots. Whoever has the one connection has all the
// slots. The kernel's resource manager does that by itself, and shows each
// program only its own.
func (l *link) clearOrphans() error {
	if !isSocket(l.config.Device) {
		return nil
	}
	for _, kind := range []tpm2.TPMHT{tpm2.TPMHTTransient, tpm2.TPMHTLoadedSession} {
		rsp, err := tpm2.GetCapability{
			Capability: tpm2.TPMCapHandles, Property: uint32(kind) << 24, PropertyCount: maxOrphans,
		}.Execute(l.transport)
		if err != nil {
			return err
		}
		list, err := rsp.CapabilityData.Data.Handles()
		if err != nil {
			return err
		}
		for _, handle := range list.Handle {
			if err := flush(l.transport, handle); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *link) openParent() (err error) {
	if l.config.Parent != 0 {
		l.parent, err = PersistentParent(l.transport, tpm2.TPMHandle(l.config.Parent))
	} else {
		l.parent, err = CreateParent(l.transport)
	}
	switch {
	case isRejected(err):
		return fmt.Errorf("the owner hierarchy has a password: make the storage key persistent and name its handle with --parent when the token is made: %w: %w", token.ErrUnsupported, err)
	case errors.Is(err, tpm2.TPMRCHandle):
		return fmt.Errorf("%w: %w", token.ErrTokenAbsent, err)
	case err != nil:
		return err
	}
	if l.pinned != nil && !l.parent.Is(l.pinned) {
		return fmt.Errorf("this is another TPM, or its owner hierarchy was cleared, which destroyed the token's keys: %w", token.ErrTokenAbsent)
	}
	return nil
}

// close gives all slots back and ends the connection.
func (l *link) close() {
	if l.transport == nil {
		return
	}
	l.evict(0)
	l.endSession()
	if l.parent != nil {
		_ = l.parent.Flush(l.transport) // an error says that it is not there
	}
	l.drop()
}

// drop ends a connection of which nothing more is expected. The kernel's
// resource manager flushes what was loaded through it.
func (l *link) drop() {
	_ = l.transport.Close() // it is of no use whatever it says
	l.transport, l.parent, l.session, l.loaded = nil, nil, nil, nil
}

// shared tells whether others wait for this connection's end to have theirs.
func (l *link) shared() bool {
	return l.transport != nil && isSocket(l.config.Device)
}

// overheld tells whether it is time to let others have their turn.
func (l *link) overheld() bool {
	return l.shared() && time.Since(l.opened) > shareHold
}

// evict flushes loaded objects, the least recently used first, until no more than keep are left.
func (l *link) evict(keep int) {
	for len(l.loaded) > keep {
		_ = flush(l.transport, l.loaded[0].handle.Handle) // an error says that it is not there
		l.loaded = l.loaded[1:]
	}
}

// load returns the handle of a loaded object. It stays valid until the next load or evict.
func (l *link) load(o *object) (tpm2.NamedHandle, error) {
	if i := slices.IndexFunc(l.loaded, func(e loadedObject) bool { return e.object == o }); i >= 0 {
		entry := l.loaded[i]
		l.loaded = append(slices.Delete(l.loaded, i, i+1), entry)
		return entry.handle, nil
	}
	l.evict(maxLoaded - 1)
	handle, err := l.loadOnce(o)
	if err != nil {
		return tpm2.NamedHandle{}, err
	}
	l.loaded = append(l.loaded, loadedObject{o, handle})
	return handle, nil
}

// loadOnce loads an object that the caller flushes. The name is computed from
// the public area that we know, so that a session's HMAC fails over any other object.
func (l *link) loadOnce(o *object) (tpm2.NamedHandle, error) {
	rsp, err := tpm2.Load{
		ParentHandle: l.parent.Auth(),
		InPrivate:    o.private,
		InPublic:     tpm2.BytesAs2B[tpm2.TPMTPublic](o.public),
	}.Execute(l.transport)
	if errors.Is(err, tpm2.TPMRCIntegrity) || errors.Is(err, tpm2.TPMRCBinding) {
		return tpm2.NamedHandle{}, fmt.Errorf("the file was altered or is another TPM's: %w: %w", token.ErrMismatch, err)
	}
	if err != nil {
		return tpm2.NamedHandle{}, err
	}
	return tpm2.NamedHandle{Handle: rsp.ObjectHandle, Name: o.name}, nil
}

// unload drops an object that will not be used again.
func (l *link) unload(o *object) {
	i := slices.IndexFunc(l.loaded, func(e loadedObject) bool { return e.object == o })
	if i < 0 {
		return
	}
	_ = flush(l.transport, l.loaded[i].handle.Handle) // an error says that it is not there
	l.loaded = slices.Delete(l.loaded, i, i+1)
}

// authorised names an object together with the session that proves the PIN for it.
func (l *link) authorised(handle tpm2.NamedHandle, auth []byte) (tpm2.AuthHandle, error) {
	session, err := l.authSession(auth)
	if err != nil {
		return tpm2.AuthHandle{}, err
	}
	return tpm2.AuthHandle{Handle: handle.Handle, Name: handle.Name, Auth: session}, nil
}

func (l *link) authSession(auth []byte) (tpm2.Session, error) {
	if l.session != nil && string(l.session.auth) == string(auth) {
		return l.session, nil
	}
	l.endSession()
	own := slices.Clone(auth)
	made, end, err := tpm2.HMACSession(l.transport, sessionHash, nonceSize,
		tpm2.Auth(own), tpm2.Salted(l.parent.Handle, l.parent.Public))
	if err != nil {
		clear(own)
		return nil, err
	}
	l.session = &loginSession{Session: made, auth: own, close: end}
	return l.session, nil
}

// endSession ends the session that authorises, and forgets the authorisation.
func (l *link) endSession() {
	if l.session == nil {
		return
	}
	_ = l.session.close() // an error says that it is not there
	clear(l.session.auth)
	l.session = nil
}
