package token

import "errors"

// Errors that say why a PIN was not sent to a token. Compare with errors.Is.
var (
	// ErrPINRejected says that the token rejected this PIN earlier, so that it is not sent again. A retry helps
	// only after an operator's `token unblock`.
	ErrPINRejected = errors.New("token: the token rejected this PIN earlier")
	// ErrFinalTry says that the token's next wrong PIN would lock it, so that none is sent. Somebody
	// has to log in with the right one by the token's own tool.
	ErrFinalTry = errors.New("token: the next wrong PIN locks the token")
	// ErrPINMemory says that what the token rejects could not be read or kept, so that no PIN is sent. An operator
	// has to see to the disk, or to the damaged file.
	ErrPINMemory = errors.New("token: no PIN is sent, for its rejection could not be remembered")
)
