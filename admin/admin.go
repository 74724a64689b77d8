// Package admin does what operators do that needs a PIN or touches a token:
// registering tokens, making keys, granting and revoking, changing passphrases and PINs.
// What only reads or changes the store (adding and disabling users, listing) goes to users.Store directly.
//
// # Who acts
//
// An Actor proves themself by their passphrase, which has to open the grant
// that the act needs: a token manager's for what concerns a token, a manager's for granting
// that manager's key. The passphrase is tried on the stored grant only, so that a wrong one never reaches the token.
//
// # Secrets
//
// PINs are unwrapped for the length of one act and overwritten. Passphrases and PINs that
// callers pass in stay theirs: call Clear, or clear, when no further act needs them.
//
// # Errors
//
// Beside those below, the errors of packages access, users and token pass through
// wrapped: access.ErrWrongPassphrase, users.ErrNotFound, users.ErrExists, users.ErrPINRejected, users.ErrFinalTry,
// token.ErrPINIncorrect, token.ErrPINLocked, token.ErrTokenAbsent, token.ErrUnsupported and so on.
// The text says what to do.
package admin

import (
	"context"
	"errors"
	"fmt"
	"time"

	"chancery/access"
	"chancery/token"
	"chancery/users"
)

// Errors of this package. Compare with errors.Is.
var (
	// ErrNotManager says that the actor holds no grant that allows this act.
	ErrNotManager = errors.New("admin: not allowed")
	// ErrExpired says that a grant has run out.
	ErrExpired = errors.New("admin: expired")
	// ErrKeyDisabled says that the key concerned is disabled.
	ErrKeyDisabled = errors.New("admin: disabled key")
	// ErrUserDisabled says that the user concerned, who acts or is granted something, is disabled.
	ErrUserDisabled = errors.New("admin: disabled user")
	// ErrLastManager says that nobody would be left to grant the key or to manage the token.
	ErrLastManager = errors.New("admin: the last manager")
	// ErrRequest says that the request contradicts itself or lacks something. A retry needs another request.
	ErrRequest = errors.New("admin: not a valid request")
)

// CreatedByOperator stands in Grant.CreatedBy where no user's passphrase was needed.
const CreatedByOperator = "operator"

// DefaultFinish is Office.Finish where that is zero.
const DefaultFinish = time.Minute

// Office performs the acts. Its methods may be called from several goroutines
// and in several processes at once.
type Office struct {
	Store users.Store
	// Open opens a token without login. Driver, Location and MaxSessions are always set as
	// registered; Serial and Label select among several tokens of a module, whichever is set. The
	// office closes the token after each act.
	Open func(ctx context.Context, t users.Token) (token.Token, error)
	// MinPassphrase is the shortest new passphrase in characters; 0: access.DefaultMinPassphrase.
	MinPassphrase int
	// Finish bounds what has to be completed even if the caller's context ends
	// meanwhile, such as the second half of a PIN change; 0: DefaultFinish.
	Finish time.Duration
	// Parameters makes the Argon2id parameters of new access keys; nil: access.NewParameters.
	Parameters func() access.Parameters
	// Now tells the time; nil: time.Now.
	Now func() time.Time

	derive deriver // nil: access.DeriveKey
}

// Actor is the user who acts, with the passphrase of the grant that the act needs.
type Actor struct {
	User       string
	Passphrase []byte
}

// Clear overwrites the passphrase.
func (a Actor) Clear() { clear(a.Passphrase) }

// Grantee is the user who receives a grant, and how they will open it: by a passphrase
// typed here, or by the access key in the enrolment that they sent. With neither,
// and User empty or the actor's own, it is the actor with the passphrase that they act with.
type Grantee struct {
	User       string
	Passphrase []byte
	Enrolment  *access.Enrolment
}

// Clear overwrites the passphrase.
func (g Grantee) Clear() { clear(g.Passphrase) }

// Target names a key or a token, exactly one of them.
type Target struct {
	Key   string
	Token string
}

// String names the target for people.
func (t Target) String() string {
	if t.Token != "" {
		return fmt.Sprintf("token %q", t.Token)
	}
	return fmt.Sprintf("key %q", t.Key)
}

func (t Target) check() error {
	if (t.Key == "") == (t.Token == "") {
		return fmt.Errorf("%w: name either a key or a token", ErrRequest)
	}
	return nil
}

func (o *Office) now() time.Time {
	if o.Now == nil {
		return time.Now()
	}
	return o.Now()
}

func (o *Office) minPassphrase() int {
	if o.MinPassphrase == 0 {
		return access.DefaultMinPassphrase
	}
	return o.MinPassphrase
}

func (o *Office) parameters() access.Parameters {
	if o.Parameters == nil {
		return access.NewParameters()
	}
	return o.Parameters()
}

// finishing detaches from the caller's cancellation: what follows has to be completed.
func (o *Office) finishing(ctx context.Context) (context.Context, context.CancelFunc) {
	limit := o.Finish
	if limit == 0 {
		limit = DefaultFinish
	}
	return context.WithTimeout(context.WithoutCancel(ctx), limit)
}

// maxAttempts bounds how often an act starts again because somebody else changed the same grants or PIN.
const maxAttempts = 5

// retrying runs act on a fresh snapshot until it doesn't fail with users.ErrStale.
func (o *Office) retrying(ctx context.Context, act func(*users.Snapshot) error) error {
	for attempt := 1; ; attempt++ {
		snapshot, err := o.Store.Snapshot(ctx)
		if err != nil {
			return err
		}
		err = act(snapshot)
		if attempt == maxAttempts || !errors.Is(err, users.ErrStale) {
			return err
		}
	}
}
