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
