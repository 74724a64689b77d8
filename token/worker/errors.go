package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

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
	{"broken", token.ErrBroken},
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
	{"pin_memory", token.ErrPINMemory},
	{"deadline", context.DeadlineExceeded},
	{"canceled", context.Canceled},
}

// told is an error on the link.
type told struct {
	Text string   `json:"text"`
	Is   []string `json:"is,omitempty"` // names of what errors.Is finds in it
}

// maxErrorText bounds what one side repeats of the other's text, in bytes.
const maxErrorText = 4 << 10

func encodeError(err error) []byte {
	text := err.Error()
	t := told{Text: text[:min(len(text), maxErrorText)]}
	for _, known := range named {
		if errors.Is(err, known.err) {
			t.Is = append(t.Is, known.name)
		}
	}
	encoded, _ := json.Marshal(t) // strings always can be
	return encoded
}

// parseError returns the error that a body stands for, or errFrame.
func parseError(body []byte) (failure, err error) {
	var t told
	if err := json.Unmarshal(body, &t); err != nil {
		return nil, fmt.Errorf("%w: %w", errFrame, err)
	}
	far := &farError{text: t.Text[:min(len(t.Text), maxErrorText)]}
	for _, known := range named {
		if slices.Contains(t.Is, known.name) {
			far.is = append(far.is, known.err)
		}
	}
	return far, nil
}

// farError happened at the other end.
type farError struct {
	text string
	is   []error
}

func (e *farError) Error() string   { return e.text }
func (e *farError) Unwrap() []error { return e.is }
