package users

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Errors about the seal over a store. Compare with errors.Is.
var (
	// ErrSealClosed says that the store is sealed and none of its seals opens now, or that what opens does not fit
	// what is stored. Nothing that a grant holds can be used, and nothing can be changed. It helps to bring one of the seals back.
	ErrSealClosed = errors.New("users: the seal over the database does not open")
	// ErrSealBroken is the ErrSealClosed of a sealed store that somebody without the data key changed as a
	// whole: took the seal away, or put an older copy in its place. A retry does not help.
	ErrSealBroken = fmt.Errorf("%w: somebody without its data key has changed the database", ErrSealClosed)
	// ErrUnsealedRow says that a row of a sealed store is not what was last written under the seal.
	ErrUnsealedRow = errors.New("users: it was not written under the seal")
	// ErrNotSealed says that the store has no seal.
	ErrNotSealed = errors.New("users: the database is not sealed")
	// ErrLastSeal says that the only seal left cannot be removed by itself.
	ErrLastSeal = errors.New("users: it is the last seal")
)

// SealKey is a data key in use: all that a sealed Store stores is encrypted or authenticated under it.
// Methods are safe for use by several goroutines.
type SealKey interface {
	// ID tells data keys apart; it is no secret.
	ID() []byte
	// Seal encrypts and authenticates plaintext, together with a context that is not stored. Error: ErrSealClosed after Close.
	Seal(plaintext, context []byte) ([]byte, error)
	// Open gives back what Seal was given with the same context. Errors: ErrUnsealedRow, or ErrSealClosed after Close.
	Open(sealed, context []byte) ([]byte, error)
	// Close overwrites the key.
	Close()
}

// Seal is one of the places that keep a Store's data key. Any one of them opens it.
type Seal struct {
	Name       string
	Kind       string // what package seal calls it
	Parameters []byte // JSON, no secret: where it is and how to ask it
	Wrapped    []byte // the data key, in a form that only this seal opens
	CreatedAt  time.Time

	Authentic bool // read under an open data key, and listed by it; false where that is not known
}

// SealState is how a Store is sealed.
type SealState struct {
	KeyID []byte // of the data key; empty: the Store is not sealed
	Seals []Seal // by ascending age
}

// SealOpener finds a sealed Store's data key.
type SealOpener interface {
	// OpenSeal returns the data key with state's KeyID, by whichever seal opens. The caller closes it. Error: ErrSealClosed.
	OpenSeal(ctx context.Context, state SealState) (SealKey, error)
	// Required tells whether a Store without a seal is to be refused with ErrSealBroken.
	Required() bool
}

// SealStore is a Store that can be sealed. Its Snapshot and its changes go through
// the seal by themselves; a row that was written otherwise is left out of a Snapshot as unreadable.
type SealStore interface {
	Store
	// Seals returns how the store is sealed. It needs no data key.
	Seals(ctx context.Context) (SealState, error)
	// SealWith encrypts and authenticates everything anew under key, in one transaction, and has seals, which wrap this key, replace
	// those before. The store closes the key in the end. ErrStale when another data key than was was in force; nil is for none.
	SealWith(ctx context.Context, was []byte, key SealKey, seals []Seal) error
	// AddSeal adds a seal that wraps the data key in force. Errors: ErrExists, ErrNotSealed, ErrName, ErrSealClosed.
	AddSeal(ctx context.Context, keyID []byte, seal Seal) error
	// RemoveSeal removes a seal. Errors: ErrNotFound, ErrLastSeal, ErrSealClosed.
	RemoveSeal(ctx context.Context, name string) error
	// Unseal removes all seals and stores everything in the clear again. Errors: ErrNotSealed, ErrSealClosed,
	// and ErrUnreadable while there are rows that were not written under the seal: they would come to life.
	Unseal(ctx context.Context) error
	// Scrub overwrites what the file system still shows of earlier contents.
	Scrub(ctx context.Context) error
}
