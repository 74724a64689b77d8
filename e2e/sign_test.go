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

	"chancery/e2e/lab"
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
		t.Run(d.Name, func(t *testing.T) {
			l := newLab(t, d)
			for _, algorithm := range []string{"rsa2048", "rsa3072", "rsa4096", "p256", "p384", "p521", "ed25519"} {
				l.CreateKey(algorithm, algorithm, "--openpgp", "Lab "+algorithm+" <"+algorithm+"@lab.example>")
			}
			l.Serve()
			l.Write("document", strings.Repeat("To whom it may concern.\n- dashed\ntrailing  \n", 1000)+"no line end")
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

func (l *scene) signRaw(t *testing.T, openssl, key string, flags, verify []string) {
	l.Alice(append([]string{"sign", "raw", key, "document", "--force", "--quiet", "-o", "document.sig"}, flags...)...)
	l.Alice("key", "export", key, "--force", "-o", "key.pem")
	arguments := append(slices.Clone(verify), "-verify", "key.pem", "-signature", "document.sig", "document")
	if verify == nil {
		arguments = []string{"pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", "key.pem", "-sigfile", "document.sig", "-in", "document"}
	}
	l.Must(openssl, arguments...)
	if out := l.Must(openssl, "version"); out == "" {
		t.Error("openssl says nothing")
	}
	l.Alice(append([]string{"verify", "raw", "document", "document.sig", "--key-file", "key.pem"}, flags...)...)
	l.Write("other", "something else")
	if r := l.TryAs("alice", append([]string{"verify", "raw", "other", "document.sig", "--key-file", "key.pem"}, flags...)...); r.Exit == 0 {
		t.Error("a signature over another document verifies")
	}
	if r := l.Run(openssl, append(slices.Clone(arguments[:len(arguments)-1]), "other")...); r.Exit == 0 {
		t.Error("openssl accepts a signature over another document")
	}
}

func (l *scene) signOpenPGP(t *testing.T, gpg string, home []string, key string) {
	l.Alice("key", "export", key, "--format", "openpgp", "--force", "-o", "key.asc")
	l.With(home...).Must(gpg, "--batch", "--import", "key.asc")
	for _, form := range []struct {
		flags  []string
		output string
		verify []string
	}{
		{nil, "document.asc", []string{"--verify", "document.asc", "document"}},
		{[]string{"--binary"}, "document.pgp", []string{"--verify", "document.pgp", "document"}},
		{[]string{"--cleartext"}, "document.txt", []string{"--verify", "document.txt"}},
	} {
		l.Alice(append([]string{"sign", "openpgp", key, "document", "--force", "--quiet", "-o", form.output}, form.flags...)...)
		l.With(home...).Must(gpg, append([]string{"--batch", "--trust-model", "always"}, form.verify...)...)
	}
	l.Alice("verify", "openpgp", "document", "document.asc", "--certificate", "key.asc")
}

// listsItsKeys checks that the user sees all keys, and that they are in software.
func (l *scene) listsItsKeys(t *testing.T) {
	var keys []struct {
		Name     string `json:"name"`
		Hardware *bool  `json:"hardware"`
	}
	output := l.Alice("keys", "--json")
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
		lab.Run(t, lab.Call{Dir: home, Environment: environment, Program: filepath.Join(filepath.Dir(gpg), "gpgconf"), Args: []string{"--kill", "all"}})
		os.RemoveAll(home)
	})
	return environment
}

func TestManyFilesInOneCall(t *testing.T) {
	openssl := testtool.Need(t, "openssl")
	l := newLab(t, drivers()[0])
	l.CreateKey("release", "p256")
	l.Serve()
	const count = 300
	arguments := []string{"sign", "raw", "release"}
	for i := range count {
		name := fmt.Sprintf("file-%03d", i)
		l.Write(name, strings.Repeat(name, i))
		arguments = append(arguments, name)
	}
	l.Alice(arguments...)
	l.Alice("key", "export", "release", "-o", "key.pem")
	for i := range count {
		name := fmt.Sprintf("file-%03d", i)
		if i%25 == 0 {
			l.Must(openssl, "dgst", "-sha256", "-verify", "key.pem", "-signature", name+".sig", name)
		}
		if _, err := os.Stat(l.Path(name + ".sig")); err != nil {
			t.Error(err)
		}
	}
	if sessions := strings.Count(l.Bridge.Log.String(), "msg=paired"); sessions != 2 {
		t.Errorf("%d sessions for one call that signs and one that exports", sessions)
	}
}

func TestOneBadFileLosesNoOther(t *testing.T) {
	l := newLab(t, drivers()[0])
	l.CreateKey("release", "p256")
	l.Serve()
	l.Write("good", "good")
	l.Write("better", "better")
	r := l.TryAs("alice", "sign", "raw", "release", "good", "missing", "better")
	if r.Exit != 1 || !strings.Contains(r.Stderr, "missing") {
		t.Errorf("exit %d: %s", r.Exit, r.Stderr)
	}
	for _, name := range []string{"good.sig", "better.sig"} {
		if info, err := os.Stat(l.Path(name)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	if leftovers, _ := filepath.Glob(l.Path("*.tmp*")); len(leftovers) > 0 {
		t.Errorf("left over: %v", leftovers)
	}
	before := l.Read("good.sig")
	if r := l.TryAs("alice", "sign", "raw", "release", "good"); r.Exit == 0 || l.Read("good.sig") != before {
		t.Errorf("an existing signature was overwritten without --force (exit %d)", r.Exit)
	}
}

func TestNoSecretInLogsOrArguments(t *testing.T) {
	l := newLab(t, drivers()[0])
	l.CreateKey("release", "p256")
	l.Serve()
	l.Write("document", "x")
	l.Alice("sign", "raw", "release", "document")
	l.Write("alice.passphrase", "a wrong passphrase of hers")
	wrong := l.TryAs("alice", "sign", "raw", "release", "document", "--force")
	for _, text := range []string{l.Server.Log.String(), l.Bridge.Log.String(), wrong.Stderr, wrong.Stdout} {
		for _, secret := range []string{lab.TokenPIN, lab.OlgaPassphrase, lab.AlicePassphrase, "a wrong passphrase of hers"} {
			if strings.Contains(text, secret) {
				t.Errorf("secret %q stands in:\n%s", secret, text)
			}
		}
	}
	for _, name := range []string{"state/chancery.db", "state/chancery.db-wal"} {
		stored, err := os.ReadFile(l.Path(name))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(stored, []byte(lab.TokenPIN)) || bytes.Contains(stored, []byte(lab.AlicePassphrase)) {
			t.Errorf("a secret stands in %s", name)
		}
	}
}
