package packaging

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"chancery/internal/testtool"
)

// maximumExposure is in tenths of what systemd-analyze prints: 0 is best, 100 worst.
const maximumExposure = "12"

var units = []string{"chancery-bridge.service", "chancery-server.service"}

func TestUnitsAreConfined(t *testing.T) {
	for _, unit := range units {
		run(t, "systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold="+maximumExposure, filepath.Join("systemd", unit))
	}
}

// TestUnitsAndDropInsAreUnderstood has systemd read the units without and with each drop-in.
func TestUnitsAndDropInsAreUnderstood(t *testing.T) {
	testtool.Need(t, "systemd-analyze")
	dropIns, err := filepath.Glob("drop-ins/*.conf")
	if err != nil || len(dropIns) == 0 {
		t.Fatal(dropIns, err)
	}
	verify(t, units[0], "")
	verify(t, units[1], "")
	for _, dropIn := range dropIns {
		verify(t, units[1], dropIn)
	}
}

// strangers stand in for other packages' units that a drop-in requires.
var strangers = map[string]string{
	"pcscd.socket":  "[Socket]\nListenStream=/run/pcscd/pcscd.comm\n",
	"pcscd.service": "[Service]\nExecStart=/bin/true\n",
}

// verify demands that systemd has nothing to say about a unit.
func verify(t *testing.T, unit, dropIn string) {
	t.Helper()
	directory := t.TempDir()
	text := read(t, filepath.Join("systemd", unit))
	// The programs are not installed here; another one that is executable stands in for them.
	write(t, filepath.Join(directory, unit), strings.ReplaceAll(text, "ExecStart=/usr/bin/chancery", "ExecStart=/bin/true "))
	if dropIn != "" {
		if err := os.Mkdir(filepath.Join(directory, unit+".d"), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(directory, unit+".d", filepath.Base(dropIn)), read(t, dropIn))
	}
	for name, stranger := range strangers {
		write(t, filepath.Join(directory, name), stranger)
	}
	command := exec.Command("systemd-analyze", "verify", "--man=no", filepath.Join(directory, unit))
	command.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+directory+":") // then where systemd looks by itself
	output, err := command.CombinedOutput()
	if err != nil || strings.Contains(string(output), "chancery") {
		t.Errorf("%s with %q: %v\n%s", unit, dropIn, err, output)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
