// Package users keeps who may sign with what: users, tokens, keys, grants and
// certificates. A Store holds them; a Snapshot is the whole of it in memory, so
// that the signing path asks no database.
//
// # Where a PIN is
//
// Nowhere but inside grants. A Grant holds the token's PIN wrapped to the user's
// access key (package access), bound to token, key, user, role and expiry.
//
// # Changing a PIN
//
// A token and a database cannot change in one transaction. So every grant of the token
// first receives a second, staged wrap of the new PIN (StagePIN), then the token
// itself changes, then the staged wraps replace the old ones (CommitPIN). Killed anywhere
// between, either wrap may be the right one: whoever logs in next tries Wrapped, and
// if the token rejects it, Staged, which proves that the token has changed and is followed by CommitPIN:
// function Login does that for everybody. The opposite proves nothing: where Wrapped
// is still right, another process may be about to change the token. So only the change itself
// goes back (AbandonPIN), when the token has refused the new PIN; an interrupted one is completed.
// Grants made meanwhile carry both wraps. Sessions unlocked earlier stay unlocked, since the Generation of a grant does
// not move with the PIN, until the next unlock has the daemon prove the new PIN by another login.
package users

import (
	"errors"
	"time"

	"chancery/access"
	"chancery/token"
)

// Errors of this package. Compare with errors.Is.
var (
	// ErrNotFound says that no such user, token, key, grant or certificate exists.
	ErrNotFound = errors.New("users: not found")
	// ErrExists says that the name is taken, or that the user holds this grant already.
	ErrExists = errors.New("users: exists already")
	// ErrInUse says that something else still depends on what should go.
	ErrInUse = errors.New("users: still in use")
	// ErrName says that a name has characters or a length that is not accepted.
	ErrName = errors.New("users: name not acceptable")
	// ErrPINChangeInFlight says that a PIN change of this token was begun and not yet settled.
	ErrPINChangeInFlight = errors.New("users: a PIN change of this token is in flight")
	// ErrStale says that what the caller had read has changed since. Reading it again and trying once more helps.
	ErrStale = errors.New("users: changed meanwhile")
	// ErrPINRejected is token.ErrPINRejected.
	ErrPINRejected = token.ErrPINRejected
	// ErrUnreadable says that a row of the database cannot have been written by Chancery.
	ErrUnreadable = errors.New("users: a row of the database cannot be read")
	// ErrFinalTry is token.ErrFinalTry.
	ErrFinalTry = token.ErrFinalTry
)

// Role says what a grant allows.
type Role string

// The roles. A token manager may create, adopt and import keys on a token and change
// its PIN; a manager may sign with one key and grant it; a signer may sign.
const (
	RoleTokenManager Role = "token-manager"
	RoleManager      Role = "manager"
	RoleSigner       Role = "signer"
)

// User is somebody with a client certificate whose Common Name is Name.
type User struct {
	ID        int64
	Name      string
	Disabled  bool
	CreatedAt time.Time
}

// Token says where a token is and how to open it.
type Token struct {
	ID          int64
	Name        string
	Driver      string // "pkcs11" or "soft"
	Location    string // pkcs11: the module's path; soft: the directory
	Serial      string // what the token calls itself; grants are bound to it
	Label       string
	Hardware    bool
	MaxSessions int   // 0: the driver's default
	Reload      int64 // counts `token reload` and `token unblock`; the daemon reopens the token when it grows
	PINVersion  int64 // moves whenever the PIN changes, or a change of it begins or is given up; never repeats
	PINStaged   bool  // a PIN change is in flight
	CreatedAt   time.Time
	Replicas    []Replica // by ascending ID

	PINRejected    bool // the token rejected what Wrapped holds
	StagedRejected bool // the token rejected what Staged holds
}

// Origin says how a key came under Chancery's care.
type Origin string

// The origins. Only a generated key was never outside its token.
const (
	OriginGenerated Origin = "generated"
	OriginAdopted   Origin = "adopted"
	OriginImported  Origin = "imported"
)

// Key is one registered signing key.
type Key struct {
	ID           int64
	Name         string
	TokenID      int64
	TokenKeyID   []byte // the identifier on the token (CKA_ID)
	Algorithm    token.Algorithm
	Public       []byte // DER SubjectPublicKeyInfo
	Handle       string // upper-case hex SHA-256 of Public
	Origin       Origin
	Disabled     bool
	CreatedAt    time.Time
	Attestation  string        // what the token said of it when it was registered, a token.Attestation as JSON; empty: nothing
	Certificates []Certificate // X.509 first, then OpenPGP, each by ascending ID
}

// CertificateKind is the format of a certificate.
type CertificateKind string

// The kinds.
const (
	CertificateX509    CertificateKind = "x509"
	CertificateOpenPGP CertificateKind = "openpgp"
)

// Certificate is a public certificate over a key.
type Certificate struct {
	ID          int64
	KeyID       int64
	Kind        CertificateKind
	Name        string
	Fingerprint string // upper-case hex: SHA-256 of the DER, or the OpenPGP fingerprint
	Armored     string // PEM or ASCII armour
	CreatedAt   time.Time
}

// Grant lets one user use one key (or manage one token) and holds the PIN wrapped for them.
type Grant struct {
	ID         int64
	UserID     int64
	TokenID    int64
	KeyID      int64 // 0 exactly for RoleTokenManager
	Role       Role
	Expires    time.Time // zero: never
	Generation int64     // grows with every change but the PIN's; what a live session unlocked under another one is void
	PINVersion int64     // the token's when Wrapped and Staged were made
	Access     access.PublicKey
	Wrapped    []byte
	Staged     []byte // nil unless a PIN change is in flight
	CreatedAt  time.Time
	CreatedBy  string // a user's name, or "operator"

	Lease     time.Duration // how long an unlock lasts, in whole seconds; 0: as long as the server lets it
	LeaseUses int           // signatures that an unlock is good for; 0: any number
	Priority  int           // 0 to MaxPriority: how soon requests get their turn at the token, beside the others'
}

// MaxPriority is the highest priority of a Grant; its requests weigh 128 times those of priority 0.
const MaxPriority = 7

// UnlockFailures are the wrong passphrases that a user gave for a key since the last right one.
type UnlockFailures struct {
	UserID, KeyID int64
	Count         int
	Last          time.Time
}

// Expired tells whether the grant has run out at the given time.
func (g *Grant) Expired(now time.Time) bool {
	return !g.Expires.IsZero() && !now.Before(g.Expires)
}
