package access

import (
	"crypto/hpke"
	"encoding/binary"
	"fmt"
	"time"
)

// MaxPINSize is the longest PIN, in bytes, that can be wrapped.
const MaxPINSize = 255

// paddedSize hides the PIN's length: one length byte, the PIN, zeros.
const paddedSize = 1 + MaxPINSize

const bindingLabel = "chancery grant"

// Binding says what a wrapped PIN is good for. All of it goes into HPKE's info,
// so that opening it under any other binding fails.
type Binding struct {
	TokenSerial string
	KeyHandle   string // upper-case hex SHA-256 of the SubjectPublicKeyInfo; "" for the role token manager
	User        string
	Role        string
	Expires     time.Time // zero: never; whole seconds count
}

// info encodes the binding: label, format version, then each field behind its
// u32 length, so that no two bindings give the same bytes.
func (b Binding) info() []byte {
	info := append([]byte(bindingLabel), 0, 1)
	for _, field := range []string{b.TokenSerial, b.KeyHandle, b.User, b.Role} {
		info = binary.BigEndian.AppendUint32(info, uint32(len(field)))
		info = append(info, field...)
	}
	var expires int64
	if !b.Expires.IsZero() {
		expires = b.Expires.Unix()
	}
	return binary.BigEndian.AppendUint64(info, uint64(expires))
}

// Wrap encrypts a PIN (1 to MaxPINSize bytes) to an access key. The result has the
// same length for every PIN.
func Wrap(pin []byte, to PublicKey, b Binding) ([]byte, error) {
	if len(pin) == 0 || len(pin) > MaxPINSize {
		return nil, fmt.Errorf("access: a PIN of %d bytes cannot be wrapped, only 1 to %d", len(pin), MaxPINSize)
	}
	padded := make([]byte, paddedSize)
	defer clear(padded)
	padded[0] = byte(len(pin))
	copy(padded[1:], pin)
	wrapped, err := hpke.Seal(to.encapsulation, hpke.HKDFSHA256(), hpke.AES256GCM(), b.info(), padded)
	if err != nil {
		return nil, fmt.Errorf("access: wrap PIN: %w", err)
	}
	return wrapped, nil
}

// Unwrap gives the PIN back; the caller clears it after use. Any failure is
// ErrWrongPassphrase: a wrong passphrase, altered bytes and a wrong binding look alike.
func (k *Key) Unwrap(wrapped []byte, b Binding) ([]byte, error) {
	padded, err := hpke.Open(k.private, hpke.HKDFSHA256(), hpke.AES256GCM(), b.info(), wrapped)
	if err != nil {
		return nil, ErrWrongPassphrase
	}
	defer clear(padded)
	if len(padded) != paddedSize || padded[0] == 0 {
		return nil, ErrWrongPassphrase
	}
	pin := make([]byte, padded[0])
	copy(pin, padded[1:])
	return pin, nil
}
