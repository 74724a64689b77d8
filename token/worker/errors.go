package worker

import (
	"context"
	"encoding/json"
	"errors"

	"chancery/access"
	"chancery/token"
	"chancery/users"
)

// named are the errors that keep their identity across the link.
var named = []struct {
	name string
	err  error
}{
	{"capability", ErrCapability},
	{"corrupt", ErrCorrupt},
	{"gone", ErrGone},
	{"no_key", token.ErrNoKey},
	{"key_exists", token.ErrKeyExists},
	{"pin_incorrect", token.ErrPINIncorrect},
	{"pin_locked", token.ErrPINLocked},
	{"pin_invalid", token.ErrPINInvalid},
	{"login_required", token.ErrLoginRequired},
	{"absent", token.ErrTokenAbsent},
	{"unsupported", token.ErrUnsupported},
	{"busy", token.ErrBusy},
	{"closed", token.ErrClosed},
	{"mismatch", token.ErrMismatch},
	{"wrong_passphrase", access.ErrWrongPassphrase},
	{"parameters", access.ErrParameters},
	{"malformed", access.ErrMalformed},
	{"not_found", users.ErrNotFound},
	{"stale", users.ErrStale},
	{"pin_rejected", users.ErrPINRejected},
	{"final_try", users.ErrFinalTry},
	{"deadline", context.DeadlineExceeded},
	{"canceled", context.Canceled},
}

// told is an error on the link.
type told struct {
	Text string   `json:"text"`
	Is   []string `json:"is,omitempty"` // names of what errors.Is finds in it
}

func appendError(b []byte, err error) []byte {
	t := told{Text: err.Error()}
	for _, known := range named {
		if errors.Is(err, known.err) {
			t.Is = append(t.Is, known.name)
		}
	}
	text, _ := json.Marshal(t) // strings always can be
	return append(b, text...)
}

func parseError(body []byte) error {
	var t told
	if err := json.Unmarshal(body, &t); err != nil {
		return errFrame
	}
	far := &farError{text: t.Text}
	for _, name := range t.Is {
		for _, known := range named {
			if known.name == name {
				far.is = append(far.is, known.err)
			}
		}
	}
	return far
}

// farError happened at the other end.
type farError struct {
	text string
	is   []error
}

func (e *farError) Error() string   { return e.text }
func (e *farError) Unwrap() []error { return e.is }
