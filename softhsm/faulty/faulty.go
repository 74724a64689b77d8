// Package faulty builds a PKCS#11 module that wraps SoftHSM's and misbehaves on
// command, for tests of what a broken token does to a service.
//
// The module knows where SoftHSM is, and has its control file beside it: a process
// needs nothing but Module.Path in its configuration and SOFTHSM2_CONF in its
// environment, as for SoftHSM itself.
package faulty

import (
	_ "embed"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"chancery/internal/testtool"
	"chancery/softhsm"
)

//go:embed module/faulty.c
var source []byte

// Module is a faulty module on disk. It behaves well until Set.
type Module struct {
	Path    string // of the PKCS#11 library
	Control string // path of its control file, which a process with the module should be able to write
}

// Build makes a module of its own for the test, with the C compiler. Without
// one, or without SoftHSM, the test ends as testtool.Missing says.
func Build(t testing.TB) Module {
	t.Helper()
	library.Lock()
	defer library.Unlock()
	if library.data == nil {
		library.data = compiled(t, installed(t))
	}
	return place(t, library.data)
}

// BuildApart is Build with a copy of SoftHSM's module for this one alone. SoftHSM's state belongs to the module, so
// that a process can have several of these open at once.
func BuildApart(t testing.TB) Module {
	t.Helper()
	original, err := os.ReadFile(installed(t))
	if err != nil {
		t.Fatal(err)
	}
	apart := filepath.Join(t.TempDir(), "softhsm.so")
	if err := os.WriteFile(apart, original, 0o600); err != nil {
		t.Fatal(err)
	}
	return place(t, compiled(t, apart))
}

// place writes a module and its control file to a directory of their own.
func place(t testing.TB, library []byte) Module {
	t.Helper()
	path := filepath.Join(t.TempDir(), "faulty.so")
	m := Module{Path: path, Control: path + ".control"}
	for path, data := range map[string][]byte{m.Path: library, m.Control: make([]byte, controlSize)} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// library is what the compiler made of source in this process, over the installed module.
var library struct {
	sync.Mutex
	data []byte
}

func installed(t testing.TB) string {
	t.Helper()
	path, err := softhsm.FindModule()
	if err != nil {
		testtool.Missing(t, "SoftHSM")
	}
	return path
}

// compiled makes the library that wraps a module.
func compiled(t testing.TB, wrapped string) []byte {
	t.Helper()
	compiler := testtool.Need(t, "cc")
	dir := t.TempDir()
	input, output := filepath.Join(dir, "faulty.c"), filepath.Join(dir, "faulty.so")
	if err := os.WriteFile(input, source, 0o600); err != nil {
		t.Fatal(err)
	}
	command := exec.Command(compiler, "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-fvisibility=hidden",
		"-DREAL_MODULE="+strconv.Quote(wrapped), "-o", output, input, "-ldl", "-lpthread")
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("cc: %v\n%s", err, out)
	}
	data, err := os.ReadFile(output)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// Set has the module misbehave from the next call on, instead of whatever it
// was told before. Commands come one a line or separated by semicolons:
//
//	hang FUNCTIONS [CALLS]               until the next Set or Clear
//	crash FUNCTIONS [CALLS]              abort(3)
//	return CODE FUNCTIONS [CALLS]        such as CKR_DEVICE_ERROR
//	delay DURATION FUNCTIONS [CALLS]     such as 700ms
//	corrupt [CALLS]                      one bit of each signature
//	sessions N [stated]                  C_OpenSession says CKR_SESSION_COUNT after N; stated: CK_TOKEN_INFO says so, too
//	duplicate                            C_OpenSession hands one handle out twice when called concurrently
//
// FUNCTIONS is a list such as C_Sign,C_Login. CALLS is how many calls of each
// are concerned; without it all are.
func (m Module) Set(t testing.TB, commands string) {
	t.Helper()
	rules, err := parse(commands)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.write(rules); err != nil {
		t.Fatal(err)
	}
}

// Clear has the module behave well. Calls that hang go on.
func (m Module) Clear(t testing.TB) {
	t.Helper()
	if err := m.write(nil); err != nil {
		t.Fatal(err)
	}
}

// Calls tells how often a function was called since Build, in all processes
// that could write the control file; C_Sign's length queries do not count.
func (m Module) Calls(t testing.TB, function string) int {
	t.Helper()
	index, ok := functions[function]
	if !ok {
		t.Fatalf("faulty: function %q is not watched", function)
	}
	n, err := m.calls(index)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
