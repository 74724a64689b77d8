package admin

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"

	"chancery/token"
)

const maxTries = 3

// device is a token in memory: it counts wrong PINs and remembers every PIN that it was sent.
type device struct {
	mu     sync.Mutex
	serial string
	pin    []byte
	wrong  int
	sent   []string
	keys   map[string]*fakeKey
	open   int // handles not closed yet
	faults map[string]error
	bad    bool // keys sign with another private half than they show
}

func newDevice(serial, pin string) *device {
	return &device{serial: serial, pin: []byte(pin), keys: make(map[string]*fakeKey), faults: make(map[string]error)}
}

// clone copies a device with its keys.
func (d *device) clone() *device {
	twin := newDevice(d.serial, string(d.pin))
	twin.sent = slices.Clone(d.sent)
	for id, key := range d.keys {
		copied := *key
		copied.device = twin
		twin.keys[id] = &copied
	}
	return twin
}

// fail makes an operation fail; nil heals it.
func (d *device) fail(operation string, err error) { d.faults[operation] = err }

func (d *device) handle() (token.Token, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.faults["open"]; err != nil {
		return nil, err
	}
	d.open++
	return &handle{device: d}, nil
}

// handle is one opening of a device; a login belongs to it alone.
type handle struct {
	*device
	loggedIn, closed bool
}

func (h *handle) Info(context.Context) (token.Info, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return token.Info{
		Driver: "fake", Label: "fake label", Serial: h.serial, Hardware: true, LoggedIn: h.loggedIn, Algorithms: offered,
		PIN: token.PINState{CountLow: h.wrong > 0, FinalTry: h.wrong == maxTries-1, Locked: h.wrong >= maxTries},
	}, h.faults["info"]
}

var offered = []token.Algorithm{token.P256, token.Ed25519}

// try is how a device takes a PIN.
func (h *handle) try(pin []byte) error {
	h.sent = append(h.sent, string(pin))
	switch {
	case h.wrong >= maxTries:
		return token.ErrPINLocked
	case !bytes.Equal(pin, h.pin):
		h.wrong++
		return token.ErrPINIncorrect
	}
	h.wrong = 0
	return nil
}

func (h *handle) Login(_ context.Context, pin []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.loggedIn {
		return nil
	}
	if err := h.faults["login"]; err != nil {
		return err
	}
	err := h.try(pin)
	h.loggedIn = err == nil
	return err
}

func (h *handle) Logout(context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.loggedIn = false
	return nil
}

func (h *handle) ChangePIN(_ context.Context, old, new []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.faults["change"]; err != nil {
		return err
	}
	if len(new) < 4 {
		return token.ErrPINInvalid
	}
	if err := h.try(old); err != nil {
		return err
	}
	h.pin = bytes.Clone(new)
	return h.faults["answer"] // the change is made, and its answer lost
}

func (h *handle) Keys(context.Context) ([]token.KeyInfo, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var infos []token.KeyInfo
	for id, key := range h.keys {
		infos = append(infos, token.KeyInfo{ID: []byte(id), Label: key.label, Algorithm: key.algorithm, Public: key.Public()})
	}
	return infos, nil
}

func (h *handle) Key(_ context.Context, id []byte) (token.Key, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	key, ok := h.keys[string(id)]
	switch {
	case !h.loggedIn:
		return nil, token.ErrLoginRequired
	case !ok:
		return nil, token.ErrNoKey
	}
	return key, nil
}

func (h *handle) Generate(_ context.Context, spec token.KeySpec) (token.Key, error) {
	var private crypto.Signer
	switch spec.Algorithm {
	case token.P256:
		private, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case token.Ed25519:
		_, private, _ = ed25519.GenerateKey(nil)
	}
	return h.put(spec, private)
}

func (h *handle) Import(_ context.Context, spec token.KeySpec, private crypto.PrivateKey) (token.Key, error) {
	return h.put(spec, private.(crypto.Signer))
}

func (h *handle) put(spec token.KeySpec, private crypto.Signer) (token.Key, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.loggedIn {
		return nil, token.ErrLoginRequired
	}
	if !slices.Contains(offered, spec.Algorithm) {
		return nil, fmt.Errorf("%q keys: %w", spec.Algorithm, token.ErrUnsupported)
	}
	key := &fakeKey{device: h.device, id: spec.ID, label: spec.Label, algorithm: spec.Algorithm, Signer: private}
	h.keys[string(spec.ID)] = key
	return key, nil
}

func (h *handle) Destroy(_ context.Context, id []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.faults["destroy"]; err != nil {
		return err
	}
	if _, ok := h.keys[string(id)]; !ok {
		return token.ErrNoKey
	}
	delete(h.keys, string(id))
	return nil
}

func (h *handle) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return errors.New("closed twice")
	}
	h.closed = true
	h.device.open--
	return nil
}

// fakeKey is a key of a device.
type fakeKey struct {
	crypto.Signer
	device    *device
	id        []byte
	label     string
	algorithm token.Algorithm
}

func (k *fakeKey) ID() []byte                 { return k.id }
func (k *fakeKey) Algorithm() token.Algorithm { return k.algorithm }

func (k *fakeKey) Sign(_ context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if k.device.bad {
		other, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		return other.Sign(rand.Reader, digest, opts)
	}
	return k.Signer.Sign(rand.Reader, digest, opts)
}
