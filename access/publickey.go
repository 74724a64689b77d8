package access

import (
	"crypto/hpke"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"strings"
)

// PublicKey is the public half of an access key together with the Argon2id
// parameters that lead from the passphrase to the private half.
type PublicKey struct {
	Parameters
	encapsulation hpke.PublicKey
}

const (
	publicKeyVersion = 1
	// version, time u32, memory u32, threads u8, salt: then the KEM's public key.
	publicKeyHeaderSize = 1 + 4 + 4 + 1 + SaltSize
)

// Bytes encodes the key for storage: version 1, passes u32, memory KiB u32, lanes
// u8, salt, KEM public key; big endian.
func (k PublicKey) Bytes() []byte {
	b := make([]byte, 0, publicKeyHeaderSize+1216)
	b = append(b, publicKeyVersion)
	b = binary.BigEndian.AppendUint32(b, k.Time)
	b = binary.BigEndian.AppendUint32(b, k.MemoryKiB)
	b = append(b, k.Threads)
	b = append(b, k.Salt[:]...)
	return append(b, k.encapsulation.Bytes()...)
}

// ParsePublicKey reads what Bytes wrote. Errors: ErrMalformed, ErrParameters.
func ParsePublicKey(b []byte) (PublicKey, error) {
	if len(b) < publicKeyHeaderSize || b[0] != publicKeyVersion {
		return PublicKey{}, fmt.Errorf("%w: access key of %d bytes", ErrMalformed, len(b))
	}
	k := PublicKey{Parameters: Parameters{
		Time:      binary.BigEndian.Uint32(b[1:]),
		MemoryKiB: binary.BigEndian.Uint32(b[5:]),
		Threads:   b[9],
		Salt:      [SaltSize]byte(b[10:]),
	}}
	if err := k.Validate(); err != nil {
		return PublicKey{}, err
	}
	encapsulation, err := kem().NewPublicKey(b[publicKeyHeaderSize:])
	if err != nil {
		return PublicKey{}, fmt.Errorf("%w: access key: %w", ErrMalformed, err)
	}
	k.encapsulation = encapsulation
	return k, nil
}

// Fingerprint is a short name of the key for two people to compare over another
// channel: 100 bits of SHA-256 in five groups of four base32 characters.
func (k PublicKey) Fingerprint() string {
	sum := sha256.Sum256(k.Bytes())
	text := base32.StdEncoding.EncodeToString(sum[:])[:20]
	groups := make([]string, 0, 5)
	for i := 0; i < len(text); i += 4 {
		groups = append(groups, text[i:i+4])
	}
	return strings.Join(groups, "-")
}
