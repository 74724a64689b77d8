package wire

import (
	"fmt"
	"log/slog"
)

const redacted = "[secret]"

// Secret holds a passphrase. It never prints itself, whatever the verb, and can
// be wiped. Copies share the same bytes.
type Secret struct{ bytes []byte }

// NewSecret takes b over: the caller must not change it, and Wipe zeroes it.
func NewSecret(b []byte) Secret { return Secret{bytes: b} }

// Bytes returns the passphrase itself, not a copy. Do not keep it beyond Wipe.
func (s Secret) Bytes() []byte { return s.bytes }

// Wipe overwrites the passphrase with zeros.
func (s Secret) Wipe() { clear(s.bytes) }

// String returns a placeholder.
func (s Secret) String() string { return redacted }

// GoString returns a placeholder.
func (s Secret) GoString() string { return redacted }

// Format writes a placeholder for every verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// LogValue returns a placeholder.
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns a placeholder, so that no encoder writes the passphrase by accident.
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
