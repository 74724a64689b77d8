package pkcs11

import (
	"errors"
	"fmt"

	p11 "github.com/miekg/pkcs11"

	"chancery/token"
)

// meanings says what the module's return values mean to callers. Sections are
// those of the PKCS#11 v2.40 base specification.
var meanings = map[p11.Error]error{
	// 5.1.2, functions that use a session handle.
	p11.CKR_SESSION_HANDLE_INVALID: token.ErrTokenAbsent,
	p11.CKR_SESSION_CLOSED:         token.ErrTokenAbsent,
	// 5.1.3, functions that use a token.
	p11.CKR_DEVICE_ERROR:      token.ErrTokenAbsent, // something is wrong with the token or its slot
	p11.CKR_DEVICE_REMOVED:    token.ErrTokenAbsent,
	p11.CKR_TOKEN_NOT_PRESENT: token.ErrTokenAbsent,
	// 5.1.6, all other return values.
	p11.CKR_CRYPTOKI_NOT_INITIALIZED:   token.ErrTokenAbsent,
	p11.CKR_TOKEN_NOT_RECOGNIZED:       token.ErrTokenAbsent,
	p11.CKR_SLOT_ID_INVALID:            token.ErrTokenAbsent,
	p11.CKR_SESSION_COUNT:              token.ErrBusy,
	p11.CKR_USER_NOT_LOGGED_IN:         token.ErrLoginRequired,
	p11.CKR_PIN_INCORRECT:              token.ErrPINIncorrect,
	p11.CKR_PIN_LOCKED:                 token.ErrPINLocked,
	p11.CKR_USER_PIN_NOT_INITIALIZED:   token.ErrPINLocked, // nothing but the security officer helps
	p11.CKR_PIN_LEN_RANGE:              token.ErrPINInvalid,
	p11.CKR_PIN_INVALID:                token.ErrPINInvalid,
	p11.CKR_KEY_HANDLE_INVALID:         token.ErrNoKey,
	p11.CKR_OBJECT_HANDLE_INVALID:      token.ErrNoKey,
	p11.CKR_MECHANISM_INVALID:          token.ErrUnsupported,
	p11.CKR_MECHANISM_PARAM_INVALID:    token.ErrUnsupported,
	p11.CKR_FUNCTION_NOT_SUPPORTED:     token.ErrUnsupported,
	p11.CKR_KEY_SIZE_RANGE:             token.ErrUnsupported,
	p11.CKR_KEY_TYPE_INCONSISTENT:      token.ErrUnsupported,
	p11.CKR_KEY_FUNCTION_NOT_PERMITTED: token.ErrUnsupported,
	p11.CKR_DOMAIN_PARAMS_INVALID:      token.ErrUnsupported,
	p11.CKR_TOKEN_WRITE_PROTECTED:      token.ErrUnsupported,
	p11.CKR_ATTRIBUTE_TYPE_INVALID:     token.ErrUnsupported,
	p11.CKR_TEMPLATE_INCONSISTENT:      token.ErrUnsupported,
	p11.CKR_CURVE_NOT_SUPPORTED:        token.ErrUnsupported,
}

// explained joins an error that came from the module with what it means to
// callers. Errors that have a meaning already, and codes without one, pass.
func explained(err error) error {
	code, ok := codeOf(err)
	if !ok {
		return err
	}
	if meaning, ok := meanings[code]; ok && !errors.Is(err, meaning) {
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

// endsSession tells whether the session that met this error is of no more use:
// the token dropped it, or it is stuck in an operation that never ended.
func endsSession(err error) bool {
	return hasCode(err,
		p11.CKR_SESSION_HANDLE_INVALID, p11.CKR_SESSION_CLOSED, p11.CKR_OPERATION_ACTIVE,
		p11.CKR_DEVICE_ERROR, p11.CKR_DEVICE_REMOVED, p11.CKR_TOKEN_NOT_PRESENT,
		p11.CKR_CRYPTOKI_NOT_INITIALIZED)
}

// errStale says that a handle is older than the login or the sessions. Callers
// see it only when those change faster than handles can be looked up.
var errStale = fmt.Errorf("%w: the key's handle is stale", token.ErrBusy)

// worthRepeating tells whether the operation did not happen and may succeed on
// another session with a handle looked up anew.
func worthRepeating(err error) bool {
	return errors.Is(err, errStale) || hasCode(err,
		p11.CKR_SESSION_HANDLE_INVALID, p11.CKR_SESSION_CLOSED, p11.CKR_OPERATION_ACTIVE,
		p11.CKR_KEY_HANDLE_INVALID, p11.CKR_OBJECT_HANDLE_INVALID)
}
