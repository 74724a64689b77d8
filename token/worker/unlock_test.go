package worker

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"sync"
	"testing"
	"time"

	"chancery/access"
	"chancery/token"
	"chancery/users"
)

// home is a token with keys, and what opens it.
type home struct {
	serial string
	pin    string
	dir    string // of a fake
	keys   []token.KeyInfo
}

const passphrase = "a long enough passphrase"

// accessKey is derived once, with the least that is allowed: Argon2id is slow on purpose.
var accessKey = sync.OnceValue(func() *access.Key {
	key, err := access.DeriveKey([]byte(passphrase), access.Parameters{Time: access.MinTime, MemoryKiB: access.MinMemoryKiB, Threads: 1})
	if err != nil {
		panic(err)
	}
	return key
})

func wrap(t testing.TB, pin string, binding access.Binding) []byte {
	t.Helper()
	wrapped, err := access.Wrap([]byte(pin), accessKey().Public(), binding)
	if err != nil {
		t.Fatal(err)
	}
	return wrapped
}

// unlocking is what opens the home's nth key for a session.
func (h home) unlocking(t testing.TB, n int, session byte) Unlock {
	t.Helper()
	public, err := x509.MarshalPKIXPublicKey(h.keys[n].Public)
	if err != nil {
		t.Fatal(err)
	}
	binding := access.Binding{TokenSerial: h.serial, KeyHandle: fmt.Sprintf("%X", sha256.Sum256(public)), User: "ann", Role: string(users.RoleSigner)}
	return Unlock{
		Holder:     Holder{Session: [16]byte{session}, User: 7},
		Key:        Key{Name: "k", ID: h.keys[n].ID, Public: public},
		Passphrase: []byte(passphrase),
		Grant:      Grant{Parameters: accessKey().Public().Parameters, Wrapped: wrap(t, h.pin, binding), Binding: binding},
		Token:      users.Token{ID: 3, Name: "t", Serial: h.serial, PINVersion: 1},
	}
}

// withPIN has the grant hold another PIN, as of a version.
func (u Unlock) withPIN(t testing.TB, pin string, version int64) Unlock {
	t.Helper()
	u.Grant.Wrapped = wrap(t, pin, u.Grant.Binding)
	u.Token.PINVersion = version
	return u
}

// notebook is a ledger in memory.
type notebook struct {
	mu      sync.Mutex
	record  users.Token
	told    []string
	derived int
	block   chan struct{} // where not nil, Snapshot waits until it is closed
}

func notebookOf(u Unlock) *notebook { return &notebook{record: u.Token} }

func (n *notebook) Derived() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.derived++
}

func (n *notebook) Snapshot(context.Context) (*users.Snapshot, error) {
	if n.block != nil {
		<-n.block
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return users.NewSnapshot(1, nil, []users.Token{n.record}, nil, nil), nil
}

func (n *notebook) CommitPIN(_ context.Context, tokenID, version int64) error {
	n.note(fmt.Sprintf("commit %d %d", tokenID, version))
	return nil
}

func (n *notebook) RejectPIN(_ context.Context, tokenID, version int64, staged bool) error {
	n.note(fmt.Sprintf("reject %d %d %t", tokenID, version, staged))
	return nil
}

func (n *notebook) note(text string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.told = append(n.told, text)
}

func (n *notebook) seen() (derived int, told []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.derived, append([]string(nil), n.told...)
}

// mustUnlock unlocks and checks that the derivation was told of once.
func mustUnlock(t testing.TB, h Handler, u Unlock) Capability {
	t.Helper()
	ledger := notebookOf(u)
	capability, err := h.Unlock(context.Background(), u, ledger)
	if err != nil {
		t.Fatal(err)
	}
	if derived, _ := ledger.seen(); derived != 1 {
		t.Errorf("told %d times of a derivation", derived)
	}
	return capability
}

// ordering asks for signatures of the key that was unlocked.
func ordering(u Unlock, capability Capability, inputs ...[]byte) Order {
	return Order{Holder: u.Holder, Capability: capability, KeyID: u.Key.ID, Inputs: inputs, Options: crypto.SHA256}
}

func digest(n int) []byte {
	sum := sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(n)))
	return bytes.Clone(sum[:])
}

// signing signs and verifies.
func signing(h Handler, order Order, public crypto.PublicKey) error {
	signatures, err := h.Sign(context.Background(), order)
	if err != nil {
		return err
	}
	if len(signatures) != len(order.Inputs) {
		return fmt.Errorf("%d signatures for %d inputs", len(signatures), len(order.Inputs))
	}
	for i, input := range order.Inputs {
		if err := token.Verify(public, input, order.Options, signatures[i]); err != nil {
			return fmt.Errorf("signature %d: %w", i, err)
		}
	}
	return nil
}

// hangACall begins a signature that never returns, in a worker with a fake token whose directory is in the
// specification. What it returns is closed when the token has been asked.
func hangACall(ctx context.Context, p *Process) (<-chan struct{}, error) {
	infos, err := p.Keys(ctx)
	if err != nil {
		return nil, err
	}
	public, err := x509.MarshalPKIXPublicKey(infos[0].Public)
	if err != nil {
		return nil, err
	}
	binding := access.Binding{TokenSerial: fakeSerial, User: "ann"}
	wrapped, err := access.Wrap([]byte(rightPIN), accessKey().Public(), binding)
	if err != nil {
		return nil, err
	}
	u := Unlock{
		Key: Key{ID: infos[0].ID, Public: public}, Passphrase: []byte(passphrase),
		Grant: Grant{Parameters: accessKey().Public().Parameters, Wrapped: wrapped, Binding: binding},
		Token: users.Token{ID: 1, Serial: fakeSerial},
	}
	capability, err := p.Unlock(ctx, u, notebookOf(u))
	if err != nil {
		return nil, err
	}
	asked := make(chan struct{})
	go func() { _, _ = p.Sign(ctx, ordering(u, capability, command("hang"))) }()
	go func() {
		defer close(asked)
		time.Sleep(100 * time.Millisecond)
	}()
	return asked, nil
}

// noHash is for algorithms that sign whole messages.
const noHash = crypto.Hash(0)
