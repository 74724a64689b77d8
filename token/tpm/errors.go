package tpm

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"chancery/token"
)

// stale lists what a TPM says of a handle that it does not know (part 2, section 6.6.3).
var stale = []tpm2.TPMRC{
	tpm2.TPMRCReferenceH0, tpm2.TPMRCReferenceH1, tpm2.TPMRCReferenceH2,
	tpm2.TPMRCReferenceS0, tpm2.TPMRCReferenceS1, tpm2.TPMRCReferenceS2,
	tpm2.TPMRCHandle,
}

// isStale tells whether the TPM forgot what this connection had loaded.
func isStale(err error) bool {
	return slices.ContainsFunc(stale, func(code tpm2.TPMRC) bool { return errors.Is(err, code) })
}

// isRejected tells whether the TPM did not take an authorisation: one that counts against the lockout, or one that does not.
func isRejected(err error) bool {
	return errors.Is(err, tpm2.TPMRCAuthFail) || errors.Is(err, tpm2.TPMRCBadAuth)
}

// meanings says what a response code is to the callers of a token (part 2, sections 6.6.2 and 6.6.3).
var meanings = []struct {
	code    tpm2.TPMRC
	meaning error
}{
	{tpm2.TPMRCLockout, token.ErrPINLocked},
	{tpm2.TPMRCAuthFail, token.ErrPINIncorrect},
	{tpm2.TPMRCBadAuth, token.ErrPINIncorrect},
	{tpm2.TPMRCMemory, token.ErrBusy},
	{tpm2.TPMRCObjectMemory, token.ErrBusy},
	{tpm2.TPMRCSessionMemory, token.ErrBusy},
	{tpm2.TPMRCObjectHandles, token.ErrBusy},
	{tpm2.TPMRCSessionHandles, token.ErrBusy},
	{tpm2.TPMRCRetry, token.ErrBusy},
	{tpm2.TPMRCYielded, token.ErrBusy},
	{tpm2.TPMRCTesting, token.ErrBusy},
	{tpm2.TPMRCNVRate, token.ErrBusy},
	{tpm2.TPMRCInitialize, token.ErrTokenAbsent},
	{tpm2.TPMRCFailure, token.ErrTokenAbsent},
}

// ours are the errors that say all there is to say.
var ours = []error{
	token.ErrNoKey, token.ErrKeyExists, token.ErrPINIncorrect, token.ErrPINLocked, token.ErrPINInvalid,
	token.ErrLoginRequired, token.ErrTokenAbsent, token.ErrUnsupported, token.ErrBusy, token.ErrClosed, token.ErrMismatch,
	context.Canceled, context.DeadlineExceeded, errFile, errSpec,
}

// errFile marks failures of the token's directory, which are none of the TPM's.
var errFile = errors.New("the token's directory")

// errSpec marks what a caller asked wrongly.
var errSpec = errors.New("no such key can be made")

func isOurs(err error) bool {
	return slices.ContainsFunc(ours, func(known error) bool { return errors.Is(err, known) })
}

// translate gives what go-tpm says the meaning that callers of a token know.
func translate(err error) error {
	var code tpm2.TPMRC
	switch {
	case err == nil || isOurs(err):
		return err
	case isStale(err):
		return fmt.Errorf("the TPM lost what was loaded: %w: %w", token.ErrBusy, err)
	}
	for _, m := range meanings {
		if errors.Is(err, m.code) {
			return fmt.Errorf("%w: %w", m.meaning, err)
		}
	}
	if errors.As(err, &code) {
		return err
	}
	return fmt.Errorf("the TPM's answer cannot be trusted: %w: %w", token.ErrTokenAbsent, err)
}
