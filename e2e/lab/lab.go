// Package lab runs the three real programs on loopback, each a process of its
// own: it makes certificates, configurations, a token, two users and their
// keys. End-to-end tests use it, and so does the benchmark, which is no test.
package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"chancery/internal/certfile"
	"chancery/softhsm"
	"chancery/tunnel"
)

// Patience bounds every wait; nothing here measures how long anything took.
const Patience = 30 * time.Second

// Secrets of the lab. They guard nothing outside its own directory.
const (
	TokenPIN        = "lab-pin-2718"
	OlgaPassphrase  = "olga guards the vault"
	AlicePassphrase = "alice signs releases"
)

// TB is the part of testing.TB that a lab needs. Fatal and Fatalf must not return.
type TB interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
	Logf(format string, args ...any)
	Failed() bool
	Cleanup(func())
	TempDir() string
}

// Build compiles the three programs into dir, with flags of `go build`. It must
// run inside the project's module.
func Build(dir string, flags ...string) error {
	arguments := append([]string{"build", "-o", dir + "/"}, flags...)
	build := exec.Command("go", append(arguments, "chancery/cmd/...")...)
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("lab: build the programs: %w", err)
	}
	return nil
}

// operators is the directory, below that of the programs, of a chancery-server for operators' commands.
const operators = "operators"

// BuildOperators compiles a second chancery-server, without the flags of Build, for the operators' commands.
// Under the race detector each of them would take a second, and a test gives dozens; their
// own tests in cmd/chancery-server run under it.
func BuildOperators(dir string) error {
	build := exec.Command("go", "build", "-o", filepath.Join(dir, operators)+"/", "chancery/cmd/chancery-server")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("lab: build the operators' program: %w", err)
	}
	return nil
}

// operatorProgram is the operators' own build where there is one.
func (l *Lab) operatorProgram() string {
	if own := filepath.Join(l.Programs, operators, "chancery-server"); isFile(own) {
		return own
	}
	return l.Program("chancery-server")
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// Lab is one bridge and one server with a token, two users and their files:
// olga manages the token, alice signs. The server does not run until Serve.
type Lab struct {
	TB
	Dir            string   // the working directory of every program
	Programs       string   // the directory of the three programs
	Environment    []string // what every program gets beside this process's own; it may override the configuration
	Bridge, Server *Process
	Clients        string         // the bridge's address for clients
	Servers        string         // and for servers
	HSM            *softhsm.Token // with the driver SoftHSM
}

// Driver says where a lab keeps its keys.
type Driver struct {
	Name        string
	Environment []string // for every program of the lab
	// Add registers the token "vault" with olga as its manager.
	Add func(*Lab)
}

// Soft keeps keys in files.
var Soft = Driver{Name: "soft", Add: func(l *Lab) {
	l.Operator("token", "add", "vault", "--driver", "soft", "--create", "--pin-file", "pin", "--manager", "olga", "--passphrase-file", "olga.passphrase")
}}

// SoftHSM keeps keys in a SoftHSM token of the lab's own, which the caller must
// know to be installed (softhsm.FindModule).
var SoftHSM = Driver{Name: "softhsm", Add: func(l *Lab) {
	l.restoreAfterwards("SOFTHSM2_CONF")
	token, err := softhsm.New(l.TempDir(), "chancery lab", []byte(TokenPIN))
	if err != nil {
		l.Fatal(err)
	}
	l.HSM = token
	l.Environment = append(l.Environment, token.Env()...)
	l.Operator("token", "add", "vault", "--driver", "pkcs11", "--module", token.Store.Module, "--serial", token.Serial, "--pin-file", "pin", "--manager", "olga", "--passphrase-file", "olga.passphrase")
}}

// New makes certificates, configurations and users, starts the bridge, and
// registers the token. Everything ends with t.
func New(t TB, programs string, d Driver) *Lab {
	t.Helper()
	l := &Lab{TB: t, Dir: t.TempDir(), Programs: programs, Environment: slices.Clone(d.Environment)}
	for _, words := range []string{
		"init pki",
		"issue bridge bridge.lab --host localhost --out pki",
		"issue server server.lab --host server.lab --out pki",
		"issue client olga --out pki",
		"issue client alice --out pki",
	} {
		l.Must(l.operatorProgram(), append([]string{"pki"}, strings.Fields(words)...)...)
	}
	l.Write("pin", TokenPIN)
	l.Write("olga.passphrase", OlgaPassphrase)
	l.Write("alice.passphrase", AlicePassphrase)
	l.StartBridge("127.0.0.1:0", "127.0.0.1:0")
	l.Write("server.toml", l.serverConfig())
	l.Write("olga.toml", l.clientConfig("olga"))
	l.Write("alice.toml", l.clientConfig("alice"))
	l.Operator("user", "add", "olga")
	l.Operator("user", "add", "alice")
	d.Add(l)
	return l
}

// HSMDirectory is where the driver SoftHSM, and others over it, keep the token's files.
func (l *Lab) HSMDirectory() string { return filepath.Join(filepath.Dir(l.HSM.Store.Config), "tokens") }

func (l *Lab) restoreAfterwards(variable string) {
	before, was := os.LookupEnv(variable)
	l.Cleanup(func() {
		if was {
			os.Setenv(variable, before)
			return
		}
		os.Unsetenv(variable)
	})
}

// Serve starts the server. Requests that come before it waits at the bridge wait for it there.
func (l *Lab) Serve() {
	l.Helper()
	l.Server = Start(l.TB, l.Command("chancery-server", "--config", "server.toml", "serve"))
}

// StartBridge starts the bridge on the two addresses; port 0 picks free ones.
func (l *Lab) StartBridge(clients, servers string) {
	l.Helper()
	l.Write("bridge.toml", fmt.Sprintf(`servers = ["server.lab"]
[listen]
clients = %q
servers = %q
[tls]
ca_certificate = %q
certificate = %q
private_key = %q
[timeouts]
drain = "2s"
`, clients, servers, l.Path("pki/ca.crt"), l.Path("pki/bridge.lab.crt"), l.Path("pki/bridge.lab.key")))
	l.Bridge = Start(l.TB, l.Command("chancery-bridge", "--config", "bridge.toml", "serve"))
	addresses := l.Bridge.WaitLog(`msg=listening clients=(\S+) servers=(\S+)`)
	l.Clients, l.Servers = addresses[1], addresses[2]
}

func (l *Lab) serverConfig() string {
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
`, l.Servers, l.Path("pki/ca.crt"), l.Path("pki/server.lab.crt"), l.Path("pki/server.lab.key"), l.Path("state"))
}

func (l *Lab) clientConfig(user string) string {
	return fmt.Sprintf(`[bridge]
address = %q
hostname = "localhost"
[server]
hostname = "server.lab"
[tls]
ca_certificate = %q
certificate = %q
private_key = %q
`, l.Clients, l.Path("pki/ca.crt"), l.Path("pki/"+user+".crt"), l.Path("pki/"+user+".key"))
}

// Tunnel returns what a client inside this process needs to reach the server as the user.
func (l *Lab) Tunnel(user string) *tunnel.Config {
	l.Helper()
	identity, _, err := certfile.Load(certfile.Files{CA: l.Path("pki/ca.crt"), Certificate: l.Path("pki/" + user + ".crt"), Key: l.Path("pki/" + user + ".key")})
	if err != nil {
		l.Fatal(err)
	}
	return &tunnel.Config{Bridge: l.Clients, Outer: identity.OuterDialer("localhost"), Inner: identity.InnerDialer("server.lab")}
}

// CreateKey makes a key, grants it to alice by enrolment, and tells her client where her passphrase is.
func (l *Lab) CreateKey(name, algorithm string, extra ...string) {
	l.Helper()
	l.Operator(append([]string{"key", "create", name, "--token", "vault", "--algorithm", algorithm, "--passphrase-file", "olga.passphrase"}, extra...)...)
	l.Grant(name)
}

// Grant lets olga grant the key to alice.
func (l *Lab) Grant(key string, extra ...string) {
	l.Helper()
	l.Write("alice.enrolment", l.Alice("enroll", "--passphrase-file", "alice.passphrase"))
	l.Operator(append([]string{"grant", "add", key, "alice", "--enrolment", "alice.enrolment", "--by", "olga", "--passphrase-file", "olga.passphrase"}, extra...)...)
	l.knowPassphrase("alice", key)
}

// knowPassphrase tells a user's client which file opens a key.
func (l *Lab) knowPassphrase(user, key string) {
	l.Helper()
	configuration := l.Read(user + ".toml")
	table := fmt.Sprintf("[keys.%q]\n", key)
	if strings.Contains(configuration, table) {
		return
	}
	l.Write(user+".toml", fmt.Sprintf("%s%spassphrase_file = %q\n", configuration, table, l.Path(user+".passphrase")))
}

// Operator runs chancery-server, which has to succeed, and returns its output.
func (l *Lab) Operator(args ...string) string {
	l.Helper()
	return l.Must(l.operatorProgram(), append([]string{"--config", "server.toml"}, args...)...)
}

// TryOperator runs chancery-server and returns what came of it.
func (l *Lab) TryOperator(args ...string) Result {
	l.Helper()
	return l.Run(l.operatorProgram(), append([]string{"--config", "server.toml"}, args...)...)
}

// Alice runs the client as alice; it has to succeed. Its output is returned.
func (l *Lab) Alice(args ...string) string {
	l.Helper()
	return l.Must(l.Program("chancery"), append([]string{"--config", "alice.toml"}, args...)...)
}

// TryAs runs the client with a user's configuration file and returns what came of it.
func (l *Lab) TryAs(user string, args ...string) Result {
	l.Helper()
	return l.Run(l.Program("chancery"), append([]string{"--config", user + ".toml"}, args...)...)
}

// Eventually waits until the condition holds.
func (l *Lab) Eventually(condition func() bool, otherwise string) {
	l.Helper()
	for deadline := time.Now().Add(Patience); !condition(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			l.Fatal(otherwise)
		}
	}
}

// Command prepares one of the three programs to run in the lab.
func (l *Lab) Command(program string, args ...string) *exec.Cmd {
	command := exec.Command(l.Program(program), args...)
	command.Dir = l.Dir
	command.Env = append(os.Environ(), l.Environment...)
	return command
}

// Run calls any program in the lab's directory and returns what came of it.
func (l *Lab) Run(program string, args ...string) Result {
	l.Helper()
	return Run(l.TB, Call{Dir: l.Dir, Environment: l.Environment, Program: program, Args: args})
}

// Must calls any program in the lab's directory, which has to succeed, and returns its standard output.
func (l *Lab) Must(program string, args ...string) string {
	l.Helper()
	r := l.Run(program, args...)
	if r.Exit != 0 {
		l.Fatalf("%s %s: exit %d\n%s%s", program, strings.Join(args, " "), r.Exit, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// With returns the same lab whose programs get more environment.
func (l *Lab) With(environment ...string) *Lab {
	more := *l
	more.Environment = slices.Concat(l.Environment, environment)
	return &more
}

// Program returns the path of one of the three programs.
func (l *Lab) Program(name string) string { return filepath.Join(l.Programs, name) }

// Path returns the absolute path of a file of the lab.
func (l *Lab) Path(name string) string { return filepath.Join(l.Dir, name) }

// Write replaces a file of the lab.
func (l *Lab) Write(name, text string) {
	l.Helper()
	if err := os.WriteFile(l.Path(name), []byte(text), 0o600); err != nil {
		l.Fatal(err)
	}
}

// Read returns the text of a file of the lab.
func (l *Lab) Read(name string) string {
	l.Helper()
	text, err := os.ReadFile(l.Path(name))
	if err != nil {
		l.Fatal(err)
	}
	return string(text)
}
