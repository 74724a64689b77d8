package main

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"chancery/access"
	"chancery/admin"
	"chancery/internal/certfile"
	"chancery/pki"
	"chancery/token"
	"chancery/token/soft"
	"chancery/tunnel/bridge"
	"chancery/users/sqlite"
)

// secrets are what scripts find in NAME.secret.
var secrets = map[string]string{
	"alice": "alice's own passphrase",
	"bob":   "bob's long passphrase",
	"carol": "carol's new passphrase",
	"wrong": "not anybody's passphrase",
	"short": "tiny words",
	"pin":   "the first PIN",
	"pin2":  "the second PIN",
}

// desk is a state directory with some things registered, made once and cheaply: users alice and
// bob, the soft token "desk" that alice manages, and on it the key "release" with alice as its manager.
type desk struct{ state string }

func newDesk(t *testing.T) *desk {
	t.Helper()
	d := &desk{state: filepath.Join(t.TempDir(), "state")}
	ctx := context.Background()
	store, err := sqlite.Open(ctx, filepath.Join(d.state, databaseName))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	office := &admin.Office{Store: store, Open: tokensConfig{}.open, Parameters: cheap}
	for _, name := range []string{"alice", "bob"} {
		if _, err := store.AddUser(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	location := filepath.Join(d.state, "tokens", "desk")
	if err := soft.Create(location, "desk", []byte(secrets["pin"])); err != nil {
		t.Fatal(err)
	}
	alice := admin.Actor{User: "alice", Passphrase: []byte(secrets["alice"])}
	spec := admin.TokenSpec{Name: "desk", Driver: driverSoft, Location: location}
	if _, err := office.AddToken(ctx, spec, []byte(secrets["pin"]), admin.Grantee{User: "alice", Passphrase: alice.Passphrase}); err != nil {
		t.Fatal(err)
	}
	if _, err := office.CreateKey(ctx, alice, admin.KeySpec{Name: "release", Token: "desk"}, token.P256); err != nil {
		t.Fatal(err)
	}
	return d
}

func cheap() access.Parameters {
	p := access.NewParameters()
	p.Time, p.MemoryKiB, p.Threads = access.MinTime, access.MinMemoryKiB, 1
	return p
}

func (d *desk) writeSecrets(directory string) error {
	for name, secret := range secrets {
		if err := os.WriteFile(filepath.Join(directory, name+".secret"), []byte(secret+"\n"), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// install copies the desk to the script's state directory. The database says where the token was
// made, so that is moved to the copy.
func (d *desk) install(ts *testscript.TestScript, _ bool, _ []string) {
	state := ts.MkAbs("state")
	ts.Check(os.RemoveAll(state))
	ts.Check(copyPrivate(d.state, state))
	ts.Check(relocate(filepath.Join(state, databaseName), filepath.Join(state, "tokens", "desk")))
}

func copyPrivate(from, to string) error {
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		return err
	}
	return filepath.WalkDir(to, func(path string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			return os.Chmod(path, 0o700)
		}
		return os.Chmod(path, 0o600)
	})
}

func relocate(database, location string) error {
	db, err := sql.Open("sqlite", database)
	if err != nil {
		return err
	}
	defer db.Close()
	_, err = db.Exec(`UPDATE tokens SET location = ?`, location)
	return err
}

// startBridge runs a bridge with certificates of its own in the script's directory, and sets $BRIDGE to
// the address for servers. It ends with the script.
func startBridge(ts *testscript.TestScript, _ bool, _ []string) {
	ts.Check(writeCertificates(ts.MkAbs(".")))
	identity, _, err := certfile.Load(certfile.Files{CA: ts.MkAbs("ca.crt"), Certificate: ts.MkAbs("bridge.crt"), Key: ts.MkAbs("bridge.key")})
	ts.Check(err)
	b, err := bridge.New(bridge.Config{TLS: identity.BridgeServer(), Servers: []string{"server"}})
	ts.Check(err)
	clients, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	servers, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.Serve(ctx, clients, servers) }()
	ts.Defer(func() {
		cancel()
		ts.Check(<-ended)
	})
	ts.Setenv("BRIDGE", fmt.Sprintf("localhost:%d", servers.Addr().(*net.TCPAddr).Port))
}

func writeCertificates(directory string) error {
	ca, err := pki.NewCA(pki.CAOptions{})
	if err != nil {
		return err
	}
	if _, _, err := ca.Write(directory, "ca"); err != nil {
		return err
	}
	for kind, name := range map[pki.Kind]string{pki.Bridge: "bridge", pki.Server: "server"} {
		certificate, key, err := ca.Issue(pki.Request{Kind: kind, CommonName: name, Hosts: []string{"localhost"}})
		if err != nil {
			return err
		}
		if _, _, err := pki.WritePair(directory, name, certificate, key); err != nil {
			return err
		}
	}
	return nil
}

// enrol USER FILE prints the enrolment of a user with the passphrase in the file, as the client does.
func enrol() {
	passphrase, err := os.ReadFile(os.Args[2])
	if err == nil {
		var key *access.Key
		if key, err = access.DeriveKey(bytes.TrimSpace(passphrase), cheap()); err == nil {
			fmt.Println(access.Enrolment{User: os.Args[1], Key: key.Public()})
			os.Exit(0)
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
