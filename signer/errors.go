package signer

import (
	"context"
	"errors"
	"fmt"

	"chancery/access"
	"chancery/token"
	"chancery/tunnel/wire"
	"chancery/users"
)

// What requests fail with, beside the errors of packages token, users and
// access. The log shows them; toWire says what the peer learns.
var (
	errShuttingDown = errors.New("the server is shutting down")
	errSlowFrame    = errors.New("a frame did not arrive in time")
	errUnknownKey   = errors.New("no such key")
	errVersion2     = errors.New("the key's algorithm is unknown to version 2 of the protocol")
	errNotGranted   = errors.New("the key is not granted to the user")
	errUserGone     = errors.New("the user was disabled or deleted")
	errKeyDisabled  = errors.New("the key is disabled")
	errExpired      = errors.New("the grant has expired")
	errNotUnlocked  = errors.New("the key is not unlocked in this session")
	errAlgorithm    = errors.New("the key cannot sign that way")
	errLockedLater  = errors.New("the grant changed or the token was reopened since the unlock")
	errOverloaded   = errors.New("too many unlocks are under way")
	errPanicked     = errors.New("the handler panicked")
)

// answers says which code the peer gets for which error; the first match counts.
var answers = []struct {
	err  error
	code wire.Code
}{
	{errShuttingDown, wire.CodeShuttingDown},
	{errOverloaded, wire.CodeBusy},
	{errUnknownKey, wire.CodeNoSuchKey},
	{errVersion2, wire.CodeNoSuchKey},
	{errNotGranted, wire.CodeNoSuchKey},
	{errUserGone, wire.CodeUserDisabled},
	{errKeyDisabled, wire.CodeKeyDisabled},
	{errExpired, wire.CodeGrantExpired},
	{errNotUnlocked, wire.CodeNotUnlocked},
	{errLockedLater, wire.CodeNotUnlocked},
	{errAlgorithm, wire.CodeAlgorithmMismatch},
	{access.ErrWrongPassphrase, wire.CodeWrongPassphrase},
	{users.ErrPINRejected, wire.CodeTokenPINRejected},
	{users.ErrFinalTry, wire.CodeTokenLocked},
	{token.ErrPINIncorrect, wire.CodeTokenPINRejected},
	{token.ErrPINLocked, wire.CodeTokenLocked},
	{token.ErrTokenAbsent, wire.CodeTokenAbsent},
	{token.ErrLoginRequired, wire.CodeNotUnlocked},
	{token.ErrClosed, wire.CodeNotUnlocked},
	{token.ErrMismatch, wire.CodeKeyMismatch},
	{token.ErrNoKey, wire.CodeKeyMismatch},
	{token.ErrUnsupported, wire.CodeAlgorithmMismatch},
	{token.ErrBusy, wire.CodeTokenBusy},
	{context.DeadlineExceeded, wire.CodeTokenBusy},
}

// toWire is the only place where an error becomes an answer. What it does not
// know is internal, and its text stays in the log.
func toWire(err error, key string) *wire.Error {
	var failure *wire.Error
	if errors.As(err, &failure) {
		return failure
	}
	for _, answer := range answers {
		if errors.Is(err, answer.err) {
			return wire.Errorf(answer.code, "key %q: %s", key, answer.code.Message())
		}
	}
	return wire.NewError(wire.CodeInternal)
}

// because returns the context's cause where err is only its end, so that a
// shut-down is not taken for a deadline.
func because(ctx context.Context, err error) error {
	if err == nil || !errors.Is(err, context.Canceled) {
		return err
	}
	if cause := context.Cause(ctx); cause != nil {
		return fmt.Errorf("%w: %w", err, cause)
	}
	return err
}
