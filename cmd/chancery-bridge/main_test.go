package main

import (
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"chancery/internal/scripttest"
	"chancery/pki"
)

func TestMain(m *testing.M) { scripttest.Main(m, program, run, nil) }

// TestScripts runs the real program, one behaviour a script.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"),
		Setup: func(env *testscript.Env) error {
			env.Setenv("REPOSITORY", scripttest.Repository(t))
			env.Setenv("GORACE", "atexit_sleep_ms=0") // the race detector sleeps a second at each program's end
			return writeCertificates(env.WorkDir)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"await": scripttest.Await, "exits": scripttest.Exits},
	})
}

func writeCertificates(directory string) error {
	ca, err := pki.NewCA(pki.CAOptions{})
	if err != nil {
		return err
	}
	if _, _, err := ca.Write(directory, "ca"); err != nil {
		return err
	}
	for kind, name := range map[pki.Kind]string{pki.Bridge: "bridge", pki.Server: "server", pki.Client: "client"} {
		request := pki.Request{Kind: kind, CommonName: name}
		if kind != pki.Client {
			request.Hosts = []string{"localhost"}
		}
		certificate, key, err := ca.Issue(request)
		if err != nil {
			return err
		}
		if _, _, err := pki.WritePair(directory, name, certificate, key); err != nil {
			return err
		}
	}
	return nil
}
