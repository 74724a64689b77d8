package worker

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"time"

	"chancery/access"
	"chancery/token"
	"chancery/users"
)

// Errors of this package, wrapped with what it was doing. Compare with errors.Is.
var (
	// ErrGone says that the token's process ended before it answered. A retry helps once another one is there.
	ErrGone = fmt.Errorf("worker: the token's process is gone: %w", token.ErrTokenAbsent)
	// ErrCapability says that no such capability is good for this session, user and key: the key has to be unlocked again.
	ErrCapability = errors.New("worker: the key is not unlocked")
	// ErrCorrupt says that the token made a signature that its public key does not verify. It was thrown away.
	ErrCorrupt = errors.New("worker: the token made a signature that does not verify")
)

// Holder is whom a capability is bound to.
type Holder struct {
	Session [16]byte
	User    int64
}

// Capability stands for one key that was unlocked. It is a secret between its holder and the Vault.
type Capability struct {
	Number uint64
	Secret [32]byte
}

// Unlock is what a user shows in order to be given a capability.
type Unlock struct {
	Holder
	Key        Key
	Passphrase []byte `json:"-"` // Vault and Process keep no reference to it
	Grant      Grant
	Token      users.Token   // as it stood in the snapshot that the grant is from
	Lasts      time.Duration // the capability's time, which ends with the grant's all the same; 0: until Lock
	Uses       int           // signatures that it is good for; 0: any number
}

// Key says which key is meant and what it must be.
type Key struct {
	Name   string // for messages
	ID     []byte // on its token
	Public []byte // DER SubjectPublicKeyInfo, as it was registered
}

// Grant holds the PIN, wrapped to the user's access key.
type Grant struct {
	Parameters access.Parameters
	Wrapped    []byte
	Staged     []byte // nil unless a PIN change is in flight
	Binding    access.Binding
}

// Order is a request to sign one or several inputs with one key. All are signed, or none is given out.
type Order struct {
	Holder
	Capability Capability
	KeyID      []byte
	Inputs     [][]byte          // digests, or whole messages for Ed25519
	Options    crypto.SignerOpts // a crypto.Hash (0 for Ed25519) or *rsa.PSSOptions
}

// Ledger is what the store remembers of the token's PIN, as users.Ledger, and is told when the slow part of an
// unlock is over.
type Ledger interface {
	users.Ledger
	// Derived says that the passphrase's derivation has ended. It is called once for each Unlock.
	Derived()
}

// Handler of a Process or a Vault: what both can do.
type Handler interface {
	// Info describes the token. It needs no login.
	Info(ctx context.Context) (token.Info, error)
	// Keys lists the token's keys as it shows them without login.
	Keys(ctx context.Context) ([]token.KeyInfo, error)
	// Unlock turns a passphrase into a capability: derive, unwrap, log in, find the key. Errors:
	// access.ErrWrongPassphrase, those of users.Login, token.ErrMismatch when the token's key is not the registered one.
	Unlock(ctx context.Context, unlock Unlock, ledger Ledger) (Capability, error)
	// Sign signs what a capability allows. Every signature has been verified. The order's bytes must not change until
	// Sign returns. Errors: ErrCapability, ErrCorrupt, ErrGone, those of token.Key.
	Sign(ctx context.Context, order Order) ([][]byte, error)
	// Lock ends a capability; one that is not there is no error.
	Lock(capability Capability)
	// Close logs out and gives the token back.
	Close() error
	// Done is closed once the token cannot be used any more.
	Done() <-chan struct{}
}

var (
	_ Handler = (*Vault)(nil)
	_ Handler = (*Process)(nil)
)
