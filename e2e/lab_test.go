// Package e2e tests the three real programs together: client, bridge and server
// as processes of their own, with tokens of every driver, and other people's
// programs to verify what they made.
package e2e

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"chancery/e2e/lab"
	"chancery/internal/testtool"
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
	var flags []string
	if raceEnabled {
		flags = append(flags, "-race")
		// Each of the programs would else linger for a second when it ends.
		os.Setenv("GORACE", "atexit_sleep_ms=0")
	}
	if err := errors.Join(lab.Build(dir, flags...), lab.BuildOperators(dir)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	binaries = dir
	return m.Run()
}

// scene is a lab with the steps that several tests share.
type scene struct{ *lab.Lab }

func drivers() []lab.Driver { return []lab.Driver{lab.Soft, lab.SoftHSM} }

// newLab makes a lab that ends with the test. Without SoftHSM a test that wants it ends as testtool.Missing says.
func newLab(t testing.TB, d lab.Driver) *scene {
	t.Helper()
	if _, err := softhsm.FindModule(); err != nil && d.Name == lab.SoftHSM.Name {
		testtool.Missing(t, "SoftHSM")
	}
	return &scene{lab.New(t, binaries, d)}
}
