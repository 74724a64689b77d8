package tunnel

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
)

// ErrRevoked is wrapped by what a tls.Config's VerifyConnection returns for a
// certificate that its CA has revoked. A retry does not help.
var ErrRevoked = errors.New("tunnel: the certificate is revoked")

// revokedHint is the hint where the other end's certificate is revoked.
const revokedHint = "do not trust it; ask its operator for the new one"

// Kind tells apart the ways in which a connection cannot be had.
type Kind uint8

// The kinds of Error. "Ours" is the certificate of the program that dials.
const (
	KindConfig            Kind = iota + 1 // the Config cannot work
	KindCanceled                          // the caller's context was canceled
	KindBridgeUnreachable                 // no TCP connection, or it ended or fell silent during the TLS handshake
	KindBridgeUntrusted                   // the bridge's certificate is not from the configured CA, or not for a TLS server
	KindBridgeName                        // the bridge's certificate is for another host
	KindBridgeExpired                     // the bridge's certificate is not valid at this time
	KindBridgeProtocol                    // what answers there does not speak TLS 1.3 or this protocol
	KindBridgeRefused                     // the bridge refused our certificate with a TLS alert
	KindRejected                          // the bridge answered with the status in Error.Status
	KindNoServer                          // no ack: no server waits at the bridge, or all are busy
	KindServerUntrusted                   // like KindBridgeUntrusted, for the inner session
	KindServerName                        // like KindBridgeName
	KindServerExpired                     // like KindBridgeExpired
	KindServerProtocol                    // like KindBridgeProtocol
	KindServerRefused                     // the server refused our certificate with a TLS alert
	KindServerClosed                      // the server hung up before its first byte: the user is unknown to it
	KindServerUnreachable                 // paired, but the inner handshake was cut or not finished in time
)

type kindText struct {
	what, hint string
	retry      bool
}

var kindTexts = map[Kind]kindText{
	KindConfig:            {what: "the connection's settings are wrong", hint: "correct the configuration"},
	KindCanceled:          {what: "connecting was canceled"},
	KindBridgeUnreachable: {"the bridge cannot be reached", "check its address, that it runs, and the firewall between", true},
	KindBridgeUntrusted:   {what: "the bridge's certificate is not trusted", hint: "check that the CA file is the one that issued the bridge's certificate and that the certificate is for a TLS server"},
	KindBridgeName:        {what: "the bridge's certificate is for another host name", hint: "use the host name that the certificate was issued for, or have it issued for this one"},
	KindBridgeExpired:     {what: "the bridge's certificate is expired or not yet valid", hint: "have it renewed, and check this machine's clock"},
	KindBridgeProtocol:    {what: "what answers at the bridge's address is not a bridge", hint: "check the port: clients and servers use different ones"},
	KindBridgeRefused:     {what: "the bridge refused this program's certificate", hint: "check that it was issued by the bridge's CA for a TLS client and is neither expired nor revoked"},
	KindRejected:          {what: "the bridge turned this program away"},
	KindNoServer:          {"no server is connected to the bridge, or all are busy", "try again, and ask the operator if it stays so", true},
	KindServerUntrusted:   {what: "the server's certificate is not trusted", hint: "check that the CA file is the one that issued the server's certificate and that the certificate is for a TLS server"},
	KindServerName:        {what: "the server's certificate is for another host name", hint: "configure the server's host name as its certificate has it"},
	KindServerExpired:     {what: "the server's certificate is expired or not yet valid", hint: "have it renewed, and check this machine's clock"},
	KindServerProtocol:    {what: "what answers behind the bridge is not a server", hint: "ask the operator which servers may register at the bridge"},
	KindServerRefused:     {what: "the server refused this program's certificate", hint: "check that it was issued by the server's CA for a TLS client, has a common name and is neither expired nor revoked"},
	KindServerClosed:      {what: "the server closed the connection without an answer", hint: "ask the operator whether the user that your certificate names is registered and enabled"},
	KindServerUnreachable: {"the server did not finish the handshake", "try again, and if it stays so ask the operator whether the user that your certificate names is registered", true},
}

// statusHints says what to do about each ack that refuses.
var statusHints = map[Status]string{
	StatusVersion:    "upgrade the older of the two programs",
	StatusRole:       "check the port: clients and servers use different ones",
	StatusNoName:     "have the certificate issued again, with a common name",
	StatusMagic:      "check the port, and that both programs speak the same protocol",
	StatusNotAllowed: "add the certificate's common name to the servers that the bridge's configuration allows",
}

// Error is the failure of Dial, of a leg of Listen, and of the first Read on a
// connection that the server closed without an answer.
type Error struct {
	Kind   Kind
	Status Status // the bridge's answer, for KindRejected
	Bridge string // the address that was dialled
	Err    error  // the cause; may be nil
}

// Error says what failed, why, and what to do about it.
func (e *Error) Error() string {
	text := fmt.Sprintf("tunnel: bridge %q: %s", e.Bridge, e.What())
	if e.Err != nil {
		text += ": " + strings.TrimPrefix(e.Err.Error(), "tunnel: ")
	}
	if hint := e.Hint(); hint != "" {
		text += "; " + hint
	}
	return text
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// What returns what failed, as a clause without a capital or a full stop.
func (e *Error) What() string {
	if e.Kind == KindRejected {
		return fmt.Sprintf("%s (%s)", kindTexts[e.Kind].what, e.Status)
	}
	return kindTexts[e.Kind].what
}

// Hint returns what the user can do, as a clause; it may be empty.
func (e *Error) Hint() string {
	if e.Kind == KindRejected {
		return statusHints[e.Status]
	}
	if errors.Is(e.Err, ErrRevoked) {
		return revokedHint
	}
	return kindTexts[e.Kind].hint
}

// Retry tells whether trying again, unchanged, can help.
func (e *Error) Retry() bool { return kindTexts[e.Kind].retry }

// errNoAck is the cause when the bridge ended the wait for a partner.
var errNoAck = errors.New("the bridge ended the wait for a partner")

// bridgeError sorts a failure of the outer session's handshake.
func (c *Config) bridgeError(ctx context.Context, err error) *Error {
	return c.sorted(ctx, err, bridgeKinds)
}

// serverError sorts a failure of the inner session's handshake.
func (c *Config) serverError(ctx context.Context, err error) *Error {
	return c.sorted(ctx, err, serverKinds)
}

// timedOut is context.DeadlineExceeded in words for users.
type timedOut struct{}

func (timedOut) Error() string        { return "no answer in time" }
func (timedOut) Timeout() bool        { return true }
func (timedOut) Is(target error) bool { return target == context.DeadlineExceeded }

// kinds are the Error kinds for the TLS failures of one layer.
type kinds struct{ unreachable, untrusted, name, expired, protocol, refused Kind }

var (
	bridgeKinds = kinds{KindBridgeUnreachable, KindBridgeUntrusted, KindBridgeName, KindBridgeExpired, KindBridgeProtocol, KindBridgeRefused}
	serverKinds = kinds{KindServerUnreachable, KindServerUntrusted, KindServerName, KindServerExpired, KindServerProtocol, KindServerRefused}
)

func (c *Config) sorted(ctx context.Context, err error, k kinds) *Error {
	var already *Error
	if errors.As(err, &already) {
		return already
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return &Error{Kind: KindCanceled, Bridge: c.Bridge, Err: context.Canceled}
	}
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
		err = timedOut{}
	}
	return &Error{Kind: k.of(err), Bridge: c.Bridge, Err: err}
}

func (k kinds) of(err error) Kind {
	var (
		invalid x509.CertificateInvalidError
		host    x509.HostnameError
		cert    *tls.CertificateVerificationError
		record  tls.RecordHeaderError
		network net.Error
	)
	switch {
	case errors.As(err, &host):
		return k.name
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return k.expired
	case errors.As(err, &cert), errors.Is(err, ErrRevoked):
		return k.untrusted
	case errors.As(err, &record):
		return k.protocol
	}
	if alert, ok := remoteAlert(err); ok {
		if certificateAlerts[alert] {
			return k.refused
		}
		return k.protocol
	}
	if errors.Is(err, ErrTruncated) || errors.Is(err, context.DeadlineExceeded) || errors.As(err, &network) {
		return k.unreachable
	}
	return k.protocol
}

// certificateAlerts are the alerts about a certificate (RFC 8446, section 6.2),
// by number.
var certificateAlerts = map[tls.AlertError]bool{
	42: true, 43: true, 44: true, 45: true, 46: true, 48: true, 49: true, 51: true, 116: true,
}

// remoteAlert returns the TLS alert that the other side sent. The standard
// library keeps its type to itself, but not its text.
func remoteAlert(err error) (tls.AlertError, bool) {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" {
		return 0, false
	}
	for code := range 256 {
		if alert := tls.AlertError(code); alert.Error() == op.Err.Error() {
			return alert, true
		}
	}
	return 0, true
}
