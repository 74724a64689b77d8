package main

import (
	"fmt"
	"testing"

	"chancery/artifact/openpgp"
	"chancery/client"
	"chancery/internal/cli"
	"chancery/tunnel"
	"chancery/tunnel/wire"
)

func TestClassify(t *testing.T) {
	for _, test := range []struct {
		err  error
		exit cli.ExitCode
		code string
	}{
		{&client.Error{Code: wire.CodeTokenFinalTry}, cli.ExitToken, "token_final_try"},
		{&client.Error{Code: client.CodeSettings}, cli.ExitUsage, "config_invalid"},
		{&client.Error{Code: "from_tomorrow"}, cli.ExitFailed, "from_tomorrow"},
		{fmt.Errorf("openpgp: x: %w", openpgp.ErrCertificate), cli.ExitFailed, "certificate_invalid"},
		{fmt.Errorf("openpgp: x: %w", openpgp.ErrUnsupported), cli.ExitFailed, "not_supported"},
	} {
		if got := classify(test.err); got.Exit != test.exit || got.Code != test.code {
			t.Errorf("%v: exit %d, %s", test.err, got.Exit, got.Code)
		}
	}
}

// TestTheKeyIsNamedOnce: whether the server's sentence names the key, as Chancery's does, or not, as the client's own.
func TestTheKeyIsNamedOnce(t *testing.T) {
	const want = `key "a \"key\"": the passphrase does not open this key; check that it is the one for this key`
	message := wire.CodeWrongPassphrase.Message()
	for _, answered := range []*wire.Error{
		wire.Errorf(wire.CodeWrongPassphrase, "key %q: %s", `a "key"`, message),
		wire.Errorf(wire.CodeWrongPassphrase, "%s", message),
	} {
		if got := classify(&client.Error{Key: `a "key"`, Code: answered.Code, Message: answered.Message}).Message; got != want {
			t.Errorf("%q is told as %q", answered.Message, got)
		}
	}
	if got := classify(&client.Error{Code: wire.CodeBusy, Message: "busy"}).Message; got != "busy" {
		t.Errorf("without a key: %q", got)
	}
}

// TestOnlyARefusedNameIsADenial: a version or a port is put right by whoever calls, a name by somebody else.
func TestOnlyARefusedNameIsADenial(t *testing.T) {
	for status, exit := range map[tunnel.Status]cli.ExitCode{
		tunnel.StatusVersion: cli.ExitFailed, tunnel.StatusRole: cli.ExitFailed, tunnel.StatusMagic: cli.ExitFailed,
		tunnel.StatusNoName: cli.ExitDenied, tunnel.StatusNotAllowed: cli.ExitDenied,
	} {
		answer := &tunnel.Error{Kind: tunnel.KindRejected, Status: status}
		got := classify(&client.Error{Code: client.CodeBridgeRejected, Err: answer})
		if got.Exit != exit || got.Code != "bridge_rejected" {
			t.Errorf("%s: exit %d, %s", status, got.Exit, got.Code)
		}
	}
}
