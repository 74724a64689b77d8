// Package packaging tests what operators install: the packages as dpkg and rpm
// see them, the units as systemd-analyze judges them, and the programs as they
// come out of the packages.
package packaging

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"chancery/internal/testtool"
)

// packageDirectory is where the packages are built, once for all tests.
var packageDirectory string

func TestMain(m *testing.M) { os.Exit(runInDirectory(m)) }

func runInDirectory(m *testing.M) int {
	directory, err := os.MkdirTemp("", "chancery-packages-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(directory)
	packageDirectory = directory
	return m.Run()
}

var buildPackages = sync.OnceValues(func() ([]byte, error) {
	return exec.Command("./build", packageDirectory).CombinedOutput()
})

var programs = []string{"chancery", "chancery-bridge", "chancery-server"}

// built returns the paths of the three packages of a format, in the order of programs.
func built(t *testing.T, format string) []string {
	t.Helper()
	testtool.Need(t, "git")
	if output, err := buildPackages(); err != nil {
		t.Fatalf("packaging/build: %v\n%s", err, output)
	}
	var paths []string
	for _, program := range programs {
		found, err := filepath.Glob(filepath.Join(packageDirectory, program+`[_\-][0-9]*.`+format))
		if err != nil || len(found) != 1 {
			t.Fatalf("%s as .%s: %q, %v", program, format, found, err)
		}
		paths = append(paths, found[0])
	}
	return paths
}

// unpacked returns a directory with the content of all three packages, as any user can unpack them.
func unpacked(t *testing.T) string {
	t.Helper()
	testtool.Need(t, "dpkg-deb")
	root := t.TempDir()
	for _, path := range built(t, "deb") {
		run(t, "dpkg-deb", "-x", path, root)
	}
	return root
}

// run calls a program that has to be there and to succeed, and returns what it prints.
func run(t *testing.T, program string, args ...string) string {
	t.Helper()
	output, err := exec.Command(testtool.Need(t, program), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", program, args, err, output)
	}
	return string(output)
}

// needRoot ends a test that has to give files to other users, for anybody but root.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		testtool.Missing(t, "the right to install packages (root)")
	}
}
