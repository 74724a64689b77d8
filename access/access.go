// Package access turns a passphrase into an access key and keeps a token's PIN
// for whoever knows that passphrase.
//
// An access key is an HPKE key pair (RFC 9180, the hybrid KEM MLKEM768-X25519)
// whose seed is Argon2id (RFC 9106) of the passphrase. Its public half can be
// handed to anybody: with it a manager wraps a PIN for a user whose passphrase
// the manager never learns. Only the passphrase brings the private half back.
//
// The binding of a wrapped PIN (which token, key, user, role, expiry) is HPKE's
// info string, so a stored row that is moved to another key or user, or whose
// expiry is pushed back, does not open.
//
// Client and server both link this package; it imports nothing of the project.
package access

import (
	"crypto/hpke"
	"crypto/rand"
	"errors"
	"fmt"

	"golang.org/x/crypto/argon2"
)

// Errors of this package. Compare with errors.Is.
var (
	// ErrWrongPassphrase says that a wrapped PIN did not open: the passphrase is
	// wrong, or the row was altered. The two cannot be told apart.
	ErrWrongPassphrase = errors.New("access: the passphrase does not open this grant")
	// ErrParameters says that Argon2id parameters are outside the bounds that this program accepts.
	ErrParameters = errors.New("access: Argon2id parameters out of bounds")
	// ErrEnrolment says that an enrolment string is damaged or of an unknown version.
	ErrEnrolment = errors.New("access: not a valid enrolment string")
	// ErrMalformed says that stored bytes are not what this package wrote.
	ErrMalformed = errors.New("access: malformed stored value")
)

// Bounds for Argon2id parameters. The lower ones keep a stolen database
// expensive to search (OWASP's minimum); the upper ones keep an enrolment string, which its
// user may make with any cost, from taking the server's memory and time from all others:
// the dearest derivation takes about a second of two cores.
const (
	MinTime      = 2
	MaxTime      = 8
	MinMemoryKiB = 19 * 1024
	MaxMemoryKiB = 256 * 1024
	MaxThreads   = 16
	SaltSize     = 16 // bytes
)

const seedSize = 32

// Parameters are the cost and salt of one Argon2id derivation (RFC 9106, section 3.1).
type Parameters struct {
	Time      uint32 // passes
	MemoryKiB uint32
	Threads   uint8 // lanes
	Salt      [SaltSize]byte
}

// NewParameters returns RFC 9106's second recommended choice (3 passes, 64 MiB, 4 lanes) with a fresh random salt.
func NewParameters() Parameters {
	p := Parameters{Time: 3, MemoryKiB: 64 * 1024, Threads: 4}
	rand.Read(p.Salt[:])
	return p
}

// Validate returns ErrParameters, wrapped with the offending number, for costs outside the bounds above.
func (p Parameters) Validate() error {
	switch {
	case p.Time < MinTime || p.Time > MaxTime:
		return fmt.Errorf("%w: %d passes, not %d to %d", ErrParameters, p.Time, MinTime, MaxTime)
	case p.MemoryKiB < MinMemoryKiB || p.MemoryKiB > MaxMemoryKiB:
		return fmt.Errorf("%w: %d KiB, not %d to %d", ErrParameters, p.MemoryKiB, MinMemoryKiB, MaxMemoryKiB)
	case p.Threads < 1 || p.Threads > MaxThreads:
		return fmt.Errorf("%w: %d lanes, not 1 to %d", ErrParameters, p.Threads, MaxThreads)
	}
	return nil
}

// Key is an access key pair. It lives in memory for one unlock or one grant.
type Key struct {
	parameters Parameters
	private    hpke.PrivateKey
}

// DeriveKey makes the access key of a passphrase: tens of milliseconds of
// processor time and p.MemoryKiB of memory, so callers bound how many run at once.
func DeriveKey(passphrase []byte, p Parameters) (*Key, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	seed := argon2.IDKey(passphrase, p.Salt[:], p.Time, p.MemoryKiB, p.Threads, seedSize)
	defer clear(seed)
	private, err := kem().DeriveKeyPair(seed)
	if err != nil {
		return nil, fmt.Errorf("access: derive key pair: %w", err)
	}
	return &Key{parameters: p, private: private}, nil
}

// Public returns the half that others wrap PINs to.
func (k *Key) Public() PublicKey {
	return PublicKey{Parameters: k.parameters, encapsulation: k.private.PublicKey()}
}

func kem() hpke.KEM { return hpke.MLKEM768X25519() }
