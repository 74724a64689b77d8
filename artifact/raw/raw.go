// Package raw prepares files for raw signatures: the bare output of a key over
// a file's digest, as 'openssl dgst -verify' reads it, or over the whole of a
// small file for keys that sign messages (Ed25519).
package raw

import (
	"crypto"
	_ "crypto/sha256" // the hashes that Hashes names
	_ "crypto/sha3"
	_ "crypto/sha512"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Errors of this package, wrapped with what they are about. A retry with the same input does not help.
var (
	// ErrHash says that a hash's name is none of Hashes.
	ErrHash = errors.New("raw: unknown hash")
	// ErrTooLarge says that a file is too large to be signed whole.
	ErrTooLarge = errors.New("raw: too large to be signed whole")
)

var hashes = []struct {
	name string
	hash crypto.Hash
}{
	{"sha256", crypto.SHA256},
	{"sha384", crypto.SHA384},
	{"sha512", crypto.SHA512},
	{"sha3-256", crypto.SHA3_256},
	{"sha3-512", crypto.SHA3_512},
}

// Hashes returns the names that ParseHash takes, as openssl has them.
func Hashes() []string {
	names := make([]string, len(hashes))
	for i, entry := range hashes {
		names[i] = entry.name
	}
	return names
}

// ParseHash returns the hash of this name. The error is ErrHash.
func ParseHash(name string) (crypto.Hash, error) {
	for _, entry := range hashes {
		if entry.name == name {
			return entry.hash, nil
		}
	}
	return 0, fmt.Errorf("%w %q: use one of %s", ErrHash, name, strings.Join(Hashes(), ", "))
}

// HashName is the inverse of ParseHash, or "" for other hashes.
func HashName(hash crypto.Hash) string {
	for _, entry := range hashes {
		if entry.hash == hash {
			return entry.name
		}
	}
	return ""
}

// Digest reads r to its end and returns its digest. The memory it takes does
// not depend on how much that is. Errors are the reader's.
func Digest(r io.Reader, hash crypto.Hash) ([]byte, error) {
	state := hash.New()
	if _, err := io.Copy(state, r); err != nil {
		return nil, err
	}
	return state.Sum(nil), nil
}

// Message reads r to its end and returns all of it, for a signature over the
// whole. The error is ErrTooLarge when there are more than limit bytes, or the reader's.
func Message(r io.Reader, limit int) ([]byte, error) {
	message, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
	if err != nil {
		return nil, err
	}
	if len(message) > limit {
		return nil, fmt.Errorf("%w: more than %d bytes", ErrTooLarge, limit)
	}
	return message, nil
}
