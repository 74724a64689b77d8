package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"chancery/e2e/lab"
	"chancery/internal/testtool"
	"chancery/softhsm"
)

// TestTheReadmesTourWorks pastes the tour's blocks into one shell, as a newcomer would.
func TestTheReadmesTourWorks(t *testing.T) {
	for _, tool := range []string{"openssl", "softhsm2-util", "pkcs11-tool"} {
		testtool.Need(t, tool)
	}
	if _, err := softhsm.FindModule(); err != nil {
		testtool.Missing(t, "SoftHSM")
	}
	home := t.TempDir()
	output := paste(t, home, tour(t))
	for _, sign := range []string{"Verified OK", "heirloom", "alice may no longer sign"} {
		if !strings.Contains(output, sign) {
			t.Errorf("the tour does not show %q:\n%s", sign, output)
		}
	}
	if _, err := os.Stat(filepath.Join(home, "chancery-tour")); err == nil {
		t.Error("the tour leaves its directory behind")
	}
}

// tour returns the tour's blocks with ports that are free here, and without the build, which TestMain has done.
func tour(t *testing.T) string {
	t.Helper()
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, found := strings.Cut(string(readme), "## A five-minute tour")
	if !found {
		t.Fatal("README.md has no tour")
	}
	text, _, _ = strings.Cut(text, "\n## ")
	var script strings.Builder
	script.WriteString("set -e\n")
	for i, part := range strings.Split(text, "```") {
		if block, isShell := strings.CutPrefix(part, "sh\n"); i%2 == 1 && isShell {
			script.WriteString(block)
		}
	}
	return strings.NewReplacer(
		"./bootstrap build\n", "",
		`export PATH="$PWD/bin:$PATH"`, `export PATH="`+binaries+`:$PATH"`,
		"127.0.0.1:44334", unusedAddress(t),
		"127.0.0.1:44333", unusedAddress(t),
	).Replace(script.String())
}

func paste(t *testing.T, home, script string) string {
	t.Helper()
	shell := exec.Command("bash", "-m") // job control, as an interactive shell has: the tour ends its own jobs
	shell.Dir = home
	shell.Env = append(os.Environ(), "HOME="+home)
	shell.Stdin = strings.NewReader(script)
	shell.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	output := &bytes.Buffer{}
	shell.Stdout, shell.Stderr = output, output
	shell.WaitDelay = 5 * time.Second
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	// What the tour started and did not end, because a step failed, shares the shell's session.
	t.Cleanup(func() { exec.Command("pkill", "-s", strconv.Itoa(shell.Process.Pid)).Run() })
	timer := time.AfterFunc(4*lab.Patience, func() { shell.Process.Signal(syscall.SIGHUP) })
	defer timer.Stop()
	if err := shell.Wait(); err != nil {
		for _, name := range []string{"bridge.log", "server.log"} {
			log, _ := os.ReadFile(filepath.Join(home, "chancery-tour", name))
			t.Logf("%s:\n%s", name, log)
		}
		t.Fatalf("the tour fails (%v):\n%s", err, output)
	}
	return output.String()
}

// TestTheDemonstrationWorks runs scripts/demo as ./bootstrap demo does, on files with troublesome names.
func TestTheDemonstrationWorks(t *testing.T) {
	for _, tool := range []string{"openssl", "gpg", "softhsm2-util"} {
		testtool.Need(t, tool)
	}
	files := t.TempDir()
	troublesome := filepath.Join(files, "release notes (final).txt")
	if err := os.WriteFile(troublesome, []byte("notes\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, arguments := range map[string][]string{
		"soft":    {},
		"softhsm": {"--softhsm", troublesome},
	} {
		t.Run(name, func(t *testing.T) {
			before, _ := filepath.Glob(filepath.Join(os.TempDir(), "chancery-demo.*"))
			r := lab.Run(t, lab.Call{Dir: t.TempDir(), Environment: []string{"CHANCERY_DEMO_BIN=" + binaries}, Program: absolute(t, "../scripts/demo"), Args: arguments})
			if r.Exit != 0 || !strings.Contains(r.Stdout, "Verified OK") || !strings.Contains(r.Stdout, "Good signature") {
				t.Fatalf("exit %d:\n%s%s", r.Exit, r.Stdout, r.Stderr)
			}
			for _, typed := range []string{" serve &\n", " enroll --passphrase-file alice.passphrase > alice.enrolment\n"} {
				if !strings.Contains(r.Stdout, typed) {
					t.Errorf("it does not show %q as one types it:\n%s", typed, r.Stdout)
				}
			}
			after, _ := filepath.Glob(filepath.Join(os.TempDir(), "chancery-demo.*"))
			if len(after) > len(before) {
				t.Errorf("left behind: %v", after)
			}
		})
	}
}

func absolute(t *testing.T, path string) string {
	t.Helper()
	whole, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return whole
}
