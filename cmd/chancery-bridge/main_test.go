package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"chancery/pki"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		program: func() {
			// Away from the developer's terminal: only a script's own may be asked.
			_, _ = unix.Setsid()
			os.Exit(run())
		},
	})
}

// TestScripts runs the real program, one behaviour a script.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"),
		Setup: func(env *testscript.Env) error {
			env.Setenv("REPOSITORY", repository(t))
			env.Setenv("GORACE", "atexit_sleep_ms=0") // the race detector sleeps a second at each program's end
			return writeCertificates(env.WorkDir)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"await": await, "exits": exits},
	})
}

func repository(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	return root
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

// await FILE PATTERN [NAME] waits until a line of the file matches, and puts the first group into $NAME.
func await(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: await file pattern [variable]")
	}
	pattern := regexp.MustCompile(args[1])
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		content, err := os.ReadFile(ts.MkAbs(args[0]))
		if err != nil {
			continue
		}
		match := pattern.FindSubmatch(content)
		if match == nil {
			continue
		}
		if len(args) == 3 {
			ts.Setenv(args[2], string(match[1]))
		}
		return
	}
	ts.Fatalf("no line of %s matches %s", args[0], args[1])
}

// exits CODE PROGRAM [ARGS] runs a program that must end with the exit code.
func exits(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: exits code program [arguments]")
	}
	code := 0
	err := ts.Exec(args[1], args[2:]...)
	var ended *exec.ExitError
	switch {
	case errors.As(err, &ended):
		code = ended.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("exit code %d, not %s", code, args[0])
	}
}
