// Package e2e tests the three real programs together: client, bridge and server
// as processes of their own, with tokens of every driver, and other people's
// programs to verify what they made.
package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery/softhsm"
)

// binaries is the directory of the three programs, built once for all tests.
var binaries string

func TestMain(m *testing.M) {
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "chancery-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	arguments := []string{"build", "-o", dir + "/"}
	if raceEnabled {
		arguments = append(arguments, "-race")
	}
	build := exec.Command("go", append(arguments, "chancery/cmd/...")...)
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "build the programs:", err)
		return 1
	}
	binaries = dir
	return m.Run()
}

// Secrets of the lab. They guard nothing outside a test's own directory.
const (
	tokenPIN        = "lab-pin-2718"
	olgaPassphrase  = "olga guards the vault"
	alicePassphrase = "alice signs releases"
)

// lab is one bridge and one server with a token, two users and their files:
// olga manages the token, alice signs. Nothing runs until serve.
type lab struct {
	testing.TB
	dir            string
	environment    []string
	bridge, server *process
	clients        string // the bridge's address for clients
	servers        string // and for servers
}

// driver says where a lab keeps its keys.
type driver struct {
	name string
	// add registers the token "vault" with olga as its manager.
	add func(*lab)
}

func drivers() []driver {
	return []driver{
		{"soft", func(l *lab) {
			l.operator("token", "add", "vault", "--driver", "soft", "--create", "--pin-file", "pin", "--manager", "olga", "--passphrase-file", "olga.passphrase")
		}},
		{"softhsm", func(l *lab) {
			token := softhsm.ForTest(l.TB)
			l.environment = append(l.environment, token.Env()...)
			l.write("pin", string(token.PIN))
			l.operator("token", "add", "vault", "--driver", "pkcs11", "--module", token.Store.Module, "--serial", token.Serial, "--pin-file", "pin", "--manager", "olga", "--passphrase-file", "olga.passphrase")
		}},
	}
}

// newLab makes certificates, configurations and users, starts the bridge, and
// registers the token.
func newLab(t testing.TB, d driver) *lab {
	t.Helper()
	l := &lab{TB: t, dir: t.TempDir()}
	for _, words := range []string{
		"init pki",
		"issue bridge bridge.lab --host localhost --out pki",
		"issue server server.lab --host server.lab --out pki",
		"issue client olga --out pki",
		"issue client alice --out pki",
	} {
		must(t, l.dir, nil, l.program("chancery-server"), append([]string{"pki"}, strings.Fields(words)...)...)
	}
	l.write("pin", tokenPIN)
	l.write("olga.passphrase", olgaPassphrase)
	l.write("alice.passphrase", alicePassphrase)
	l.startBridge("127.0.0.1:0", "127.0.0.1:0")
	l.write("server.toml", l.serverConfig())
	l.write("olga.toml", l.clientConfig("olga"))
	l.write("alice.toml", l.clientConfig("alice"))
	l.operator("user", "add", "olga")
	l.operator("user", "add", "alice")
	d.add(l)
	return l
}

// serve starts the server and waits until it waits at the bridge.
func (l *lab) serve() {
	l.Helper()
	l.server = start(l.TB, l.command("chancery-server", "--config", "server.toml", "serve"))
}

func (l *lab) startBridge(clients, servers string) {
	l.Helper()
	l.write("bridge.toml", fmt.Sprintf(`servers = ["server.lab"]
[listen]
clients = %q
servers = %q
[tls]
ca_certificate = %q
certificate = %q
private_key = %q
[timeouts]
drain = "2s"
`, clients, servers, l.path("pki/ca.crt"), l.path("pki/bridge.lab.crt"), l.path("pki/bridge.lab.key")))
	l.bridge = start(l.TB, l.command("chancery-bridge", "--config", "bridge.toml", "serve"))
	addresses := l.bridge.waitLog(`msg=listening clients=(\S+) servers=(\S+)`)
	l.clients, l.servers = addresses[1], addresses[2]
}

func (l *lab) serverConfig() string {
	return fmt.Sprintf(`[bridge]
address = %q
hostname = "localhost"
[tls]
ca_certificate = %q
certificate = %q
private_key = %q
[state]
directory = %q
[log]
level = "debug"
`, l.servers, l.path("pki/ca.crt"), l.path("pki/server.lab.crt"), l.path("pki/server.lab.key"), l.path("state"))
}

func (l *lab) clientConfig(user string) string {
	return fmt.Sprintf(`[bridge]
address = %q
hostname = "localhost"
[server]
hostname = "server.lab"
[tls]
ca_certificate = %q
certificate = %q
private_key = %q
`, l.clients, l.path("pki/ca.crt"), l.path("pki/"+user+".crt"), l.path("pki/"+user+".key"))
}

// createKey makes a key, grants it to alice by enrolment, and tells her client where her passphrase is.
func (l *lab) createKey(name, algorithm string, extra ...string) {
	l.Helper()
	l.operator(append([]string{"key", "create", name, "--token", "vault", "--algorithm", algorithm, "--passphrase-file", "olga.passphrase"}, extra...)...)
	l.grant(name)
}

func (l *lab) grant(key string, extra ...string) {
	l.Helper()
	l.write("alice.enrolment", must(l.TB, l.dir, l.environment, l.program("chancery"), "--config", "alice.toml", "enroll", "--passphrase-file", "alice.passphrase"))
	l.operator(append([]string{"grant", "add", key, "alice", "--enrolment", "alice.enrolment", "--by", "olga", "--passphrase-file", "olga.passphrase"}, extra...)...)
	l.knowPassphrase("alice", key)
}

// knowPassphrase tells a user's client which file opens a key.
func (l *lab) knowPassphrase(user, key string) {
	l.Helper()
	configuration, err := os.ReadFile(l.path(user + ".toml"))
	if err != nil {
		l.Fatal(err)
	}
	table := fmt.Sprintf("[keys.%q]\n", key)
	if strings.Contains(string(configuration), table) {
		return
	}
	l.write(user+".toml", fmt.Sprintf("%s%spassphrase_file = %q\n", configuration, table, l.path(user+".passphrase")))
}

// operator runs chancery-server, which has to succeed.
func (l *lab) operator(args ...string) string {
	l.Helper()
	return must(l.TB, l.dir, l.environment, l.program("chancery-server"), append([]string{"--config", "server.toml"}, args...)...)
}

// tryOperator runs chancery-server and returns what came of it.
func (l *lab) tryOperator(args ...string) result {
	l.Helper()
	return run(l.TB, l.dir, l.environment, l.program("chancery-server"), append([]string{"--config", "server.toml"}, args...)...)
}

// alice runs the client as alice; it has to succeed.
func (l *lab) alice(args ...string) string {
	l.Helper()
	return must(l.TB, l.dir, l.environment, l.program("chancery"), append([]string{"--config", "alice.toml"}, args...)...)
}

// tryAs runs the client with a configuration file and returns what came of it.
func (l *lab) tryAs(user string, args ...string) result {
	l.Helper()
	return run(l.TB, l.dir, l.environment, l.program("chancery"), append([]string{"--config", user + ".toml"}, args...)...)
}

// eventually waits until the condition holds.
func (l *lab) eventually(condition func() bool, otherwise string) {
	l.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			l.Fatal(otherwise)
		}
	}
}

func (l *lab) command(program string, args ...string) *exec.Cmd {
	command := exec.Command(l.program(program), args...)
	command.Dir = l.dir
	command.Env = append(os.Environ(), l.environment...)
	return command
}

func (l *lab) program(name string) string { return filepath.Join(binaries, name) }

func (l *lab) path(name string) string { return filepath.Join(l.dir, name) }

func (l *lab) write(name, text string) {
	l.Helper()
	if err := os.WriteFile(l.path(name), []byte(text), 0o600); err != nil {
		l.Fatal(err)
	}
}

func (l *lab) read(name string) string {
	l.Helper()
	text, err := os.ReadFile(l.path(name))
	if err != nil {
		l.Fatal(err)
	}
	return string(text)
}
