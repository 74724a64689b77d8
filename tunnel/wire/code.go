package wire

import (
	"fmt"
	"time"
)

// Code is the stable name of a failure. Codes are append-only: a name keeps its
// meaning for ever, and a client meets an unknown one with the message that came along.
type Code string

// The failures that a server reports under chancery/1.
const (
	CodeUnsupported       Code = "unsupported"
	CodeInternal          Code = "internal"
	CodeNoSuchKey         Code = "no_such_key"
	CodeWrongPassphrase   Code = "wrong_passphrase"
	CodeNotUnlocked       Code = "not_unlocked"
	CodeKeyDisabled       Code = "key_disabled"
	CodeGrantExpired      Code = "grant_expired"
	CodeUserDisabled      Code = "user_disabled"
	CodeDigestInvalid     Code = "digest_invalid"
	CodeAlgorithmMismatch Code = "algorithm_mismatch"
	CodeTokenAbsent       Code = "token_absent"
	CodeTokenLocked       Code = "token_locked"
	CodeTokenPINRejected  Code = "token_pin_rejected"
	CodeTokenBusy         Code = "token_busy"
	CodeKeyMismatch       Code = "key_mismatch"
	CodeBusy              Code = "busy"
	CodeShuttingDown      Code = "shutting_down"
	CodeAuditUnavailable  Code = "audit_unavailable"
	CodeBatchTooLarge     Code = "batch_too_large"

	CodeIdempotencyConflict Code = "idempotency_conflict"
	CodeDeadlineExceeded    Code = "deadline_exceeded"
	CodeTokenFinalTry       Code = "token_final_try"
	CodeSealClosed          Code = "seal_closed"
	CodeTokenUnavailable    Code = "token_unavailable"
)

// The failures that a plain version 2 server may name. Chancery's server never does.
const (
	CodeRequiresAdmin Code = "requires_admin"
	CodeNoSuchUser    Code = "no_such_user"
)

// Retry says what makes a repetition of the failed request worthwhile.
type Retry string

// The kinds of advice.
const (
	RetryNo        Retry = "no"        // the same request fails again until somebody changes something
	RetryLater     Retry = "later"     // the same request may succeed after a pause
	RetryUnlock    Retry = "unlock"    // unlock the key again on this connection, then repeat
	RetryReconnect Retry = "reconnect" // repeat on a new connection
)

// Exit codes of the command line client.
const (
	ExitDone        = 0
	ExitFailed      = 1
	ExitUsage       = 2
	ExitDenied      = 3
	ExitUnreachable = 4 // or busy
	ExitToken       = 5 // locked or absent
)

type advice struct {
	message    string
	retry      Retry
	retryAfter time.Duration
	exit       int
}

var codes = []struct {
	code Code
	advice
}{
	{CodeUnsupported, advice{"the server does not know this request; its version may be older than the client's; ask its operator for a newer one", RetryNo, 0, ExitFailed}},
	{CodeInternal, advice{"the server failed; its log says why, ask its operator", RetryNo, 0, ExitFailed}},
	{CodeNoSuchKey, advice{"no such key, or it is not granted to you; list yours, or ask a manager of the key for a grant", RetryNo, 0, ExitDenied}},
	{CodeWrongPassphrase, advice{"the passphrase does not open this key; check that it is the one for this key", RetryNo, 0, ExitDenied}},
	{CodeNotUnlocked, advice{"the key is not unlocked on this connection; unlock it with your passphrase first", RetryUnlock, 0, ExitDenied}},
	{CodeKeyDisabled, advice{"the key is disabled; ask its manager", RetryNo, 0, ExitDenied}},
	{CodeGrantExpired, advice{"your grant for this key has expired; ask a manager of the key for a new one", RetryNo, 0, ExitDenied}},
	{CodeUserDisabled, advice{"your user is disabled; ask the server's operator", RetryNo, 0, ExitDenied}},
	{CodeDigestInvalid, advice{"the digest is not hexadecimal or its length does not fit its hash function; send the whole digest of the hash function that you name", RetryNo, 0, ExitFailed}},
	{CodeAlgorithmMismatch, advice{"this key cannot sign that way; choose a hash and scheme that fit its algorithm", RetryNo, 0, ExitFailed}},
	{CodeTokenAbsent, advice{"the token that holds this key is absent; the server keeps looking for it, unlock again later", RetryLater, 5 * time.Second, ExitToken}},
	{CodeTokenLocked, advice{"the token refuses every PIN; its security officer must unlock it", RetryNo, 0, ExitToken}},
	{CodeTokenPINRejected, advice{"the token rejected the PIN kept in your grant, and it is not sent again; ask the server's operator to check the token and its PIN", RetryNo, 0, ExitToken}},
	{CodeTokenBusy, advice{"the token did not answer in time; try again", RetryLater, time.Second, ExitUnreachable}},
	{CodeKeyMismatch, advice{"the token's key is not the one that was registered, so it is refused; ask the server's operator", RetryNo, 0, ExitFailed}},
	{CodeBusy, advice{"the server is busy; try again", RetryLater, time.Second, ExitUnreachable}},
	{CodeShuttingDown, advice{"the server is shutting down; connect again", RetryReconnect, time.Second, ExitUnreachable}},
	{CodeRequiresAdmin, advice{"this needs an administrator of the server; ask its operator", RetryNo, 0, ExitDenied}},
	{CodeNoSuchUser, advice{"the server does not know this user; ask its operator", RetryNo, 0, ExitDenied}},
	{CodeAuditUnavailable, advice{"the server cannot write its audit log and does not sign without it; try again, and ask its operator if it stays so", RetryLater, 2 * time.Second, ExitUnreachable}},
	{CodeBatchTooLarge, advice{"your grant lets one unlock sign less than this request asks for; ask for fewer signatures at once", RetryNo, 0, ExitFailed}},
	{CodeIdempotencyConflict, advice{"the idempotency key was used for another request; give each request a key of its own", RetryNo, 0, ExitFailed}},
	{CodeDeadlineExceeded, advice{"the server could not sign within the time that the request allowed; try again, or allow more", RetryLater, time.Second, ExitUnreachable}},
	{CodeTokenFinalTry, advice{"one more wrong PIN would lock the token that holds this key, so none is sent; ask the server's operator to log in once with the right one by the token's own tool, then unlock again", RetryNo, 0, ExitToken}},
	{CodeSealClosed, advice{"the server cannot open the seal over its database; it keeps trying, and its operator has to bring back what opens it", RetryLater, 30 * time.Second, ExitToken}},
	{CodeTokenUnavailable, advice{"the token that holds this key has failed, and the server is opening it again; unlock again and repeat", RetryLater, 300 * time.Millisecond, ExitToken}},
}

// Codes returns every code in the order in which they were given out.
func Codes() []Code {
	all := make([]Code, len(codes))
	for i, entry := range codes {
		all[i] = entry.code
	}
	return all
}

func (c Code) advice() advice {
	for _, entry := range codes {
		if entry.code == c {
			return entry.advice
		}
	}
	return advice{message: fmt.Sprintf("the server answered %q", string(c)), retry: RetryNo, exit: ExitFailed}
}

// Message returns the default sentence, which says what to do.
func (c Code) Message() string { return c.advice().message }

// Retry returns the default advice on repeating the request.
func (c Code) Retry() Retry { return c.advice().retry }

// Exit returns the exit code of a command that ends with this failure.
func (c Code) Exit() int { return c.advice().exit }

// Error is a failure as it is answered. errors.Is compares codes, as in
// errors.Is(err, wire.NewError(wire.CodeBusy)).
type Error struct {
	Code       Code
	Message    string // one sentence for the user: what is wrong and what to do
	Retry      Retry
	RetryAfter time.Duration // a pause worth making before the retry, in whole milliseconds on the wire
}

// NewError returns the failure with its code's default sentence and advice.
func NewError(code Code) *Error {
	a := code.advice()
	return &Error{Code: code, Message: a.message, Retry: a.retry, RetryAfter: a.retryAfter}
}

// Errorf returns the failure with its code's default advice and its own sentence.
func Errorf(code Code, format string, args ...any) *Error {
	e := NewError(code)
	e.Message = fmt.Sprintf(format, args...)
	return e
}

// Error returns the sentence for the user.
func (e *Error) Error() string { return e.Message }

// Is reports whether target is an *Error with the same code.
func (e *Error) Is(target error) bool {
	other, ok := target.(*Error)
	return ok && other.Code == e.Code
}
