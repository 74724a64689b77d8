package signer

import (
	"context"
	"errors"
	"fmt"

	"chancery/access"
	"chancery/signer/queue"
	"chancery/token"
	"chancery/token/worker"
	"chancery/tunnel/wire"
	"chancery/users"
)

// What requests fail with, beside the errors of packages token, users and
// access. The log shows them; toWire says what the peer learns.
var (
	errSessionEnded  = errors.New("the session ended before the answer")
	errShuttingDown  = errors.New("the server is shutting down")
	errSlowFrame     = errors.New("a frame did not arrive in time")
	errUnknownKey    = errors.New("no such key")
	errVersion2      = errors.New("the key's algorithm is unknown to version 2 of the protocol")
	errNotGranted    = errors.New("the key is not granted to the user")
	errUserGone      = errors.New("the user was disabled or deleted")
	errKeyDisabled   = errors.New("the key is disabled")
	errExpired       = errors.New("the grant has expired")
	errNotUnlocked   = errors.New("the key is not unlocked in this session")
	errAlgorithm     = errors.New("the key cannot sign that way")
	errLeaseEnded    = errors.New("the time of the unlock is over")
	errBatchTooLarge = errors.New("no unlock of the grant is good for so many signatures")
	errLeaseUsed     = errors.New("the signatures of the unlock are used up")
	errLockedLater   = errors.New("the grant changed or the token was reopened since the unlock")
	errOverloaded    = errors.New("too many unlocks are under way")
	errConflict      = errors.New("the idempotency key was used for another request")
	errDeadline      = errors.New("the request's own deadline has passed")
	errPanicked      = errors.New("the handler panicked")
	errMixedGroup    = errors.New("the key was unlocked anew between requests that arrived together")
	errUnaudited     = errors.New("the audit log cannot be written")
	errUnlockFailed  = errors.New("the unlock failed") // once the passphrase has been looked at
	errOpening       = errors.New("it is being opened")
)

// codeSessionEnded never leaves the server: nobody is there to read it. The audit log and an Observer tell by it that no answer was
// wanted any more, which is neither the server's fault nor a refusal.
const codeSessionEnded wire.Code = "session_ended"

// answers says which code the peer gets for which error, and which outcome the audit log
// where that is another; the first match counts.
var answers = []struct {
	err     error
	code    wire.Code
	outcome string
}{
	{errShuttingDown, wire.CodeShuttingDown, ""},
	{errSessionEnded, codeSessionEnded, ""},
	{errDeadline, wire.CodeDeadlineExceeded, ""},
	{errUnaudited, wire.CodeAuditUnavailable, ""},
	{users.ErrSealClosed, wire.CodeSealClosed, ""},
	{errConflict, wire.CodeIdempotencyConflict, ""},
	{errOverloaded, wire.CodeBusy, ""},
	{errUnknownKey, wire.CodeNoSuchKey, "unknown_key"},
	{errVersion2, wire.CodeNoSuchKey, "key_not_in_version_2"},
	{errNotGranted, wire.CodeNoSuchKey, "not_granted"},
	{errUserGone, wire.CodeUserDisabled, ""},
	{errKeyDisabled, wire.CodeKeyDisabled, ""},
	{errExpired, wire.CodeGrantExpired, ""},
	{errNotUnlocked, wire.CodeNotUnlocked, ""},
	{errGuessing, wire.CodeBusy, "too_many_failures"},
	{errSessions, wire.CodeBusy, "too_many_sessions"},
	{errRoom, wire.CodeBusy, "too_many_requests"},
	{errRate, wire.CodeBusy, "too_often"},
	{errLeaseEnded, wire.CodeNotUnlocked, "lease_ended"},
	{errLeaseUsed, wire.CodeNotUnlocked, "lease_used"},
	{errBatchTooLarge, wire.CodeBatchTooLarge, ""},
	{errLockedLater, wire.CodeNotUnlocked, "unlock_gone"},
	{errAlgorithm, wire.CodeAlgorithmMismatch, ""},
	{queue.ErrFull, wire.CodeBusy, "token_queue_full"},
	{worker.ErrCapability, wire.CodeNotUnlocked, "unlock_gone"},
	{worker.ErrCorrupt, wire.CodeTokenUnavailable, "corrupt_signature"},
	{worker.ErrGone, wire.CodeTokenUnavailable, ""},
	{token.ErrBroken, wire.CodeTokenUnavailable, "token_broken"},
	{errOpening, wire.CodeTokenUnavailable, "token_opening"},
	{access.ErrWrongPassphrase, wire.CodeWrongPassphrase, ""},
	{users.ErrPINRejected, wire.CodeTokenPINRejected, ""},
	{users.ErrFinalTry, wire.CodeTokenFinalTry, ""},
	{token.ErrPINIncorrect, wire.CodeTokenPINRejected, ""},
	{token.ErrPINLocked, wire.CodeTokenLocked, ""},
	{token.ErrPINMemory, wire.CodeTokenBusy, "pin_memory"},
	{token.ErrTokenAbsent, wire.CodeTokenAbsent, ""},
	{token.ErrLoginRequired, wire.CodeTokenUnavailable, "login_lost"},
	{token.ErrClosed, wire.CodeTokenUnavailable, "token_closed"},
	{token.ErrMismatch, wire.CodeKeyMismatch, ""},
	{token.ErrNoKey, wire.CodeKeyMismatch, "key_not_on_token"},
	{token.ErrUnsupported, wire.CodeAlgorithmMismatch, ""},
	{token.ErrBusy, wire.CodeTokenBusy, ""},
	{context.DeadlineExceeded, wire.CodeTokenBusy, "deadline"},
	{context.Canceled, wire.CodeInternal, "session_ended"},
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

// outcomeOf is what the audit log says of an error, and it says what the peer is not told.
func outcomeOf(err error) string {
	for _, answer := range answers {
		if errors.Is(err, answer.err) {
			if answer.outcome != "" {
				return answer.outcome
			}
			return string(answer.code)
		}
	}
	return string(toWire(err, "").Code)
}

// because adds the context's cause where err is only its end, so that a
// shut-down is not taken for a deadline, nor the peer's deadline for a slow token.
func because(ctx context.Context, err error) error {
	if err == nil || !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, token.ErrBusy) {
		return err
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		return fmt.Errorf("%w: %w", err, cause)
	}
	return err
}
