package e2e

import (
	"net"
	"os"
	"regexp"
	"strings"
	"testing"

	"chancery/e2e/lab"
)

// expectation is what a user must be able to tell from a failure.
type expectation struct {
	exit int
	code string // stands in brackets at the end of the first line
	says string // a part of the sentence
}

var goish = regexp.MustCompile(`0x[0-9a-f]{6,}|&\{|goroutine \d+|\.go:\d+|panic:|%!`)

func (e expectation) check(t *testing.T, r lab.Result) {
	t.Helper()
	if r.Exit != e.exit || e.code != "" && !strings.Contains(r.Stderr, "["+e.code+"]") || !strings.Contains(r.Stderr, e.says) {
		t.Errorf("want exit %d, code %s, text %q; got exit %d:\n%s", e.exit, e.code, e.says, r.Exit, r.Stderr)
	}
	if goish.MatchString(r.Stderr) {
		t.Errorf("this is not for a user's eyes:\n%s", r.Stderr)
	}
}

// TestEachTroubleIsToldApart causes the failures that a user can cause, one by one, and reads what they are told.
func TestEachTroubleIsToldApart(t *testing.T) {
	l := newLab(t, drivers()[0])
	l.CreateKey("release", "p256")
	l.Operator("key", "create", "secret", "--token", "vault", "--algorithm", "p256", "--passphrase-file", "olga.passphrase")
	l.Operator("user", "add", "stranger")
	l.Operator("user", "delete", "stranger", "--yes")
	l.Must(l.Program("chancery-server"), "pki", "issue", "client", "stranger", "--out", "pki")
	l.Must(l.Program("chancery-server"), "pki", "init", "otherpki")
	l.Must(l.Program("chancery-server"), "pki", "issue", "client", "alice", "--out", "otherpki")
	l.Serve()
	l.Write("document", "x")
	good := l.Read("alice.toml")
	l.Write("wrong.passphrase", "this is not her passphrase")

	sign := []string{"sign", "raw", "release", "document", "-o", "out.sig", "--force"}
	for name, c := range map[string]struct {
		configuration string
		arguments     []string
		want          expectation
	}{
		"wrong passphrase":      {strings.ReplaceAll(good, "alice.passphrase", "wrong.passphrase"), sign, expectation{3, "wrong_passphrase", `chancery: key "release": the passphrase`}},
		"no grant":              {good, []string{"sign", "raw", "secret", "document"}, expectation{3, "no_such_key", `chancery: key "secret": no such key`}},
		"no such key":           {good, []string{"sign", "raw", "nonesuch", "document"}, expectation{3, "no_such_key", `chancery: key "nonesuch": no such key`}},
		"unknown user":          {strings.ReplaceAll(good, "/pki/alice", "/pki/stranger"), sign, expectation{3, "server_closed", "registered"}},
		"client of another CA":  {strings.ReplaceAll(good, "/pki/alice", "/otherpki/alice"), sign, expectation{3, "bridge_refused", "certificate"}},
		"bridge of another CA":  {strings.ReplaceAll(good, "/pki/ca.crt", "/otherpki/ca.crt"), sign, expectation{1, "bridge_untrusted", "CA"}},
		"bridge's name":         {strings.ReplaceAll(good, `"localhost"`, `"elsewhere.example"`), sign, expectation{1, "bridge_name", "host name"}},
		"server's name":         {strings.ReplaceAll(good, `"server.lab"`, `"elsewhere.example"`), sign, expectation{1, "server_name", "host name"}},
		"nobody listens":        {strings.ReplaceAll(good, l.Clients, unusedAddress(t)), sign, expectation{4, "bridge_unreachable", "reached"}},
		"key and certificate":   {strings.ReplaceAll(good, "alice.key", "olga.key"), sign, expectation{2, "certificate_unusable", "does not belong"}},
		"unknown configuration": {good + "\n[tl]\nx = 1\n", sign, expectation{2, "config_invalid", "tl"}},
		"missing file":          {good, []string{"sign", "raw", "release", "nonesuch"}, expectation{1, "file_unreadable", "nonesuch"}},
		"unknown hash":          {good, []string{"sign", "raw", "release", "document", "--hash", "md5"}, expectation{2, "usage", "md5"}},
		"scheme of another key": {good, []string{"sign", "raw", "release", "document", "--scheme", "pss"}, expectation{2, "usage", "RSA"}},
		"unwritable output":     {good, []string{"sign", "raw", "release", "document", "-o", "no/such/directory/out.sig"}, expectation{1, "output_failed", "no/such/directory"}},
	} {
		t.Run(name, func(t *testing.T) {
			l.Write("troubled.toml", c.configuration)
			c.want.check(t, l.TryAs("troubled", c.arguments...))
		})
	}
	if _, err := os.Stat(l.Path("out.sig")); err == nil {
		t.Error("one of the failures wrote a signature")
	}
	for _, reason := range []string{"not granted", "no such key", "no such user", "passphrase"} {
		if !strings.Contains(l.Server.Log.String(), reason) {
			t.Errorf("the server's log does not tell %q:\n%s", reason, l.Server.Log)
		}
	}
}

// unusedAddress returns a loopback address on which nobody listens.
func unusedAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

func TestDisabledRevokedAndExpired(t *testing.T) {
	l := newLab(t, drivers()[0])
	l.CreateKey("release", "p256")
	l.Serve()
	l.Write("document", "x")
	sign := func() lab.Result { return l.TryAs("alice", "sign", "raw", "release", "document", "--force", "--quiet") }
	if r := sign(); r.Exit != 0 {
		t.Fatal(r.Stderr)
	}
	for _, c := range []struct {
		name  string
		close []string
		open  []string
		want  expectation
	}{
		{"key disabled", []string{"key", "disable", "release"}, []string{"key", "enable", "release"}, expectation{3, "key_disabled", `chancery: key "release": the key is disabled`}},
		{"user disabled", []string{"user", "disable", "alice"}, []string{"user", "enable", "alice"}, expectation{3, "server_closed", "registered and enabled"}},
		{"revoked", []string{"grant", "revoke", "release", "alice", "--yes"}, nil, expectation{3, "no_such_key", "granted"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l.Operator(c.close...)
			c.want.check(t, sign())
			if c.open == nil {
				return
			}
			l.Operator(c.open...)
			if r := sign(); r.Exit != 0 {
				t.Errorf("signing does not resume: %s", r.Stderr)
			}
		})
	}
	l.Grant("release", "--expires", "720h")
	if r := sign(); r.Exit != 0 {
		t.Errorf("the new grant does not work: %s", r.Stderr)
	}
}

func TestServerTroubles(t *testing.T) {
	l := newLab(t, drivers()[0])
	l.CreateKey("release", "p256")
	l.Write("wrong.pin", "not the PIN")
	good := l.Read("server.toml")

	for name, c := range map[string]struct {
		arguments []string
		want      expectation
	}{
		"wrong PIN":           {[]string{"token", "add", "again", "--driver", "soft", "--directory", "state/tokens/vault", "--pin-file", "wrong.pin", "--manager", "olga", "--passphrase-file", "olga.passphrase"}, expectation{3, "pin_incorrect", "PIN"}},
		"absent token":        {[]string{"token", "add", "gone", "--driver", "soft", "--directory", "nowhere", "--pin-file", "pin", "--manager", "olga", "--passphrase-file", "olga.passphrase"}, expectation{5, "token_absent", "absent"}},
		"wrong passphrase":    {[]string{"key", "create", "k", "--token", "vault", "--algorithm", "p256", "--passphrase-file", "alice.passphrase"}, expectation{3, "wrong_passphrase", "passphrase"}},
		"not a manager":       {[]string{"key", "create", "k", "--token", "vault", "--algorithm", "p256", "--by", "alice", "--passphrase-file", "alice.passphrase"}, expectation{3, "not_allowed", "manager"}},
		"taken name":          {[]string{"key", "create", "release", "--token", "vault", "--algorithm", "p256", "--passphrase-file", "olga.passphrase"}, expectation{1, "exists", "release"}},
		"unknown algorithm":   {[]string{"key", "create", "k", "--token", "vault", "--algorithm", "rsa1024", "--passphrase-file", "olga.passphrase"}, expectation{2, "usage", "rsa1024"}},
		"unknown module":      {[]string{"token", "probe", "--module", "/nonexistent/module.so"}, expectation{5, "token_absent", "module"}},
		"no terminal":         {[]string{"key", "create", "k", "--token", "vault", "--algorithm", "p256"}, expectation{2, "usage", "terminal"}},
		"unconfirmed removal": {[]string{"user", "delete", "alice"}, expectation{2, "confirmation_needed", "--yes"}},
	} {
		t.Run(name, func(t *testing.T) { c.want.check(t, l.TryOperator(c.arguments...)) })
	}

	t.Run("busy port", func(t *testing.T) {
		taken, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer taken.Close()
		l.Write("busy.toml", strings.ReplaceAll(l.Read("bridge.toml"), `clients = "127.0.0.1:0"`, `clients = "`+taken.Addr().String()+`"`))
		r := l.Run(l.Program("chancery-bridge"), "--config", "busy.toml", "serve")
		expectation{1, "port_busy", taken.Addr().String()}.check(t, r)
	})
	t.Run("server that may not register", func(t *testing.T) {
		l.Must(l.Program("chancery-server"), "pki", "issue", "server", "rogue.lab", "--host", "server.lab", "--out", "pki")
		l.Write("server.toml", strings.ReplaceAll(good, "server.lab", "rogue.lab"))
		l.Serve()
		l.Server.WaitLog("not allowed")
		l.Server.Terminate()
		l.Write("server.toml", good)
	})
	t.Run("full disk", func(t *testing.T) { l.fullDisk(t) })
}

// fullDisk lets the operators' command run into a limit on file sizes, which looks to it like a disk that takes no more.
func (l *scene) fullDisk(t *testing.T) {
	before := l.Operator("user", "list")
	r := l.Run("bash", "-c", `trap "" XFSZ; ulimit -f 1; exec "$0" --config server.toml user add latecomer`, l.Program("chancery-server"))
	if r.Exit != 1 || goish.MatchString(r.Stderr) {
		t.Errorf("exit %d:\n%s", r.Exit, r.Stderr)
	}
	if after := l.Operator("user", "list"); after != before {
		t.Errorf("the refused user is there:\n%s", after)
	}
	l.Operator("user", "add", "latecomer")
}
