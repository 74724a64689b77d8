package main

import (
	"context"
	"errors"
	"slices"
	"strings"

	"chancery/access"
	"chancery/artifact/openpgp"
	"chancery/artifact/raw"
	"chancery/client"
	"chancery/internal/certfile"
	"chancery/internal/cli"
	"chancery/tunnel"
	"chancery/tunnel/wire"
)

// exitOf gives the exit codes of the client's own codes; those of the wire know theirs.
var exitOf = map[wire.Code]cli.ExitCode{
	client.CodeInterrupted:       cli.ExitUnreachable,
	client.CodeTimeout:           cli.ExitUnreachable,
	client.CodeConnectionLost:    cli.ExitUnreachable,
	client.CodeBridgeUnreachable: cli.ExitUnreachable,
	client.CodeNoServer:          cli.ExitUnreachable,
	client.CodeServerUnreachable: cli.ExitUnreachable,
	client.CodeSettings:          cli.ExitUsage,
	client.CodeBridgeRefused:     cli.ExitDenied,
	client.CodeBridgeRejected:    cli.ExitDenied,
	client.CodeServerRefused:     cli.ExitDenied,
	client.CodeServerClosed:      cli.ExitDenied,
}

// bridgeStatuses are the bridge's answers that deny nobody anything: they end otherwise than exitOf says.
var bridgeStatuses = []struct {
	status tunnel.Status
	exit   cli.ExitCode
	code   wire.Code
}{
	{tunnel.StatusVersion, cli.ExitFailed, client.CodeBridgeRejected},
	{tunnel.StatusRole, cli.ExitFailed, client.CodeBridgeRejected},
	{tunnel.StatusMagic, cli.ExitFailed, client.CodeBridgeRejected},
}

// kinds are what a user meets for the sentinel errors of other packages.
var kinds = []struct {
	sentinel error
	exit     cli.ExitCode
	code     string
	hint     string
}{
	{certfile.ErrUnusable, cli.ExitUsage, "certificate_unusable", ""},
	{tunnel.ErrNoName, cli.ExitUsage, "certificate_unusable", "have the certificate issued again, with the user's name as its common name"},
	{raw.ErrHash, cli.ExitUsage, "usage", ""},
	{raw.ErrTooLarge, cli.ExitFailed, string(client.CodeTooLarge), "sign it with 'sign openpgp', or sign a file that holds its digest"},
	{openpgp.ErrOtherKey, cli.ExitFailed, "other_key", "name the certificate of the key that made the signature"},
	{openpgp.ErrSignature, cli.ExitFailed, string(client.CodeBadSignature), "do not trust the file: it or its signature was changed; get both again from their source"},
	{openpgp.ErrExpired, cli.ExitFailed, "expired", "get the renewed certificate, or a newer signature, from the key's owner"},
	{openpgp.ErrRevoked, cli.ExitFailed, "revoked", "do not trust it; ask the key's owner which key replaces it"},
	{openpgp.ErrMalformed, cli.ExitFailed, "signature_malformed", "is it the signature's file, whole and unchanged?"},
	{openpgp.ErrText, cli.ExitFailed, "not_text", ""},
	{openpgp.ErrCertificate, cli.ExitFailed, "certificate_invalid", "'key export --format openpgp' writes one that can be used"},
	{openpgp.ErrOptions, cli.ExitUsage, "usage", ""},
	{openpgp.ErrUnsupported, cli.ExitFailed, "not_supported", "OpenPGP goes with RSA, with ECDSA on NIST curves and with Ed25519"},
	{access.ErrParameters, cli.ExitUsage, "usage", ""},
}

// classify says what a user is told of an error.
func classify(err error) *cli.Error {
	var failed *client.Error
	if errors.As(err, &failed) {
		return fromClient(failed)
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return &cli.Error{Exit: cli.ExitUnreachable, Code: string(client.CodeTimeout), Message: "the time of --timeout ran out", Hint: "allow more", Cause: err}
	case errors.Is(err, context.Canceled):
		return &cli.Error{Exit: cli.ExitFailed, Code: string(client.CodeCanceled), Message: "canceled", Cause: err}
	}
	for _, kind := range kinds {
		if errors.Is(err, kind.sentinel) {
			return &cli.Error{Exit: kind.exit, Code: kind.code, Message: withoutPackage(err.Error()), Hint: kind.hint, Cause: err}
		}
	}
	return nil
}

func fromClient(e *client.Error) *cli.Error {
	exit, ours := exitOf[e.Code]
	switch {
	case ours:
	case slices.Contains(wire.Codes(), e.Code):
		exit = cli.ExitCode(e.Code.Exit())
	default:
		exit = cli.ExitFailed
	}
	var dialed *tunnel.Error
	for _, answer := range bridgeStatuses {
		if e.Code == answer.code && errors.As(e.Err, &dialed) && dialed.Status == answer.status {
			exit = answer.exit
		}
	}
	return &cli.Error{Exit: exit, Code: string(e.Code), Message: naming(e.Key, e.Message), Hint: e.Hint, Cause: e}
}

// naming puts the key's name before a message, unless it stands there: Chancery's server names the key in most
// answers, one of version 2 and the client itself in none.
func naming(key, message string) string {
	prefix := "key " + quoted(key) + ": "
	if key == "" || strings.HasPrefix(message, prefix) {
		return message
	}
	return prefix + message
}

// withoutPackage drops the package's name from an error's text, which means nothing to a user.
func withoutPackage(text string) string {
	for _, prefix := range []string{"certfile: cannot be used: ", "openpgp: ", "raw: ", "access: ", "tunnel: "} {
		text = strings.ReplaceAll(text, prefix, "")
	}
	return text
}

// told is the error as a user is told it, for messages about one file of many.
func told(err error) *cli.Error {
	var known *cli.Error
	if errors.As(err, &known) {
		return known
	}
	if known = classify(err); known != nil {
		return known
	}
	return &cli.Error{Exit: cli.ExitFailed, Code: "failed", Message: err.Error(), Cause: err}
}
