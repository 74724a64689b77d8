//go:build unix

package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"chancery/artifact/openpgp"
	"chancery/client/clienttest"
	"chancery/internal/scripttest"
	"chancery/internal/testtool"
	"chancery/pki"
	"chancery/tunnel"
	"chancery/tunnel/tunneltest"
	"chancery/tunnel/wire"
)

const passphrase = "correct horse battery"

func TestMain(m *testing.M) { scripttest.Main(m, program, run, nil) }

// TestScripts runs the real program against a bridge and a server of the
// test's own, one behaviour a script.
func TestScripts(t *testing.T) {
	for _, tool := range []string{"openssl", "gpg", "ssh-keygen"} {
		testtool.Need(t, tool)
	}
	signers := newSigners(t)
	authority := tunneltest.NewAuthority(t)
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			return setUp(t, env, authority, signers)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": scripttest.Exits, "server": steer, "asked": asked, "signed": signed, "lines": lines, "many": many,
		},
	})
}

// newSigners makes the keys that all scripts share.
func newSigners(t *testing.T) map[string]crypto.Signer {
	t.Helper()
	signers := make(map[string]crypto.Signer)
	add := func(name string, key crypto.Signer, err error) {
		if err != nil {
			t.Fatal(err)
		}
		signers[name] = key
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	add("release", rsaKey, err)
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	add("p256", p256, err)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	add("p384", p384, err)
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	add("ed", edKey, err)
	return signers
}

// world is what one script meets.
type world struct {
	*clienttest.Server
	interrupts atomic.Int32
	busy       atomic.Int32
	forge      atomic.Bool
	silent     atomic.Bool
	refusal    atomic.Value // wire.Code
	settings   *tunnel.Config
	listener   *tunnel.Listener
}

// listen has the server speak chancery/1, or plain version 2, from the next connection on.
func (w *world) listen(protocols ...string) {
	w.close()
	settings := *w.settings
	settings.Inner = settings.Inner.Clone()
	settings.Inner.NextProtos = protocols
	w.listener = tunnel.Listen(context.Background(), &settings, 4)
	go w.Accept(context.Background(), w.listener)
}

func (w *world) close() {
	if w.listener != nil {
		_ = w.listener.Close()
	}
}

func setUp(t *testing.T, env *testscript.Env, authority *tunneltest.Authority, signers map[string]crypto.Signer) error {
	w := &world{Server: &clienttest.Server{User: "alice"}}
	w.Hook = w.misbehave
	for _, name := range []string{"release", "p256", "p384", "ed"} {
		key := w.AddKey(t, name, passphrase, signers[name])
		if name == "p384" {
			continue // it stays without a certificate
		}
		text, fingerprint, err := openpgp.NewCertificate(signers[name], openpgp.CertificateOptions{
			UserID: name + " <" + name + "@example.com>", Created: time.Now().Add(-time.Hour),
		})
		if err != nil {
			return err
		}
		key.Certificates = []wire.Certificate{{Text: text, Type: wire.CertificatePGP, Fingerprint: fingerprint, Name: name + "-openpgp"}}
	}
	b := authority.StartBridge([]string{tunneltest.ServerHost}, nil)
	w.settings = authority.Server(b, tunneltest.ServerHost)
	w.listen(tunnel.Protocol)
	env.Defer(func() {
		w.close()
		_ = b.Stop()
	})
	env.Values["world"] = w
	env.Setenv("HOME", env.WorkDir)
	env.Setenv("GNUPGHOME", filepath.Join(env.WorkDir, "gnupg"))
	env.Setenv("CHANCERY_CLIENT_BRIDGE_ADDRESS", b.ClientAddr)
	return writeFiles(env, authority, b.ClientAddr)
}

// writeFiles puts certificates and a configuration where the program looks for it.
func writeFiles(env *testscript.Env, authority *tunneltest.Authority, bridge string) error {
	certificate, key, err := authority.Issue(pki.Request{Kind: pki.Client, CommonName: "alice"})
	if err != nil {
		return err
	}
	if _, _, err := pki.WritePair(env.WorkDir, "client", certificate, key); err != nil {
		return err
	}
	config := fmt.Sprintf(`[bridge]
address = %q
hostname = %q
[server]
hostname = %q
[tls]
ca_certificate = "ca.crt"
certificate = "client.crt"
private_key = "client.key"
`, bridge, tunneltest.BridgeHost, tunneltest.ServerHost)
	home := filepath.Join(env.WorkDir, ".config", "chancery")
	if err := errors.Join(os.MkdirAll(home, 0o755), os.Mkdir(filepath.Join(env.WorkDir, "gnupg"), 0o700)); err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(env.WorkDir, "ca.crt"), authority.CertificatePEM(), 0o644),
		os.WriteFile(filepath.Join(home, "client.toml"), []byte(config), 0o644),
		os.WriteFile(filepath.Join(env.WorkDir, "pass"), []byte(passphrase+"\n"), 0o600),
	)
}

// misbehave is the server's hook: it does what the script's last "server" said.
func (w *world) misbehave(s *clienttest.Session, r *wire.Request) wire.ResponseBody {
	if r.Body.Name() != "sign" && r.Body.Name() != "sign_all" {
		return nil
	}
	if code, ok := w.refusal.Load().(wire.Code); ok && code != "" {
		return wire.NewError(code)
	}
	if w.silent.Load() {
		s.Answer(r) // signed, and nobody learns of it
		return clienttest.Silence
	}
	if w.interrupts.Add(-1) >= 0 {
		_ = s.Close()
		return clienttest.Silence
	}
	if w.busy.Add(-1) >= 0 {
		return &wire.Error{Code: wire.CodeBusy, Message: "busy", Retry: wire.RetryLater, RetryAfter: time.Millisecond}
	}
	if w.forge.Load() {
		return &wire.SignReply{Signature: wire.Signature{Tag: wire.TagP256, Bytes: make([]byte, 70)}}
	}
	return nil
}

// steer is: server interrupt N | busy N | forge | silent | refuse CODE | version2 | chancery1.
func steer(ts *testscript.TestScript, _ bool, args []string) {
	w := ts.Value("world").(*world)
	number := 0
	if len(args) > 1 {
		number, _ = strconv.Atoi(args[1])
	}
	switch args[0] {
	case "interrupt":
		w.interrupts.Store(int32(number))
	case "busy":
		w.busy.Store(int32(number))
	case "forge":
		w.forge.Store(true)
	case "silent":
		w.silent.Store(true)
	case "refuse":
		w.refusal.Store(wire.Code(args[1]))
	case "version2":
		w.listen()
	case "chancery1":
		w.listen(tunnel.Protocol)
	default:
		ts.Fatalf("server %s?", args[0])
	}
}

// asked NAME N wants the server to have had so many requests of this name.
func asked(ts *testscript.TestScript, _ bool, args []string) {
	w := ts.Value("world").(*world)
	if got := strconv.Itoa(w.Count(args[0])); got != args[1] {
		ts.Fatalf("%s requests: %s, not %s", args[0], got, args[1])
	}
}

// signed N wants the server to have made so many signatures.
func signed(ts *testscript.TestScript, _ bool, args []string) {
	w := ts.Value("world").(*world)
	if got := strconv.Itoa(w.Signed()); got != args[0] {
		ts.Fatalf("signatures: %s, not %s", got, args[0])
	}
}

// lines FILE N wants a file of so many lines.
func lines(ts *testscript.TestScript, _ bool, args []string) {
	count := 0
	for _, b := range []byte(ts.ReadFile(args[0])) {
		if b == '\n' {
			count++
		}
	}
	if strconv.Itoa(count) != args[1] {
		ts.Fatalf("%s has %d lines, not %s", args[0], count, args[1])
	}
}

// many DIRECTORY N makes so many different files.
func many(ts *testscript.TestScript, _ bool, args []string) {
	count, err := strconv.Atoi(args[1])
	ts.Check(err)
	ts.Check(os.MkdirAll(ts.MkAbs(args[0]), 0o755))
	for i := range count {
		ts.Check(os.WriteFile(filepath.Join(ts.MkAbs(args[0]), fmt.Sprintf("%04d", i)), fmt.Appendf(nil, "file %d\n", i), 0o644))
	}
}
