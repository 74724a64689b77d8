package users

import (
	"context"
	"time"
)

// Store keeps users, tokens, keys and grants durably. Every method that changes something is
// one transaction, durable when it returns, and moves Revision. Methods are
// safe for use by several goroutines and by several processes at once.
//
// Names are looked up exactly. Errors: ErrNotFound, ErrExists, ErrInUse, ErrName, ErrStale and
// ErrPINChangeInFlight, wrapped with the name concerned; anything else is the database's own trouble.
//
// A wrapped PIN is computed from an earlier Snapshot. So that a PIN change in between cannot leave
// a wrap of the old PIN behind, each grant carries the PINVersion that it was computed under:
// methods that take a grant refuse another one than the token's with ErrStale, and so they do
// when Staged is not there exactly while a PIN change is in flight.
type Store interface {
	// Snapshot reads everything in one consistent read. A row that cannot be understood is left out, with all that
	// depends on it, and listed by Snapshot.Unreadable: it must not keep others' changes, such as a
	// revocation, from being seen. An error means that nothing could be read.
	Snapshot(ctx context.Context) (*Snapshot, error)
	// Revision is a number that every change of any process moves. It is cheap: a daemon polls it.
	Revision(ctx context.Context) (int64, error)

	AddUser(ctx context.Context, name string) (User, error)
	SetUserDisabled(ctx context.Context, name string, disabled bool) error
	// DeleteUser removes the user with all their grants. ErrStale where the store is no longer at the revision; 0 stands for any.
	DeleteUser(ctx context.Context, name string, revision int64) error

	// AddToken registers a token together with its first token manager's grant:
	// a token without one would be of no use to anybody.
	AddToken(ctx context.Context, t Token, manager Grant) (Token, error)
	// RequestReload grows the token's Reload counter. What the token rejected stays rejected.
	RequestReload(ctx context.Context, name string) error
	// Unblock forgets that the token rejected a PIN, and grows its Reload counter: an operator says that the
	// PIN is right, or the token in order again.
	Unblock(ctx context.Context, name string) error
	// RemoveToken forgets a token with its replicas and its token managers' grants; ErrInUse while keys are registered on it.
	RemoveToken(ctx context.Context, name string) error

	// AddReplica registers a further token that holds the keys of the one with r.TokenID. ErrExists when a token or replica has
	// its name or serial number already; ErrStale when version is not that token's PINVersion, under which the replica was found
	// to have the same PIN; ErrPINChangeInFlight.
	AddReplica(ctx context.Context, r Replica, version int64) (Replica, error)
	// RemoveReplica forgets a replica, by its name.
	RemoveReplica(ctx context.Context, name string) error

	// AddKey registers a key together with its certificates and its first manager's grant.
	AddKey(ctx context.Context, k Key, manager Grant) (Key, error)
	SetKeyDisabled(ctx context.Context, name string, disabled bool) error
	// DeleteKey forgets a key with its certificates and grants; the token's object is not touched.
	DeleteKey(ctx context.Context, name string) error
	AddCertificate(ctx context.Context, c Certificate) (Certificate, error)

	// AddGrant stores a grant. ErrExists when the user holds one on the same key (or token) already.
	AddGrant(ctx context.Context, g Grant) (Grant, error)
	// ReplaceGrant changes access key, wraps, role, expiry, lease and priority of the grant with g.ID and grows its
	// Generation. ErrStale when the grant's Generation is no longer g.Generation.
	ReplaceGrant(ctx context.Context, g Grant) (Grant, error)
	// RevokeGrant removes a grant. ErrStale where the store is no longer at the revision; 0 stands for any.
	RevokeGrant(ctx context.Context, id, revision int64) error

	// StagePIN stores the new PIN's wraps beside the current ones and returns the PINVersion of
	// the change now in flight. It takes all grants of the token as the caller read them, with
	// Staged filled in. ErrPINChangeInFlight when one is in flight already; ErrStale
	// when a grant came, went or changed since.
	StagePIN(ctx context.Context, tokenID int64, grants []Grant) (version int64, err error)
	// CommitPIN makes the staged wraps the current ones: the token has the new PIN. The version
	// is that of the change in flight; ErrStale when it is not, because somebody else settled it.
	CommitPIN(ctx context.Context, tokenID, version int64) error
	// AbandonPIN drops the staged wraps: the token still has the old PIN. ErrStale as with CommitPIN.
	AbandonPIN(ctx context.Context, tokenID, version int64) error
	// RejectPIN remembers that the token rejected its current PIN, or the staged one, of that
	// version, so that no process sends it again. A change that was begun or given up since then leaves the
	// current PIN as it was. ErrStale when it is another one by now, or that change is not in flight any more.
	RejectPIN(ctx context.Context, tokenID, version int64, staged bool) error

	// AddUnlockFailure counts a wrong passphrase of a user for a key, so that guessing stays slow
	// across restarts. ErrNotFound when there is no such user or key. This and ClearUnlockFailures, for which there may be nothing
	// to forget, change nothing in a Snapshot and do not move Revision.
	AddUnlockFailure(ctx context.Context, userID, keyID int64, at time.Time) error
	ClearUnlockFailures(ctx context.Context, userID, keyID int64) error
	// UnlockFailures returns all that is remembered, by ascending user and key.
	UnlockFailures(ctx context.Context) ([]UnlockFailures, error)

	Close() error
}
