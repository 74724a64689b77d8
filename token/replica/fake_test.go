package replica_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"chancery/token"
	"chancery/token/replica"
)

var pin = []byte("correct PIN")

// hsm is a token in memory that misbehaves on command.
type hsm struct {
	mu       sync.Mutex
	pin      string
	keys     map[string]*ecdsa.PrivateKey
	state    token.PINState
	absent   bool          // answers nothing but token.ErrTokenAbsent
	corrupts bool          // its signatures
	tests    bool          // a key's halves when it is looked for
	hangs    chan struct{} // not nil: calls wait until it is closed
	fails    error         // what a signature fails with
	takes    time.Duration // that a signature takes, one after the other
	panics   bool
	hides    bool // its public halves from who is not logged in
	// afterChange is called, with mu held, once the PIN was changed.
	afterChange func()
	session     *opened // the latest
	opens       int
	logins      []string // every PIN that was sent
	signed      int
	calls       int // that have begun
}

func newHSM(keys map[string]*ecdsa.PrivateKey) *hsm {
	return &hsm{pin: string(pin), keys: keys}
}

func newKeys(t testing.TB, ids ...string) map[string]*ecdsa.PrivateKey {
	t.Helper()
	keys := make(map[string]*ecdsa.PrivateKey)
	for _, id := range ids {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		keys[id] = k
	}
	return keys
}

// set changes the HSM's behaviour.
func (h *hsm) set(change func(h *hsm)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change(h)
}

// get reads something of it.
func get[T any](h *hsm, read func(h *hsm) T) T {
	h.mu.Lock()
	defer h.mu.Unlock()
	return read(h)
}

func (h *hsm) open(context.Context) (token.Token, error) {
	if err := h.call(nil); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.opens++
	h.session = &opened{hsm: h}
	return h.session, nil
}

// call waits while the HSM hangs, as a module does: with no regard to any context.
func (h *hsm) call(o *opened) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls++
	if hangs := h.hangs; hangs != nil {
		h.mu.Unlock()
		<-hangs
		h.mu.Lock()
	}
	switch {
	case o != nil && o.closed:
		return token.ErrClosed
	case h.absent:
		return token.ErrTokenAbsent
	}
	return nil
}

// opened is an open hsm, and one of its keys when it has an id.
type opened struct {
	hsm    *hsm
	in     bool
	closed bool
}

func (o *opened) Info(context.Context) (token.Info, error) {
	if err := o.hsm.call(o); err != nil {
		return token.Info{}, err
	}
	o.hsm.mu.Lock()
	defer o.hsm.mu.Unlock()
	return token.Info{Driver: "fake", Label: "fake", Serial: "own", MaxSessions: 4, LoggedIn: o.in, PIN: o.hsm.state}, nil
}

func (o *opened) Login(_ context.Context, secret []byte) error {
	if err := o.hsm.call(o); err != nil {
		return err
	}
	o.hsm.mu.Lock()
	defer o.hsm.mu.Unlock()
	if o.in {
		return nil
	}
	o.hsm.logins = append(o.hsm.logins, string(secret))
	if string(secret) != o.hsm.pin {
		o.hsm.state.CountLow = true
		return token.ErrPINIncorrect
	}
	o.in = true
	return nil
}

func (o *opened) Logout(context.Context) error {
	err := o.hsm.call(o)
	o.hsm.mu.Lock()
	defer o.hsm.mu.Unlock()
	o.in = o.in && err != nil
	return err
}

func (o *opened) Keys(context.Context) ([]token.KeyInfo, error) {
	if err := o.hsm.call(o); err != nil {
		return nil, err
	}
	o.hsm.mu.Lock()
	defer o.hsm.mu.Unlock()
	if o.hsm.hides && !o.in {
		return nil, token.ErrLoginRequired
	}
	var all []token.KeyInfo
	for id, k := range o.hsm.keys {
		all = append(all, token.KeyInfo{ID: []byte(id), Algorithm: token.P256, Public: &k.PublicKey})
	}
	return all, nil
}

func (o *opened) Key(_ context.Context, id []byte) (token.Key, error) {
	if err := o.hsm.call(o); err != nil {
		return nil, err
	}
	o.hsm.mu.Lock()
	defer o.hsm.mu.Unlock()
	if !o.in {
		return nil, token.ErrLoginRequired
	}
	k := o.hsm.keys[string(id)]
	if k == nil {
		return nil, token.ErrNoKey
	}
	if o.hsm.tests && o.hsm.corrupts {
		return nil, token.ErrMismatch
	}
	return &fakeKey{opened: o, id: slices.Clone(id), private: k}, nil
}

func (o *opened) ChangePIN(_ context.Context, old, new []byte) error {
	if err := o.hsm.call(o); err != nil {
		return err
	}
	o.hsm.mu.Lock()
	defer o.hsm.mu.Unlock()
	if string(old) != o.hsm.pin {
		return token.ErrPINIncorrect
	}
	o.hsm.pin = string(new)
	if o.hsm.afterChange != nil {
		o.hsm.afterChange()
	}
	return nil
}

func (o *opened) Close() error {
	err := o.hsm.call(nil)
	o.hsm.mu.Lock()
	defer o.hsm.mu.Unlock()
	o.closed, o.in = true, false
	return err
}

func (o *opened) Generate(context.Context, token.KeySpec) (token.Key, error) {
	return nil, token.ErrUnsupported
}

func (o *opened) Import(context.Context, token.KeySpec, crypto.PrivateKey) (token.Key, error) {
	return nil, token.ErrUnsupported
}

func (o *opened) Destroy(context.Context, []byte) error { return token.ErrUnsupported }

type fakeKey struct {
	opened  *opened
	id      []byte
	private *ecdsa.PrivateKey
}

func (k *fakeKey) ID() []byte                 { return k.id }
func (k *fakeKey) Algorithm() token.Algorithm { return token.P256 }
func (k *fakeKey) Public() crypto.PublicKey   { return &k.private.PublicKey }

func (k *fakeKey) Sign(_ context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	h := k.opened.hsm
	if err := h.call(k.opened); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.panics:
		panic("the driver's mistake")
	case !k.opened.in:
		return nil, token.ErrLoginRequired
	case h.fails != nil:
		return nil, h.fails
	}
	time.Sleep(h.takes)
	signature, err := k.private.Sign(rand.Reader, digest, opts)
	if h.corrupts && err == nil {
		signature[len(signature)-1] ^= 1
	}
	h.signed++
	return signature, err
}

// pair is a replica of fakes, all with the same keys "a" and "b", logged in.
type pair struct {
	*replica.Token
	hsms []*hsm
	key  token.Key
}

func newPair(t *testing.T) *pair { return newGroup(t, replica.Config{}, 2) }

// newGroup shortens what cfg does not set, and opens so many members.
func newGroup(t *testing.T, cfg replica.Config, members int) *pair {
	t.Helper()
	keys := newKeys(t, "a", "b")
	p := &pair{}
	for range members {
		p.hsms = append(p.hsms, newHSM(keys))
	}
	p.Token = openFakes(t, cfg, p.hsms...)
	if err := p.Login(t.Context(), pin); err != nil {
		t.Fatal(err)
	}
	k, err := p.Key(t.Context(), []byte("a"))
	if err != nil {
		t.Fatal(err)
	}
	p.key = k
	return p
}

func openFakes(t *testing.T, cfg replica.Config, hsms ...*hsm) *replica.Token {
	t.Helper()
	for i, h := range hsms {
		cfg.Members = append(cfg.Members, replica.Member{Name: string(rune('A' + i)), Open: h.open})
	}
	tok, err := replica.Open(t.Context(), quickly(cfg))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, h := range hsms {
			h.set(func(h *hsm) { h.release() })
		}
		if err := tok.Close(); err != nil {
			t.Logf("close: %v", err) // an absent fake cannot be closed
		}
	})
	return tok
}

// release ends the hanging.
func (h *hsm) release() {
	if h.hangs != nil {
		close(h.hangs)
		h.hangs = nil
	}
}

// quickly makes the times short.
func quickly(cfg replica.Config) replica.Config {
	cfg.Serial = "0042"
	if cfg.SignTimeout == 0 {
		cfg.SignTimeout = time.Second
	}
	cfg.ProbeEvery = 20 * time.Millisecond
	if cfg.CallTimeout == 0 {
		cfg.CallTimeout = 5 * time.Second
	}
	if cfg.AwaitMember == 0 {
		cfg.AwaitMember = 20 * time.Second
	}
	return cfg
}

// sign makes a signature and verifies it.
func sign(ctx context.Context, k token.Key) error {
	digest := make([]byte, 32)
	rand.Read(digest)
	signature, err := k.Sign(ctx, digest, crypto.SHA256)
	if err != nil {
		return err
	}
	if err := token.Verify(k.Public(), digest, crypto.SHA256, signature); err != nil {
		return fmt.Errorf("a bad signature came out: %w", err)
	}
	return nil
}

// mustSign makes so many signatures.
func (p *pair) mustSign(t *testing.T, n int) {
	t.Helper()
	for i := range n {
		if err := sign(t.Context(), p.key); err != nil {
			t.Fatalf("signature %d: %v", i, err)
		}
	}
}

// await waits until the member is in the state.
func (p *pair) await(t *testing.T, member int, state replica.State) {
	t.Helper()
	eventually(t, fmt.Sprintf("member %d %s", member, state), func() bool { return p.Members()[member].State == state })
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}
