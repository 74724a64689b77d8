package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"slices"
	"sync"

	"chancery/users"
)

// KeySize is the length of a data key, in bytes.
const KeySize = 32

// What is derived from a data key, each by HKDF-SHA256 (RFC 5869) with one of these as info.
const (
	infoID   = "chancery seal 1: name of the data key"
	infoRows = "chancery seal 1: rows"
)

const keyIDSize = 16

// Key is a data key: everything in a sealed database is encrypted or authenticated under it with AES-256-GCM.
// It implements users.SealKey.
type Key struct {
	id []byte

	mu   sync.RWMutex
	raw  []byte      // nil after Close
	rows cipher.AEAD // nil after Close
}

var _ users.SealKey = (*Key)(nil)

// NewKey makes a random data key.
func NewKey() *Key {
	raw := make([]byte, KeySize)
	rand.Read(raw)
	return newKey(raw)
}

// newKey takes raw over.
func newKey(raw []byte) *Key {
	forRows := derive(raw, nil, infoRows, KeySize)
	defer clear(forRows)
	return &Key{id: derive(raw, nil, infoID, keyIDSize), raw: raw, rows: newAEAD(forRows)}
}

// ID tells data keys apart; the key cannot be found from it.
func (k *Key) ID() []byte { return slices.Clone(k.id) }

// Seal encrypts plaintext and authenticates it together with context. The result begins with a random nonce.
func (k *Key) Seal(plaintext, context []byte) ([]byte, error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.raw == nil {
		return nil, users.ErrSealClosed
	}
	return encrypt(k.rows, plaintext, context), nil
}

// Open gives back what Seal was given.
func (k *Key) Open(sealed, context []byte) ([]byte, error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.raw == nil {
		return nil, users.ErrSealClosed
	}
	plaintext, err := decrypt(k.rows, sealed, context)
	if err != nil {
		return nil, users.ErrUnsealedRow
	}
	return plaintext, nil
}

// Close overwrites the key. What the cipher has made of it is left to the garbage collector.
func (k *Key) Close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	clear(k.raw)
	k.raw, k.rows = nil, nil
}

// String keeps the key out of logs.
func (k *Key) String() string { return fmt.Sprintf("data key %x", k.id) }

// GoString keeps the key out of logs.
func (k *Key) GoString() string { return k.String() }

// wrap encrypts the key itself.
func (k *Key) wrap(with cipher.AEAD, context []byte) ([]byte, error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.raw == nil {
		return nil, users.ErrSealClosed
	}
	return encrypt(with, k.raw, context), nil
}

// derive expands a secret of 32 random bytes or more. It cannot fail with the lengths used here.
func derive(secret, salt []byte, info string, size int) []byte {
	out, err := hkdf.Key(sha256.New, secret, salt, info, size)
	if err != nil {
		panic(err)
	}
	return out
}

// newAEAD returns AES-256-GCM. It cannot fail with a key of KeySize.
func newAEAD(key []byte) cipher.AEAD {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return aead
}

// encrypt is good for 2^32 messages under one key (NIST SP 800-38D, section 8.3).
func encrypt(aead cipher.AEAD, plaintext, context []byte) []byte {
	nonce := make([]byte, aead.NonceSize(), aead.NonceSize()+len(plaintext)+aead.Overhead())
	rand.Read(nonce)
	return aead.Seal(nonce, nonce, plaintext, context)
}

func decrypt(aead cipher.AEAD, sealed, context []byte) ([]byte, error) {
	if len(sealed) < aead.NonceSize() {
		return nil, ErrForeign
	}
	return aead.Open(nil, sealed[:aead.NonceSize()], sealed[aead.NonceSize():], context)
}
