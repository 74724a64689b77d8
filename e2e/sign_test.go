package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"chancery/internal/testtool"
)

// signCases are ways to sign raw, with the words with which openssl verifies each.
var signCases = []struct {
	algorithm string
	flags     []string
	openssl   []string
}{
	{"rsa2048", nil, []string{"dgst", "-sha256"}},
	{"rsa2048", []string{"--hash", "sha512"}, []string{"dgst", "-sha512"}},
	{"rsa2048", []string{"--hash", "sha3-256"}, []string{"dgst", "-sha3-256"}},
	{"rsa3072", nil, []string{"dgst", "-sha256"}},
	{"rsa3072", []string{"--scheme", "pss"}, []string{"dgst", "-sha256", "-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:digest"}},
	{"rsa4096", []string{"--hash", "sha384", "--scheme", "pss"}, []string{"dgst", "-sha384", "-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:digest"}},
	{"p256", nil, []string{"dgst", "-sha256"}},
	{"p256", []string{"--hash", "sha512"}, []string{"dgst", "-sha512"}},
	{"p384", []string{"--hash", "sha384"}, []string{"dgst", "-sha384"}},
	{"p521", []string{"--hash", "sha512"}, []string{"dgst", "-sha512"}},
	{"ed25519", nil, nil}, // pkeyutl, since dgst has no one-shot algorithms
}

func TestEveryAlgorithmSignsAndOthersVerify(t *testing.T) {
	openssl, gpg := testtool.Need(t, "openssl"), testtool.Need(t, "gpg")
	for _, d := range drivers() {
		t.Run(d.name, func(t *testing.T) {
			l := newLab(t, d)
			for _, algorithm := range []string{"rsa2048", "rsa3072", "rsa4096", "p256", "p384", "p521", "ed25519"} {
				l.createKey(algorithm, algorithm, "--openpgp", "Lab "+algorithm+" <"+algorithm+"@lab.example>")
			}
			l.serve()
			l.write("document", strings.Repeat("To whom it may concern.\n- dashed\ntrailing  \n", 1000)+"no line end")
			for _, c := range signCases {
				t.Run(c.algorithm+strings.Join(c.flags, ""), func(t *testing.T) { l.signRaw(t, openssl, c.algorithm, c.flags, c.openssl) })
			}
			home := gnupgHome(t, gpg)
			for _, algorithm := range []string{"rsa2048", "rsa4096", "p256", "p384", "p521", "ed25519"} {
				t.Run("openpgp-"+algorithm, func(t *testing.T) { l.signOpenPGP(t, gpg, home, algorithm) })
			}
			l.listsItsKeys(t)
		})
	}
}

func (l *lab) signRaw(t *testing.T, openssl, key string, flags, verify []string) {
	l.alice(append([]string{"sign", "raw", key, "document", "--force", "--quiet", "-o", "document.sig"}, flags...)...)
	l.alice("key", "export", key, "--force", "-o", "key.pem")
	arguments := append(slices.Clone(verify), "-verify", "key.pem", "-signature", "document.sig", "document")
	if verify == nil {
		arguments = []string{"pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", "key.pem", "-sigfile", "document.sig", "-in", "document"}
	}
	must(t, l.dir, nil, openssl, arguments...)
	if out := must(t, l.dir, nil, openssl, "version"); out == "" {
		t.Error("openssl says nothing")
	}
	l.alice(append([]string{"verify", "raw", "document", "document.sig", "--key-file", "key.pem"}, flags...)...)
	l.write("other", "something else")
	if r := l.tryAs("alice", append([]string{"verify", "raw", "other", "document.sig", "--key-file", "key.pem"}, flags...)...); r.exit == 0 {
		t.Error("a signature over another document verifies")
	}
	if r := run(t, l.dir, nil, openssl, append(slices.Clone(arguments[:len(arguments)-1]), "other")...); r.exit == 0 {
		t.Error("openssl accepts a signature over another document")
	}
}

func (l *lab) signOpenPGP(t *testing.T, gpg string, home []string, key string) {
	l.alice("key", "export", key, "--format", "openpgp", "--force", "-o", "key.asc")
	must(t, l.dir, home, gpg, "--batch", "--import", "key.asc")
	for _, form := range []struct {
		flags  []string
		output string
		verify []string
	}{
		{nil, "document.asc", []string{"--verify", "document.asc", "document"}},
		{[]string{"--binary"}, "document.pgp", []string{"--verify", "document.pgp", "document"}},
		{[]string{"--cleartext"}, "document.txt", []string{"--verify", "document.txt"}},
	} {
		l.alice(append([]string{"sign", "openpgp", key, "document", "--force", "--quiet", "-o", form.output}, form.flags...)...)
		must(t, l.dir, home, gpg, append([]string{"--batch", "--trust-model", "always"}, form.verify...)...)
	}
	l.alice("verify", "openpgp", "document", "document.asc", "--certificate", "key.asc")
}

// listsItsKeys checks that the user sees all keys, and that they are in software.
func (l *lab) listsItsKeys(t *testing.T) {
	var keys []struct {
		Name     string `json:"name"`
		Hardware *bool  `json:"hardware"`
	}
	output := l.alice("keys", "--json")
	if err := json.Unmarshal([]byte(output), &keys); err != nil {
		t.Fatalf("%v in %s", err, output)
	}
	if len(keys) != 7 {
		t.Errorf("%d keys listed, not 7:\n%s", len(keys), output)
	}
	for _, key := range keys {
		if key.Hardware == nil || *key.Hardware {
			t.Errorf("key %q is not told to be in software:\n%s", key.Name, output)
		}
	}
}

// gnupgHome makes a GnuPG home whose agent ends with the test.
func gnupgHome(t testing.TB, gpg string) []string {
	t.Helper()
	home, err := os.MkdirTemp("", "gpg") // t.TempDir is too long for the agent's socket
	if err != nil {
		t.Fatal(err)
	}
	environment := []string{"GNUPGHOME=" + home}
	t.Cleanup(func() {
		run(t, home, environment, filepath.Join(filepath.Dir(gpg), "gpgconf"), "--kill", "all")
		os.RemoveAll(home)
	})
	return environment
}

func TestManyFilesInOneCall(t *testing.T) {
	openssl := testtool.Need(t, "openssl")
	l := newLab(t, drivers()[0])
	l.createKey("release", "p256")
	l.serve()
	const count = 300
	arguments := []string{"sign", "raw", "release"}
	for i := range count {
		name := fmt.Sprintf("file-%03d", i)
		l.write(name, strings.Repeat(name, i))
		arguments = append(arguments, name)
	}
	l.alice(arguments...)
	l.alice("key", "export", "release", "-o", "key.pem")
	for i := range count {
		name := fmt.Sprintf("file-%03d", i)
		if i%25 == 0 {
			must(t, l.dir, nil, openssl, "dgst", "-sha256", "-verify", "key.pem", "-signature", name+".sig", name)
		}
		if _, err := os.Stat(l.path(name + ".sig")); err != nil {
			t.Error(err)
		}
	}
	if sessions := strings.Count(l.bridge.log.String(), "msg=paired"); sessions != 2 {
		t.Errorf("%d sessions for one call that signs and one that exports", sessions)
	}
}

func TestOneBadFileLosesNoOther(t *testing.T) {
	l := newLab(t, drivers()[0])
	l.createKey("release", "p256")
	l.serve()
	l.write("good", "good")
	l.write("better", "better")
	r := l.tryAs("alice", "sign", "raw", "release", "good", "missing", "better")
	if r.exit != 1 || !strings.Contains(r.stderr, "missing") {
		t.Errorf("exit %d: %s", r.exit, r.stderr)
	}
	for _, name := range []string{"good.sig", "better.sig"} {
		if info, err := os.Stat(l.path(name)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	if leftovers, _ := filepath.Glob(l.path("*.tmp*")); len(leftovers) > 0 {
		t.Errorf("left over: %v", leftovers)
	}
	before := l.read("good.sig")
	if r := l.tryAs("alice", "sign", "raw", "release", "good"); r.exit == 0 || l.read("good.sig") != before {
		t.Errorf("an existing signature was overwritten without --force (exit %d)", r.exit)
	}
}

func TestNoSecretInLogsOrArguments(t *testing.T) {
	l := newLab(t, drivers()[0])
	l.createKey("release", "p256")
	l.serve()
	l.write("document", "x")
	l.alice("sign", "raw", "release", "document")
	l.write("alice.passphrase", "a wrong passphrase of hers")
	wrong := l.tryAs("alice", "sign", "raw", "release", "document", "--force")
	for _, text := range []string{l.server.log.String(), l.bridge.log.String(), wrong.stderr, wrong.stdout} {
		for _, secret := range []string{tokenPIN, olgaPassphrase, alicePassphrase, "a wrong passphrase of hers"} {
			if strings.Contains(text, secret) {
				t.Errorf("secret %q stands in:\n%s", secret, text)
			}
		}
	}
	for _, name := range []string{"state/chancery.db", "state/chancery.db-wal"} {
		stored, err := os.ReadFile(l.path(name))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(stored, []byte(tokenPIN)) || bytes.Contains(stored, []byte(alicePassphrase)) {
			t.Errorf("a secret stands in %s", name)
		}
	}
}
