package main

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// unrecordedCommands change nothing of the server. Those of pki work without one, on any host.
var unrecordedCommands = []string{
	"serve", workerName, "status", "version", "config show", "config check",
	"user list", "user show", "token list", "token show", "token probe", "key list", "key show", "key export", "grant list",
	"audit show", "audit verify", "audit head",
	"pki init", "pki issue", "pki show",
	"seal list", "seal test", helperName,
}

// recordedCommands are those whose records the script audit.txt looks at; key adopt has the same way as key create, and replica.txt
// and grant.txt look at those of replicas and of grant set-priority.
var recordedCommands = []string{
	"user add", "user disable", "user enable", "user delete",
	"token add", "token reload", "token unblock", "token change-pin", "token repair-pin", "token remove",
	"key create", "key adopt", "key import", "key certify", "key disable", "key enable", "key delete",
	"grant add", "grant revoke", "grant set-priority", "grant change-passphrase",
	"seal add secret", "seal add tpm", "seal add pkcs11", "seal rotate", "seal remove",
}

// TestEveryCommandIsRecordedOrChangesNothing: whoever adds a command has to say which.
func TestEveryCommandIsRecordedOrChangesNothing(t *testing.T) {
	known := make(map[string]bool)
	for _, name := range slices.Concat(unrecordedCommands, recordedCommands) {
		known[name] = true
	}
	var walk func(*cobra.Command)
	walk = func(command *cobra.Command) {
		for _, below := range command.Commands() {
			walk(below)
		}
		name := strings.TrimPrefix(command.CommandPath(), program+" ")
		if command.HasSubCommands() || name == "help" || strings.HasPrefix(name, "completion") {
			return
		}
		if !known[name] {
			t.Errorf("the command %q is neither recorded nor known to change nothing", name)
		}
		delete(known, name)
	}
	walk(newRoot())
	if len(known) > 0 {
		t.Errorf("there are no commands %q", slices.Sorted(maps.Keys(known)))
	}
}
