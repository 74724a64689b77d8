// Package token says what the home of a signing key is: a Token holds keys, and
// a Key signs without ever giving its private half away. Drivers for PKCS#11
// tokens and for the embedded software token live in the folders below and all
// pass the contract of token/tokentest.
//
// # Concurrency
//
// Every method of Token and Key may be called from several goroutines at once.
// A driver bounds the sessions it opens and makes callers wait for a free one
// until their context ends.
//
// # PIN
//
// A token has one user PIN. Login proves it to the token; signing, generating,
// importing and destroying need it, listing public halves does not.
package token

import (
	"context"
	"crypto"
	"errors"
	"fmt"
)

// Errors that every driver returns, wrapped with what it was doing. Compare with errors.Is.
var (
	// ErrNoKey says that the token holds no key with this identifier.
	ErrNoKey = errors.New("token: no such key")
	// ErrKeyExists says that the identifier is already in use on this token.
	ErrKeyExists = errors.New("token: a key with this identifier exists")
	// ErrPINIncorrect says that the token rejected the PIN (CKR_PIN_INCORRECT). It must not be sent again.
	ErrPINIncorrect = errors.New("token: PIN incorrect")
	// ErrPINLocked says that the token refuses every PIN until its security officer acts (CKR_PIN_LOCKED).
	ErrPINLocked = errors.New("token: PIN locked")
	// ErrPINInvalid says that a new PIN is too short, too long or has characters that the token does not take.
	ErrPINInvalid = errors.New("token: new PIN not acceptable")
	// ErrLoginRequired says that the operation needs a Login first.
	ErrLoginRequired = errors.New("token: login required")
	// ErrTokenAbsent says that the token is not there: unplugged, module missing, directory gone. A retry may help.
	ErrTokenAbsent = errors.New("token: absent")
	// ErrBroken says that nothing but a fresh process helps: the driver's library is stuck in a state that new sessions
	// do not mend. It is a kind of ErrTokenAbsent for whoever has no process to start.
	ErrBroken = fmt.Errorf("token: only a fresh process helps: %w", ErrTokenAbsent)
	// ErrUnsupported says that the token cannot do this at all, now or later.
	ErrUnsupported = errors.New("token: not supported by this token")
	// ErrBusy says that no session became free before the deadline. A retry helps.
	ErrBusy = errors.New("token: busy")
	// ErrClosed says that the token was closed. It has to be opened again.
	ErrClosed = errors.New("token: closed")
	// ErrMismatch says that a key's private and public halves, or the public half and what was expected, differ.
	ErrMismatch = errors.New("token: key does not match its public half")
)

// Info describes a token at this moment.
type Info struct {
	Driver       string // "pkcs11" or "soft"
	Label        string
	Serial       string // stable identity; grants are bound to it
	Manufacturer string
	Model        string
	Hardware     bool // false for software tokens, SoftHSM among them
	LoggedIn     bool
	MaxSessions  int // sessions this driver opens at most
	Parallel     int // calls at once beyond which nothing is gained; 0: MaxSessions
	PIN          PINState
	Algorithms   []Algorithm // what Generate accepts here
}

// PINState is what the token says of its user PIN's retry counter
// (PKCS#11 v2.40 base specification, section 3.2, token information flags).
type PINState struct {
	CountLow bool // at least one wrong PIN since the last right one
	FinalTry bool // the next wrong PIN locks the token
	Locked   bool
}

// KeyInfo is one key as the token lists it, without login.
type KeyInfo struct {
	ID        []byte // CKA_ID
	Label     string // CKA_LABEL
	Algorithm Algorithm
	Public    crypto.PublicKey // *rsa.PublicKey, *ecdsa.PublicKey or ed25519.PublicKey
}

// KeySpec names a key to be made.
type KeySpec struct {
	ID        []byte // 1 to 64 bytes, unused on this token
	Label     string // at most 255 bytes of plain UTF-8 text
	Algorithm Algorithm
}

// Token is the home of keys.
type Token interface {
	// Info reads the token's description and PIN state. It needs no login.
	Info(ctx context.Context) (Info, error)
	// Login proves the user PIN and keeps the login until Logout or Close. When the token is
	// logged in already it returns nil without sending pin. The driver keeps no
	// reference to pin. Errors: ErrPINIncorrect, ErrPINLocked, ErrTokenAbsent.
	Login(ctx context.Context, pin []byte) error
	// Logout waits for the operations under way, ends the login and forgets what it left in
	// memory. Keys at hand say ErrLoginRequired from then on, and work again after another
	// Login. Without a login it does nothing. Errors: ErrBusy (still logged in, a retry
	// helps), ErrTokenAbsent.
	Logout(ctx context.Context) error
	// Keys lists the keys whose public half the token shows. It needs no login
	// unless the token hides its public objects.
	Keys(ctx context.Context) ([]KeyInfo, error)
	// Key finds one private key and keeps its handle, so that Sign searches for
	// nothing. It needs a login. Errors: ErrNoKey, ErrLoginRequired, ErrMismatch, ErrUnsupported.
	Key(ctx context.Context, id []byte) (Key, error)
	// Generate makes a key inside the token, sensitive and not extractable. It
	// needs a login. Errors: ErrKeyExists, ErrUnsupported (before anything is made).
	Generate(ctx context.Context, spec KeySpec) (Key, error)
	// Import puts an existing private key (*rsa.PrivateKey, *ecdsa.PrivateKey or
	// ed25519.PrivateKey) into the token, sensitive and not extractable from then
	// on. spec.Algorithm must fit the key. Errors: as Generate.
	Import(ctx context.Context, spec KeySpec, private crypto.PrivateKey) (Key, error)
	// Destroy removes the key and its public half for good. Errors: ErrNoKey, ErrLoginRequired.
	Destroy(ctx context.Context, id []byte) error
	// ChangePIN sets a new user PIN; a login made with the old one stays good.
	// Errors: ErrPINIncorrect (old), ErrPINInvalid (new), ErrPINLocked.
	ChangePIN(ctx context.Context, old, new []byte) error
	// Close logs out and gives everything back. Keys of this token fail from then on.
	Close() error
}

// Key is one private key inside a token.
type Key interface {
	// ID is the key's identifier on its token (CKA_ID).
	ID() []byte
	// Algorithm is what the key is for.
	Algorithm() Algorithm
	// Public returns *rsa.PublicKey, *ecdsa.PublicKey or ed25519.PublicKey.
	Public() crypto.PublicKey
	// Sign signs digest as crypto.Signer does: PKCS#1 v1.5 for RSA with a plain
	// hash, PSS for RSA with *rsa.PSSOptions (salt length = hash length, RFC 8017
	// section 9.1), DER SEQUENCE{r,s} for ECDSA. For Ed25519, digest is the whole
	// message and opts.HashFunc() is zero. ECDSA truncates long digests (FIPS 186-5,
	// section 6.4). Errors: ErrLoginRequired, ErrTokenAbsent, ErrBusy, ErrUnsupported.
	Sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error)
}
