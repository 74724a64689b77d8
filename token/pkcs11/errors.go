package pkcs11

import (
	"errors"
	"fmt"

	p11 "github.com/miekg/pkcs11"

	"chancery/token"
)

// reaction is what this driver does next about an error.
type reaction int

const (
	// giveUp answers the caller: the request is at fault, or nothing here helps.
	giveUp reaction = iota
	// repeat tries again; the session is as good as before.
	repeat
	// replace drops the session and what was found through it, and tries on another one.
	replace
	// lookUp searches for the key anew and tries with the handle found.
	lookUp
	// logIn answers token.ErrLoginRequired, since the PIN is the caller's to send. A login that the module
	// still claims to have is not believed any more.
	logIn
	// leave drops the session and answers token.ErrTokenAbsent at once: waiting is the caller's to do.
	leave
	// restart answers token.ErrBroken at once.
	restart
)

// response is a row of responses.
type response struct {
	section  string // of the PKCS#11 v2.40 base specification, which says what the code means
	next     reaction
	means    error // to callers
	outlasts error // to callers, when it came at each of maxAttempts; nil: means
}

// responses says what happens next after each return value of a module. A code that is not here is answered as it is.
var responses = map[p11.Error]response{
	p11.CKR_GENERAL_ERROR:   {"5.1.1", replace, token.ErrTokenAbsent, token.ErrBroken},
	p11.CKR_HOST_MEMORY:     {"5.1.1", repeat, token.ErrBusy, token.ErrBroken},
	p11.CKR_FUNCTION_FAILED: {"5.1.1", repeat, token.ErrTokenAbsent, token.ErrBroken},

	p11.CKR_SESSION_HANDLE_INVALID: {"5.1.2", replace, token.ErrTokenAbsent, token.ErrBroken},
	p11.CKR_SESSION_CLOSED:         {"5.1.2", replace, token.ErrTokenAbsent, token.ErrBroken},
	p11.CKR_DEVICE_REMOVED:         {"5.1.2", leave, token.ErrTokenAbsent, nil},

	p11.CKR_DEVICE_ERROR:      {"5.1.3", replace, token.ErrTokenAbsent, token.ErrBroken},
	p11.CKR_DEVICE_MEMORY:     {"5.1.3", repeat, token.ErrBusy, nil},
	p11.CKR_TOKEN_NOT_PRESENT: {"5.1.3", leave, token.ErrTokenAbsent, nil},

	p11.CKR_CRYPTOKI_NOT_INITIALIZED:  {"5.1.6", restart, token.ErrBroken, nil},
	p11.CKR_TOKEN_NOT_RECOGNIZED:      {"5.1.6", leave, token.ErrTokenAbsent, nil},
	p11.CKR_SLOT_ID_INVALID:           {"5.1.6", leave, token.ErrTokenAbsent, nil},
	p11.CKR_SESSION_COUNT:             {"5.6, C_OpenSession", giveUp, token.ErrBusy, nil},
	p11.CKR_OPERATION_ACTIVE:          {"5.1.6", replace, token.ErrTokenAbsent, token.ErrBroken},
	p11.CKR_OPERATION_NOT_INITIALIZED: {"5.11, C_Sign", replace, token.ErrTokenAbsent, token.ErrBroken},

	p11.CKR_USER_NOT_LOGGED_IN:       {"5.1.6", logIn, token.ErrLoginRequired, nil},
	p11.CKR_PIN_INCORRECT:            {"5.6, C_Login", giveUp, token.ErrPINIncorrect, nil},
	p11.CKR_PIN_LOCKED:               {"5.6, C_Login", giveUp, token.ErrPINLocked, nil},
	p11.CKR_PIN_EXPIRED:              {"5.6, C_Login", giveUp, token.ErrPINLocked, nil}, // nothing but a new one helps
	p11.CKR_USER_PIN_NOT_INITIALIZED: {"5.6, C_Login", giveUp, token.ErrPINLocked, nil}, // nothing but the security officer helps
	p11.CKR_PIN_LEN_RANGE:            {"5.5, C_SetPIN", giveUp, token.ErrPINInvalid, nil},
	p11.CKR_PIN_INVALID:              {"5.5, C_SetPIN", giveUp, token.ErrPINInvalid, nil},

	// A key that is gone is missed by the search; a handle that was just found is not invalid in a sane module.
	p11.CKR_KEY_HANDLE_INVALID:    {"5.11, C_SignInit", lookUp, token.ErrNoKey, token.ErrBroken},
	p11.CKR_OBJECT_HANDLE_INVALID: {"5.1.6", lookUp, token.ErrNoKey, token.ErrBroken},

	p11.CKR_MECHANISM_INVALID:          {"5.1.6", giveUp, token.ErrUnsupported, nil},
	p11.CKR_MECHANISM_PARAM_INVALID:    {"5.1.6", giveUp, token.ErrUnsupported, nil},
	p11.CKR_FUNCTION_NOT_SUPPORTED:     {"5.1.6", giveUp, token.ErrUnsupported, nil},
	p11.CKR_KEY_SIZE_RANGE:             {"5.1.6", giveUp, token.ErrUnsupported, nil},
	p11.CKR_KEY_TYPE_INCONSISTENT:      {"5.1.6", giveUp, token.ErrUnsupported, nil},
	p11.CKR_KEY_FUNCTION_NOT_PERMITTED: {"5.1.6", giveUp, token.ErrUnsupported, nil},
	p11.CKR_DOMAIN_PARAMS_INVALID:      {"5.1.6", giveUp, token.ErrUnsupported, nil},
	p11.CKR_TOKEN_WRITE_PROTECTED:      {"5.1.6", giveUp, token.ErrUnsupported, nil},
	p11.CKR_ATTRIBUTE_TYPE_INVALID:     {"5.1.6", giveUp, token.ErrUnsupported, nil},
	p11.CKR_TEMPLATE_INCONSISTENT:      {"5.1.6", giveUp, token.ErrUnsupported, nil},
	p11.CKR_CURVE_NOT_SUPPORTED:        {"5.1.6", giveUp, token.ErrUnsupported, nil},
}

// maxAttempts bounds how often something that changes nothing on the token is tried. Two suffice unless sessions die
// again, or somebody logs in, in between.
const maxAttempts = 3

// errStale says that a handle is older than the login or the sessions. Callers
// see it only when those change faster than handles can be looked up.
var errStale = fmt.Errorf("%w: the key's handle is stale", token.ErrBusy)

// reactionTo finds what is to be done next about an error.
func reactionTo(err error) reaction {
	if errors.Is(err, errStale) {
		return lookUp
	}
	code, _ := codeOf(err)
	return responses[code].next
}

// triesAgain tells whether a reaction ends in another try, for what may be done twice.
func (r reaction) triesAgain() bool { return r == repeat || r == replace || r == lookUp }

// endsSession tells whether the session that met this error is of no more use.
func endsSession(err error) bool {
	next := reactionTo(err)
	return next == replace || next == leave || next == restart
}

// persistently does what changes nothing on the token until it succeeds, its error rules another try out, or
// maxAttempts are over.
func persistently(try func() error) error {
	for range maxAttempts - 1 {
		err := try()
		if !reactionTo(err).triesAgain() {
			return err
		}
	}
	return outlasting(try())
}

// outlasting says what an error means that came at each attempt.
func outlasting(err error) error {
	if errors.Is(err, errStale) || !reactionTo(err).triesAgain() {
		return err
	}
	code, _ := codeOf(err)
	if meaning := responses[code].outlasts; meaning != nil {
		return fmt.Errorf("%w: %w", meaning, err)
	}
	return err
}

// explained joins an error that came from the module with what it means to
// callers. Errors that have a meaning already, and codes without one, pass.
func explained(err error) error {
	code, ok := codeOf(err)
	if !ok || errors.Is(err, token.ErrBroken) {
		return err
	}
	if meaning := responses[code].means; meaning != nil && !errors.Is(err, meaning) {
		return fmt.Errorf("%w: %w", meaning, err)
	}
	return err
}

// codeOf finds the module's return value in an error.
func codeOf(err error) (p11.Error, bool) {
	var code p11.Error
	ok := errors.As(err, &code)
	return code, ok
}

// hasCode tells whether err carries one of the codes.
func hasCode(err error, codes ...p11.Error) bool {
	found, ok := codeOf(err)
	if !ok {
		return false
	}
	for _, code := range codes {
		if found == code {
			return true
		}
	}
	return false
}
