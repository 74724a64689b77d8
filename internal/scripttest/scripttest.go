// Package scripttest has what the tests of the three programs share: the commands of their scripts, and a person who
// types on a terminal.
package scripttest

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
)

// patience bounds each wait for a program.
const patience = 30 * time.Second

// Repository returns the root of the repository, for the test of a program below cmd.
func Repository(t testing.TB) string {
	t.Helper()
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// Exits is the command "exits CODE PROGRAM [ARGS]": it runs a program that must end with the exit code.
func Exits(ts *testscript.TestScript, _ bool, args []string) {
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

// Await is the command "await FILE PATTERN [NAME]": it waits until the file matches, and puts the first group into $NAME.
func Await(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: await file pattern [variable]")
	}
	pattern := regexp.MustCompile(args[1])
	var content []byte
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		content, _ = os.ReadFile(ts.MkAbs(args[0])) // it may not be there yet
		match := pattern.FindSubmatch(content)
		if match == nil {
			continue
		}
		if len(args) == 3 {
			ts.Setenv(args[2], string(match[1]))
		}
		return
	}
	ts.Fatalf("nothing in %s matches %s:\n%s", args[0], args[1], content)
}
