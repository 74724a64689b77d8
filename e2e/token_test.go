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
	l.Must(tool, "--module", module, "--login", "--pin", l.Read("pin"),
		"--keypairgen", "--key-type", "EC:prime256v1", "--label", "heirloom", "--id", "a1b2", "--sensitive")
	l.Operator("key", "adopt", "heirloom", "--token", "vault", "--label", "heirloom", "--passphrase-file", "olga.passphrase")
	l.Grant("heirloom")
	l.Serve()
	l.Write("document", "x")
	l.Alice("sign", "raw", "heirloom", "document")
	l.Alice("key", "export", "heirloom", "-o", "key.pem")
	l.Must(openssl, "dgst", "-sha256", "-verify", "key.pem", "-signature", "document.sig", "document")

	l.Operator("key", "create", "born-here", "--token", "vault", "--algorithm", "rsa2048", "--passphrase-file", "olga.passphrase")
	listed := l.Must(tool, "--module", module, "--login", "--pin", l.Read("pin"), "--list-objects", "--type", "privkey")
	if !strings.Contains(listed, "never extractable") || !strings.Contains(listed, "born-here") {
		t.Errorf("pkcs11-tool does not show our key as never extractable:\n%s", listed)
	}
}

// TestAnExistingKeyIsImported makes a key with openssl, imports it, and signs with it.
func TestAnExistingKeyIsImported(t *testing.T) {
	openssl := testtool.Need(t, "openssl")
	for _, d := range drivers() {
		t.Run(d.Name, func(t *testing.T) {
			l := newLab(t, d)
			l.Must(openssl, "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", "own.pem")
			l.Must("chmod", "600", "own.pem")
			l.Must(openssl, "pkey", "-in", "own.pem", "-pubout", "-out", "public.pem")
			l.Operator("key", "import", "own", "own.pem", "--token", "vault", "--passphrase-file", "olga.passphrase")
			l.Grant("own")
			l.Serve()
			l.Write("document", "x")
			l.Alice("sign", "raw", "own", "document")
			l.Must(openssl, "dgst", "-sha256", "-verify", "public.pem", "-signature", "document.sig", "document")
		})
	}
}

// TestPINChangesUnderARunningServer changes the PIN while the server serves: open sessions go on, new ones open with the new PIN.
func TestPINChangesUnderARunningServer(t *testing.T) {
	for _, d := range drivers() {
		t.Run(d.Name, func(t *testing.T) {
			l := newLab(t, d)
			l.CreateKey("release", "p256")
			l.Serve()
			l.Write("document", "x")
			l.Alice("sign", "raw", "release", "document")
			l.Write("new.pin", "another-pin-3141")
			l.Operator("token", "change-pin", "vault", "--passphrase-file", "olga.passphrase", "--new-pin-file", "new.pin")
			l.Alice("sign", "raw", "release", "document", "--force")
			l.Server.Terminate()
			l.Serve()
			l.Alice("sign", "raw", "release", "document", "--force")
			l.Operator("key", "create", "second", "--token", "vault", "--algorithm", "p256", "--passphrase-file", "olga.passphrase")
		})
	}
}

// TestAnAbsentTokenComesBack moves the token away and back while the server runs.
func TestAnAbsentTokenComesBack(t *testing.T) {
	l := newLab(t, drivers()[0])
	l.CreateKey("release", "p256")
	l.Must("mv", "state/tokens/vault", "elsewhere")
	l.Serve()
	l.Write("document", "x")
	expectation{5, "token_absent", "absent"}.check(t, l.TryAs("alice", "sign", "raw", "release", "document"))
	l.Must("mv", "elsewhere", "state/tokens/vault")
	l.Eventually(func() bool { return l.TryAs("alice", "sign", "raw", "release", "document").Exit == 0 }, "the token is back, but signing is not")
}

func tokenModule(l *scene) string {
	l.Helper()
	for line := range strings.Lines(l.Operator("token", "show", "vault")) {
		if name, value, found := strings.Cut(line, ":"); found && strings.TrimSpace(name) == "location" {
			return strings.TrimSpace(value)
		}
	}
	l.Fatal("token show tells no location")
	return ""
}
