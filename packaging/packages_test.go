package packaging

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"chancery/internal/testtool"
)

// content is a line of `ls -l` that a package must have, as a pattern, by program.
var content = map[string][]string{
	"chancery": {
		`-rwxr-xr-x root root /usr/bin/chancery`, `-rw-r--r-- root root /etc/chancery/client.toml`,
		`-rw-r--r-- root root /usr/share/man/man1/chancery-sign-openpgp.1.gz`,
		`-rw-r--r-- root root /usr/share/bash-completion/completions/chancery`,
	},
	"chancery-bridge": {
		`-rwxr-xr-x root root /usr/bin/chancery-bridge`, `-rw-r----- root chancery-bridge /etc/chancery/bridge.toml`,
		`-rw-r--r-- root root /usr/lib/systemd/system/chancery-bridge.service`, `-rw-r--r-- root root /usr/lib/sysusers.d/chancery-bridge.conf`,
		`-rw-r--r-- root root /usr/share/man/man8/chancery-bridge-serve.8.gz`,
		`-rw-r--r-- root root /usr/share/doc/chancery-bridge/operations.md`,
	},
	"chancery-server": {
		`-rwxr-xr-x root root /usr/bin/chancery-server`, `-rw-r----- root chancery /etc/chancery/server.toml`,
		`-rw-r--r-- root root /usr/lib/systemd/system/chancery-server.service`, `-rw-r--r-- root root /usr/lib/sysusers.d/chancery-server.conf`,
		`-rw-r--r-- root root /usr/lib/tmpfiles.d/chancery-server.conf`, `-rw-r--r-- root root /usr/share/man/man8/chancery-server-token-add.8.gz`,
		`-rw-r--r-- root root /usr/share/doc/chancery-server/drop-ins/usb.conf`,
	},
}

// listings gives what a package holds as "mode owner group path" lines, whoever lists it.
var listings = map[string]struct {
	program string
	args    []string
	line    *regexp.Regexp
}{
	"deb": {"dpkg-deb", []string{"--contents"}, regexp.MustCompile(`(?m)^(\S+) (\S+)/(\S+)\s.*? \.(/\S+)$`)},
	"rpm": {"rpm", []string{"-qp", "--queryformat", `[%{FILEMODES:perms} %{FILEUSERNAME} %{FILEGROUPNAME} %{FILENAMES}\n]`}, regexp.MustCompile(`(?m)^(\S+) (\S+) (\S+) (/\S+)$`)},
}

func TestPackagesHoldWhatOperatorsNeed(t *testing.T) {
	for format, listing := range listings {
		testtool.Need(t, listing.program)
		for i, path := range built(t, format) {
			output := run(t, listing.program, append(listing.args, path)...)
			lines := make(map[string]bool)
			for _, found := range listing.line.FindAllStringSubmatch(output, -1) {
				lines[strings.Join(found[1:], " ")] = true
				if mode := found[1]; strings.ContainsAny(mode, "sStT") || mode[5] == 'w' || mode[8] == 'w' {
					t.Errorf("%s holds what others may change, or gives away rights: %s", filepath.Base(path), found[0])
				}
			}
			for _, want := range content[programs[i]] {
				if !lines[want] {
					t.Errorf("%s lacks %q:\n%s", filepath.Base(path), want, output)
				}
			}
		}
	}
}

// TestPackagedDocumentsLeadToEachOther: whoever reads them on a server without a network has what they refer to.
func TestPackagedDocumentsLeadToEachOther(t *testing.T) {
	link := regexp.MustCompile(`\]\(([a-z-]+\.md)[#)]`)
	for _, program := range programs {
		directory := filepath.Join(unpacked(t), "usr/share/doc", program)
		documents, err := filepath.Glob(filepath.Join(directory, "*.md"))
		if err != nil || len(documents) == 0 {
			t.Fatalf("%s has no documents: %v", program, err)
		}
		for _, document := range documents {
			for _, found := range link.FindAllStringSubmatch(read(t, document), -1) {
				if _, err := os.Stat(filepath.Join(directory, found[1])); err != nil {
					t.Errorf("%s of %s leads to %s, which the package lacks", filepath.Base(document), program, found[1])
				}
			}
		}
	}
}

// TestConfigurationIsKept looks for what makes dpkg and rpm leave an edited file alone.
func TestConfigurationIsKept(t *testing.T) {
	for i, path := range built(t, "rpm") {
		if got := run(t, "rpm", "-qcp", path); !strings.HasPrefix(got, "/etc/chancery/") {
			t.Errorf("%s: configuration files of the .rpm: %q", programs[i], got)
		}
	}
	for i, path := range built(t, "deb") {
		control := t.TempDir()
		run(t, "dpkg-deb", "--control", path, control)
		if got := read(t, filepath.Join(control, "conffiles")); !strings.HasPrefix(got, "/etc/chancery/") {
			t.Errorf("%s: configuration files of the .deb: %q", programs[i], got)
		}
	}
}

// TestPackagedConfigurationIsTheDefaults compares what the programs make of the installed files with what they do without any.
func TestPackagedConfigurationIsTheDefaults(t *testing.T) {
	root := unpacked(t)
	t.Setenv("CHANCERY_BRIDGE_SERVERS", "signing.example.com") // the bridge insists on one
	for file, program := range map[string]string{"client.toml": "chancery", "bridge.toml": "chancery-bridge", "server.toml": "chancery-server"} {
		show := func(config string) string {
			output := run(t, filepath.Join(root, "usr/bin", program), "--config", config, "config", "show")
			_, values, _ := strings.Cut(output, "\n") // without the name of the file
			return values
		}
		if got, want := show(filepath.Join(root, "etc/chancery", file)), show(os.DevNull); got != want {
			t.Errorf("%s is:\n%s\nnot:\n%s", file, got, want)
		}
	}
}

// TestDebInstallsAndGoes has dpkg do all its steps in a directory, with the scripts told where that is.
func TestDebInstallsAndGoes(t *testing.T) {
	testtool.Need(t, "systemd-sysusers")
	needRoot(t)
	root := emptySystem(t)
	dpkg := func(args ...string) {
		t.Helper()
		run(t, "dpkg", append([]string{"--root=" + root, "--force-script-chrootless", "--force-depends", "--log=" + os.DevNull}, args...)...)
	}
	packages := built(t, "deb")
	dpkg(append([]string{"--install"}, packages...)...)
	users := read(t, filepath.Join(root, "etc/passwd"))
	for _, user := range []string{"chancery:", "chancery-bridge:"} {
		if !strings.Contains("\n"+users, "\n"+user) {
			t.Errorf("no user %s in:\n%s", user, users)
		}
	}
	enabled, err := filepath.Glob(filepath.Join(root, "etc/systemd/system/*"))
	if err != nil || len(enabled) != 0 {
		t.Errorf("enabled without being asked: %q, %v", enabled, err)
	}
	state := filepath.Join(root, "var/lib/chancery")
	write(t, filepath.Join(state, "chancery.db"), "grants")
	write(t, filepath.Join(root, "etc/chancery/bridge.toml"), "# edited")
	dpkg(append([]string{"--install"}, packages...)...)
	if got := read(t, filepath.Join(root, "etc/chancery/bridge.toml")); got != "# edited" {
		t.Errorf("installed over an edited configuration: %q", got)
	}
	dpkg("--purge", "chancery-server", "chancery-bridge", "chancery")
	if got := read(t, filepath.Join(state, "chancery.db")); got != "grants" {
		t.Error("purging took the state with it")
	}
	if info, err := os.Stat(state); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the state directory: %v, %v", info, err)
	}
}

// emptySystem is a directory that dpkg and rpm take for a system's root.
func emptySystem(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for _, directory := range []string{"etc", "var/lib/dpkg/info", "var/lib/dpkg/updates", "var/lib/rpm"} {
		if err := os.MkdirAll(filepath.Join(root, directory), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(root, "var/lib/dpkg/status"), "")
	write(t, filepath.Join(root, "etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")
	write(t, filepath.Join(root, "etc/group"), "root:x:0:\nchancery:x:990:\nchancery-bridge:x:991:\n")
	return root
}

// TestRPMInstalls has rpm install into a directory. Its scripts would run inside, where no shell is; they are tried with dpkg.
func TestRPMInstalls(t *testing.T) {
	testtool.Need(t, "rpm")
	needRoot(t)
	root := emptySystem(t)
	database := []string{"--root", root, "--dbpath", "/var/lib/rpm"}
	run(t, "rpm", append(database, "--initdb")...)
	run(t, "rpm", append(append(database, "--install", "--nodeps", "--noscripts"), built(t, "rpm")...)...)
	for _, program := range programs {
		if output := run(t, "rpm", append(database, "--verify", "--nodeps", program)...); output != "" {
			t.Errorf("%s differs from its package:\n%s", program, output)
		}
		run(t, filepath.Join(root, "usr/bin", program), "version")
	}
}

// TestScriptsAreTheSameInBothFormats also has a shell parse them.
func TestScriptsAreTheSameInBothFormats(t *testing.T) {
	debs, rpms := built(t, "deb"), built(t, "rpm")
	for i, program := range programs[1:] {
		control := t.TempDir()
		run(t, "dpkg-deb", "--control", debs[i+1], control)
		scripts := run(t, "rpm", "-qp", "--scripts", rpms[i+1])
		for _, name := range []string{"preinst", "postinst", "prerm", "postrm"} {
			path := filepath.Join(control, name)
			if output, err := exec.Command("sh", "-n", path).CombinedOutput(); err != nil {
				t.Errorf("%s of %s: %v\n%s", name, program, err, output)
			}
			script := read(t, path)
			if strings.Contains(script, "@") {
				t.Errorf("%s of %s has a mark that was not replaced:\n%s", name, program, script)
			}
			if !strings.Contains(scripts, strings.TrimSpace(script)) {
				t.Errorf("%s of %s is not in the .rpm:\n%s", name, program, scripts)
			}
		}
	}
}

// TestManualIsReadable looks at pages as troff would.
func TestManualIsReadable(t *testing.T) {
	root := unpacked(t)
	for _, page := range []string{"man1/chancery.1.gz", "man8/chancery-bridge.8.gz", "man8/chancery-server.8.gz"} {
		command := exec.Command("gzip", "-dc", filepath.Join(root, "usr/share/man", page))
		text, err := command.Output()
		if err != nil || !strings.Contains(string(text), `.TH "CHANCERY`) || strings.Contains(string(text), "completion") {
			t.Errorf("%s: %v\n%s", page, err, text)
		}
	}
}
