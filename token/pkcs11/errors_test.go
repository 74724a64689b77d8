package pkcs11

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	p11 "github.com/miekg/pkcs11"

	"chancery/token"
)

// TestResponses says of each error that a signature may meet what is tried, and what the caller hears when it stays.
func TestResponses(t *testing.T) {
	for code, want := range map[p11.Error]struct {
		next  reaction
		ends  bool // the session
		tries int
		says  error
	}{
		p11.CKR_GENERAL_ERROR:             {replace, true, maxAttempts, token.ErrBroken},
		p11.CKR_HOST_MEMORY:               {repeat, false, maxAttempts, token.ErrBroken},
		p11.CKR_FUNCTION_FAILED:           {repeat, false, maxAttempts, token.ErrBroken},
		p11.CKR_DEVICE_MEMORY:             {repeat, false, maxAttempts, token.ErrBusy},
		p11.CKR_DEVICE_ERROR:              {replace, true, maxAttempts, token.ErrBroken},
		p11.CKR_SESSION_HANDLE_INVALID:    {replace, true, maxAttempts, token.ErrBroken},
		p11.CKR_SESSION_CLOSED:            {replace, true, maxAttempts, token.ErrBroken},
		p11.CKR_OPERATION_ACTIVE:          {replace, true, maxAttempts, token.ErrBroken},
		p11.CKR_OPERATION_NOT_INITIALIZED: {replace, true, maxAttempts, token.ErrBroken},
		p11.CKR_KEY_HANDLE_INVALID:        {lookUp, false, maxAttempts, token.ErrBroken},
		p11.CKR_OBJECT_HANDLE_INVALID:     {lookUp, false, maxAttempts, token.ErrBroken},
		p11.CKR_CRYPTOKI_NOT_INITIALIZED:  {restart, true, 1, token.ErrBroken},
		p11.CKR_DEVICE_REMOVED:            {leave, true, 1, token.ErrTokenAbsent},
		p11.CKR_TOKEN_NOT_PRESENT:         {leave, true, 1, token.ErrTokenAbsent},
		p11.CKR_TOKEN_NOT_RECOGNIZED:      {leave, true, 1, token.ErrTokenAbsent},
		p11.CKR_SLOT_ID_INVALID:           {leave, true, 1, token.ErrTokenAbsent},
		p11.CKR_USER_NOT_LOGGED_IN:        {logIn, false, 1, token.ErrLoginRequired},
		p11.CKR_SESSION_COUNT:             {giveUp, false, 1, token.ErrBusy},
		p11.CKR_PIN_INCORRECT:             {giveUp, false, 1, token.ErrPINIncorrect},
		p11.CKR_PIN_LOCKED:                {giveUp, false, 1, token.ErrPINLocked},
		p11.CKR_PIN_EXPIRED:               {giveUp, false, 1, token.ErrPINLocked},
		p11.CKR_MECHANISM_INVALID:         {giveUp, false, 1, token.ErrUnsupported},
		p11.CKR_ARGUMENTS_BAD:             {giveUp, false, 1, p11.Error(p11.CKR_ARGUMENTS_BAD)}, // not in the table
	} {
		met := fmt.Errorf("wrapped: %w", code)
		if next := reactionTo(met); next != want.next || endsSession(met) != want.ends {
			t.Errorf("%v: reaction %d, ends session %t; want %d, %t", code, next, endsSession(met), want.next, want.ends)
		}
		tries := 0
		err := explained(persistently(func() error { tries++; return met }))
		if tries != want.tries || !errors.Is(err, want.says) || !errors.Is(err, code) {
			t.Errorf("%v: tried %d times, then %v; want %d and %v", code, tries, err, want.tries, want.says)
		}
		if errors.Is(err, token.ErrBroken) != (want.says == token.ErrBroken) {
			t.Errorf("%v: %v", code, err)
		}
	}
}

// TestResponsesAreWhole checks each row by itself.
func TestResponsesAreWhole(t *testing.T) {
	for code, row := range responses {
		if !strings.HasPrefix(row.section, "5.") || row.means == nil {
			t.Errorf("%v: no section or no meaning: %+v", code, row)
		}
		if row.outlasts != nil && !row.next.triesAgain() {
			t.Errorf("%v: nothing is tried again, and it says what is left after that", code)
		}
		for next, means := range map[reaction]error{logIn: token.ErrLoginRequired, leave: token.ErrTokenAbsent, restart: token.ErrBroken} {
			if row.next == next && row.means != means {
				t.Errorf("%v: reaction %d means %v, not %v", code, next, row.means, means)
			}
		}
	}
}

func TestPersistently(t *testing.T) {
	for name, c := range map[string]struct {
		answers []error
		want    error
	}{
		"at once":             {[]error{nil}, nil},
		"second try":          {[]error{p11.Error(p11.CKR_DEVICE_ERROR), nil}, nil},
		"third try":           {[]error{p11.Error(p11.CKR_DEVICE_ERROR), errStale, nil}, nil},
		"stale for ever":      {[]error{errStale, errStale, errStale}, token.ErrBusy},
		"absent in between":   {[]error{errStale, p11.Error(p11.CKR_TOKEN_NOT_PRESENT)}, p11.Error(p11.CKR_TOKEN_NOT_PRESENT)},
		"its own error":       {[]error{token.ErrClosed}, token.ErrClosed},
		"stale after a login": {[]error{fmt.Errorf("%w: %w", errStale, p11.Error(p11.CKR_USER_NOT_LOGGED_IN)), nil}, nil},
	} {
		tries := 0
		err := persistently(func() error { tries++; return c.answers[tries-1] })
		if !errors.Is(err, c.want) || tries != len(c.answers) {
			t.Errorf("%s: %v after %d tries, want %v", name, err, tries, c.want)
		}
	}
}
