// Package seal keeps the data key under which a database is sealed.
//
// The data key is 32 random bytes. It is stored in the database itself, once for each seal, wrapped so
// that only this seal opens it; any one of them does. Every kind of seal keeps 32 secret bytes, its share, in its own way:
// a TPM 2.0 in a sealed object, a PKCS#11 token encrypted by a key that never leaves it, a secret file by deriving it. The
// data key is encrypted under the share with AES-256-GCM, together with the seal's name, kind and
// parameters, so that all kinds bind alike and none can be exchanged.
//
// The package knows no hardware: subpackages tpm and pkcs11 do, and helper runs them in a process of their own.
package seal

import (
	"bytes"
	"context"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"

	"chancery/users"
)

// Kinds of seals.
const (
	KindSecret = "secret"
	KindTPM    = "tpm"
	KindPKCS11 = "pkcs11"
)

// ShareSize is the length of what a Keeper keeps, in bytes.
const ShareSize = 32

// Why a seal does not open. Compare with errors.Is.
var (
	// ErrAbsent says that the seal's device, token, module or file is not there or does not answer. A retry may help.
	ErrAbsent = errors.New("seal: it is not there or does not answer")
	// ErrForeign says that what answers is not what the seal was made with, or that the seal's bytes were changed.
	ErrForeign = errors.New("seal: it is not the one that this seal was made with")
	// ErrChanged says that the TPM is right and the PCRs have other values than when the seal was made.
	ErrChanged = errors.New("seal: the TPM's PCRs have changed since the seal was made")
	// ErrPIN says that the PKCS#11 token rejected the PIN.
	ErrPIN = errors.New("seal: the token rejected the PIN")
	// ErrPINRejected says that the token rejected the same PIN before, so that it was not sent again.
	ErrPINRejected = errors.New("seal: the token rejected this PIN before, and it is not sent again by this process")
	// ErrPINTries says that no PIN is sent, because the next wrong one would lock the token or it is locked.
	ErrPINTries = errors.New("seal: the token has no try for a PIN left to spare")
	// ErrUnsuitable says that a key, a token or a file cannot keep a seal.
	ErrUnsuitable = errors.New("seal: it cannot keep a seal")
)

// Keeper is one place that keeps a share. Calls end with their context.
type Keeper interface {
	// New makes a share of ShareSize random bytes, and what the Keeper needs to give it again, which is stored. The caller clears the share.
	New(ctx context.Context) (share, kept []byte, err error)
	// Share gives the share again; the caller clears it. Errors: as above.
	Share(ctx context.Context, kept []byte) (share []byte, err error)
}

// Wrap has a Keeper keep the data key: it fills in s.Wrapped. Before it returns, the seal was opened once.
func Wrap(ctx context.Context, keeper Keeper, s *users.Seal, key *Key) error {
	share, kept, err := keeper.New(ctx)
	if err != nil {
		return describe(s, err)
	}
	defer clear(share)
	aead, err := wrapping(share)
	if err != nil {
		return describe(s, err)
	}
	encrypted, err := key.wrap(aead, binding(s, key.id))
	if err != nil {
		return describe(s, err)
	}
	s.Wrapped = binary.BigEndian.AppendUint32(nil, uint32(len(kept)))
	s.Wrapped = append(append(s.Wrapped, kept...), encrypted...)
	opened, err := Unwrap(ctx, keeper, s, key.id)
	if err != nil {
		return fmt.Errorf("seal: what was made does not open again: %w", err)
	}
	opened.Close()
	return nil
}

// Unwrap gives the data key with this ID out of a seal.
func Unwrap(ctx context.Context, keeper Keeper, s *users.Seal, keyID []byte) (*Key, error) {
	if len(s.Wrapped) < 4 {
		return nil, describe(s, ErrForeign)
	}
	size := binary.BigEndian.Uint32(s.Wrapped)
	if int64(size) > int64(len(s.Wrapped)-4) {
		return nil, describe(s, ErrForeign)
	}
	kept, encrypted := s.Wrapped[4:4+size], s.Wrapped[4+size:]
	share, err := keeper.Share(ctx, kept)
	if err != nil {
		return nil, describe(s, err)
	}
	defer clear(share)
	aead, err := wrapping(share)
	if err != nil {
		return nil, describe(s, err)
	}
	raw, err := decrypt(aead, encrypted, binding(s, keyID))
	if err != nil || len(raw) != KeySize {
		return nil, describe(s, ErrForeign)
	}
	key := newKey(raw)
	if !bytes.Equal(key.id, keyID) {
		key.Close()
		return nil, describe(s, ErrForeign)
	}
	return key, nil
}

// infoWrap makes the key that encrypts the data key.
const infoWrap = "chancery seal 1: wrap of the data key"

// wrapping is the cipher that a share gives.
func wrapping(share []byte) (cipher.AEAD, error) {
	if len(share) != ShareSize {
		return nil, fmt.Errorf("%w: it gave %d bytes instead of %d", ErrForeign, len(share), ShareSize)
	}
	key := derive(share, nil, infoWrap, KeySize)
	defer clear(key)
	return newAEAD(key), nil
}

// binding is what a wrapped data key is bound to: label, then each field behind its u32 length.
func binding(s *users.Seal, keyID []byte) []byte {
	b := []byte("chancery seal\x00\x01")
	for _, field := range [][]byte{[]byte(s.Name), []byte(s.Kind), s.Parameters, keyID} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(field)))
		b = append(b, field...)
	}
	return b
}

func describe(s *users.Seal, err error) error {
	return fmt.Errorf("seal %q (%s): %w", s.Name, s.Kind, err)
}
