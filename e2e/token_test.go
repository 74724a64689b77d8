package e2e

import (
	"strings"
	"testing"

	"chancery/internal/testtool"
)

// TestKeysOfOtherToolsAreAdopted makes a key with pkcs11-tool, adopts it, and signs through the whole chain.
func TestKeysOfOtherToolsAreAdopted(t *testing.T) {
	tool, openssl := testtool.Need(t, "pkcs11-tool"), testtool.Need(t, "openssl")
	l := newLab(t, drivers()[1])
	module := tokenModule(l)
	must(t, l.dir, l.environment, tool, "--module", module, "--login", "--pin", l.read("pin"),
		"--keypairgen", "--key-type", "EC:prime256v1", "--label", "heirloom", "--id", "a1b2", "--sensitive")
	l.operator("key", "adopt", "heirloom", "--token", "vault", "--label", "heirloom", "--passphrase-file", "olga.passphrase")
	l.grant("heirloom")
	l.serve()
	l.write("document", "x")
	l.alice("sign", "raw", "heirloom", "document")
	l.alice("key", "export", "heirloom", "-o", "key.pem")
	must(t, l.dir, nil, openssl, "dgst", "-sha256", "-verify", "key.pem", "-signature", "document.sig", "document")

	l.operator("key", "create", "born-here", "--token", "vault", "--algorithm", "rsa2048", "--passphrase-file", "olga.passphrase")
	listed := must(t, l.dir, l.environment, tool, "--module", module, "--login", "--pin", l.read("pin"), "--list-objects", "--type", "privkey")
	if !strings.Contains(listed, "never extractable") || !strings.Contains(listed, "born-here") {
		t.Errorf("pkcs11-tool does not show our key as never extractable:\n%s", listed)
	}
}

// TestAnExistingKeyIsImported makes a key with openssl, imports it, and signs with it.
func TestAnExistingKeyIsImported(t *testing.T) {
	openssl := testtool.Need(t, "openssl")
	for _, d := range drivers() {
		t.Run(d.name, func(t *testing.T) {
			l := newLab(t, d)
			must(t, l.dir, nil, openssl, "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", "own.pem")
			must(t, l.dir, nil, "chmod", "600", "own.pem")
			must(t, l.dir, nil, openssl, "pkey", "-in", "own.pem", "-pubout", "-out", "public.pem")
			l.operator("key", "import", "own", "own.pem", "--token", "vault", "--passphrase-file", "olga.passphrase")
			l.grant("own")
			l.serve()
			l.write("document", "x")
			l.alice("sign", "raw", "own", "document")
			must(t, l.dir, nil, openssl, "dgst", "-sha256", "-verify", "public.pem", "-signature", "document.sig", "document")
		})
	}
}

// TestPINChangesUnderARunningServer changes the PIN while the server serves: open sessions go on, new ones open with the new PIN.
func TestPINChangesUnderARunningServer(t *testing.T) {
	for _, d := range drivers() {
		t.Run(d.name, func(t *testing.T) {
			l := newLab(t, d)
			l.createKey("release", "p256")
			l.serve()
			l.write("document", "x")
			l.alice("sign", "raw", "release", "document")
			l.write("new.pin", "another-pin-3141")
			l.operator("token", "change-pin", "vault", "--passphrase-file", "olga.passphrase", "--new-pin-file", "new.pin")
			l.alice("sign", "raw", "release", "document", "--force")
			l.server.terminate()
			l.serve()
			l.alice("sign", "raw", "release", "document", "--force")
			l.operator("key", "create", "second", "--token", "vault", "--algorithm", "p256", "--passphrase-file", "olga.passphrase")
		})
	}
}

// TestAnAbsentTokenComesBack moves the token away and back while the server runs.
func TestAnAbsentTokenComesBack(t *testing.T) {
	l := newLab(t, drivers()[0])
	l.createKey("release", "p256")
	must(t, l.dir, nil, "mv", "state/tokens/vault", "elsewhere")
	l.serve()
	l.write("document", "x")
	expectation{5, "token_absent", "absent"}.check(t, l.tryAs("alice", "sign", "raw", "release", "document"))
	must(t, l.dir, nil, "mv", "elsewhere", "state/tokens/vault")
	l.eventually(func() bool { return l.tryAs("alice", "sign", "raw", "release", "document").exit == 0 }, "the token is back, but signing is not")
}

func tokenModule(l *lab) string {
	l.Helper()
	for line := range strings.Lines(l.operator("token", "show", "vault")) {
		if name, value, found := strings.Cut(line, ":"); found && strings.TrimSpace(name) == "location" {
			return strings.TrimSpace(value)
		}
	}
	l.Fatal("token show tells no location")
	return ""
}
