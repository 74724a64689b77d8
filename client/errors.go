package client

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"chancery/tunnel"
	"chancery/tunnel/wire"
)

// The codes of failures that the client finds out by itself, beside those of
// package wire that a server answers. They are append-only, too.
const (
	CodeInterrupted    wire.Code = "interrupted"
	CodeCanceled       wire.Code = "canceled"
	CodeTimeout        wire.Code = "timeout"
	CodeClosed         wire.Code = "closed"
	CodeConnectionLost wire.Code = "connection_lost"
	CodeBadReply       wire.Code = "bad_reply"
	CodeBadSignature   wire.Code = "bad_signature"
	CodeHandleMismatch wire.Code = "handle_mismatch"
	CodeTooLarge       wire.Code = "too_large"
	CodeSettings       wire.Code = "config_invalid"
)

// The codes of failures to connect, one for each tunnel.Kind.
const (
	CodeBridgeUnreachable wire.Code = "bridge_unreachable"
	CodeBridgeUntrusted   wire.Code = "bridge_untrusted"
	CodeBridgeName        wire.Code = "bridge_name"
	CodeBridgeExpired     wire.Code = "bridge_expired"
	CodeBridgeProtocol    wire.Code = "bridge_protocol"
	CodeBridgeRefused     wire.Code = "bridge_refused"
	CodeBridgeRejected    wire.Code = "bridge_rejected"
	CodeNoServer          wire.Code = "no_server"
	CodeServerUntrusted   wire.Code = "server_untrusted"
	CodeServerName        wire.Code = "server_name"
	CodeServerExpired     wire.Code = "server_expired"
	CodeServerProtocol    wire.Code = "server_protocol"
	CodeServerRefused     wire.Code = "server_refused"
	CodeServerClosed      wire.Code = "server_closed"
	CodeServerUnreachable wire.Code = "server_unreachable"
)

// Errors to compare with errors.Is; any *Error with the same code is equal to them.
var (
	// ErrInterrupted says that the connection broke, or the context's deadline passed,
	// while a request to sign was on its way: the signature may or may not have been made and recorded. Under
	// chancery/1 the request was repeated before, with its idempotency key, and
	// Config.Attempts or the context's deadline came to an end. Signing again is
	// safe for the data, and may show twice in the server's audit log.
	ErrInterrupted = &Error{Code: CodeInterrupted, Message: "the connection broke while the server was signing; the signature may have been made"}
	// ErrClosed says that Close was called.
	ErrClosed = &Error{Code: CodeClosed, Message: "the client is closed"}
	// ErrBadSignature says that what the server sent is not a signature by the
	// key it named. Do not use it, and tell the server's operator.
	ErrBadSignature = &Error{Code: CodeBadSignature, Message: "the signature is not valid under the key's public half, so it is refused"}
	// ErrHandleMismatch says that the server's key is not the pinned one.
	ErrHandleMismatch = &Error{Code: CodeHandleMismatch, Message: "the server's key is not the one that is pinned"}
)

// Error is a failed call.
type Error struct {
	Op      string    // the request's name on the wire, or "connect"
	Key     string    // the key's name; may be empty
	Code    wire.Code // stable; documented in docs/errors.md
	Message string    // one sentence without an end: what is wrong and often what to do
	Hint    string    // what else to do; may be empty
	Err     error     // the cause: *wire.Error, *tunnel.Error, a context's error or nil
}

// Error describes the failure in one line.
func (e *Error) Error() string {
	text := "client: "
	if e.Op != "" {
		text += e.Op
	}
	if e.Key != "" {
		text += fmt.Sprintf(" %q", e.Key)
	}
	if e.Op != "" || e.Key != "" {
		text += ": "
	}
	return text + e.Message
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether target is an *Error with the same code.
func (e *Error) Is(target error) bool {
	other, ok := target.(*Error)
	return ok && other.Code == e.Code
}

// failure returns a new *Error with a sentence of its own.
func failure(code wire.Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// lostError is a reply that will not come: the connection ended while a request waited, or its caller's time did.
type lostError struct {
	sent  bool  // some of the request's bytes may have left
	cause error // why; a *tunnel.Error, a *Error, the context's or from the network
}

func (e *lostError) Error() string { return e.cause.Error() }

func (e *lostError) Unwrap() error { return e.cause }

const timeoutText = "the time for this call ran out"

// lostText is the sentence about a connection that broke. The network's own words go along.
func lostText(cause error) string {
	var known *Error
	if errors.As(cause, &known) {
		return known.Message
	}
	if errors.Is(cause, context.DeadlineExceeded) {
		return timeoutText
	}
	return "the connection to the server was lost: " + wire.Sentence(cause.Error())
}

// hints are for the failures whose sentence says only what is wrong.
var hints = map[wire.Code]string{
	CodeTimeout:        "try again, or allow more time",
	CodeConnectionLost: "try again; if it stays so, the logs of the bridge and the server say why",
	CodeBadReply:       "use the same version on both sides; if it is the same, tell the server's operator",
	CodeBadSignature:   "do not use it, and tell the server's operator",
}

var kindCodes = map[tunnel.Kind]wire.Code{
	tunnel.KindConfig:            CodeSettings,
	tunnel.KindCanceled:          CodeCanceled,
	tunnel.KindBridgeUnreachable: CodeBridgeUnreachable,
	tunnel.KindBridgeUntrusted:   CodeBridgeUntrusted,
	tunnel.KindBridgeName:        CodeBridgeName,
	tunnel.KindBridgeExpired:     CodeBridgeExpired,
	tunnel.KindBridgeProtocol:    CodeBridgeProtocol,
	tunnel.KindBridgeRefused:     CodeBridgeRefused,
	tunnel.KindRejected:          CodeBridgeRejected,
	tunnel.KindNoServer:          CodeNoServer,
	tunnel.KindServerUntrusted:   CodeServerUntrusted,
	tunnel.KindServerName:        CodeServerName,
	tunnel.KindServerExpired:     CodeServerExpired,
	tunnel.KindServerProtocol:    CodeServerProtocol,
	tunnel.KindServerRefused:     CodeServerRefused,
	tunnel.KindServerClosed:      CodeServerClosed,
	tunnel.KindServerUnreachable: CodeServerUnreachable,
}

// told turns whatever ended a call into the *Error that its caller gets. It is
// the one place where causes become codes.
func told(op, key string, err error) error {
	if err == nil {
		return nil
	}
	e := sorted(err)
	if e.Op == "" {
		e.Op = op
	}
	if e.Key == "" {
		e.Key = key
	}
	if e.Hint == "" {
		e.Hint = hints[e.Code]
	}
	return &e
}

func sorted(err error) Error {
	var (
		known  *Error
		answer *wire.Error
		dialed *tunnel.Error
		lost   *lostError
	)
	switch {
	case errors.As(err, &known):
		return *known
	case errors.As(err, &answer):
		return Error{Code: answer.Code, Message: answer.Message, Err: err}
	case errors.Is(err, context.DeadlineExceeded) && !errors.As(err, &dialed):
		return Error{Code: CodeTimeout, Message: timeoutText, Err: err}
	case errors.Is(err, context.Canceled):
		return Error{Code: CodeCanceled, Message: "canceled", Err: err}
	case errors.As(err, &dialed):
		return fromTunnel(dialed)
	case errors.As(err, &lost):
		return Error{Code: CodeConnectionLost, Message: lostText(lost.cause), Err: err}
	}
	return Error{Code: CodeConnectionLost, Message: wire.Sentence(err.Error()), Err: err}
}

// fromTunnel quotes the cause as a peer's text: it may name what is in a certificate that nobody trusts.
func fromTunnel(e *tunnel.Error) Error {
	code, ok := kindCodes[e.Kind]
	if !ok {
		code = CodeConnectionLost
	}
	message := fmt.Sprintf("bridge %q: %s", e.Bridge, e.What())
	if e.Err != nil {
		message += fmt.Sprintf(" (%s)", wire.Sentence(strings.TrimPrefix(e.Err.Error(), "tunnel: ")))
	}
	return Error{Code: code, Message: message, Hint: e.Hint(), Err: e}
}
