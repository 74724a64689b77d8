package packaging

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"chancery/e2e/lab"
)

// manager stands for systemd: it receives what a service tells on $NOTIFY_SOCKET (sd_notify(3)).
type manager struct {
	t    *testing.T
	path string
	told chan string // what was told and nobody has waited for yet
}

func newManager(t *testing.T) *manager {
	t.Helper()
	directory, err := os.MkdirTemp("", "notify") // t.TempDir may be longer than a socket's path may be
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(directory) })
	path := filepath.Join(directory, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	m := &manager{t: t, path: path, told: make(chan string, 4096)}
	go m.receive(conn)
	return m
}

// receive goes on without waiting for anybody: a service that meets a full queue is held up.
func (m *manager) receive(conn *net.UnixConn) {
	buffer := make([]byte, 4096)
	for {
		n, err := conn.Read(buffer)
		if err != nil {
			return
		}
		m.told <- string(buffer[:n])
	}
}

// environment is what systemd adds to that of a service with Type=notify and a watchdog.
func (m *manager) environment() []string {
	return []string{"NOTIFY_SOCKET=" + m.path, "WATCHDOG_USEC=1000000"}
}

// wait returns when the service has told the assignment.
func (m *manager) wait(assignment string) {
	m.t.Helper()
	deadline := time.After(lab.Patience)
	for {
		select {
		case told := <-m.told:
			if strings.Contains("\n"+told+"\n", "\n"+assignment+"\n") {
				return
			}
		case <-deadline:
			m.t.Fatalf("the service did not tell %s", assignment)
		}
	}
}

// TestPackagedProgramsServe signs with the programs from the packages, under a manager that watches bridge and server.
func TestPackagedProgramsServe(t *testing.T) {
	root := unpacked(t)
	bridge, server := newManager(t), newManager(t)
	driver := lab.Soft
	driver.Environment = bridge.environment()
	l := lab.New(t, filepath.Join(root, "usr/bin"), driver)
	bridge.wait("READY=1")
	l.CreateKey("release", "p256")
	watched := l.With(server.environment()...)
	watched.Serve()
	server.wait("READY=1")
	l.Write("notes", "notes")
	l.Alice("sign", "raw", "release", "notes")
	bridge.wait("WATCHDOG=1")
	server.wait("WATCHDOG=1")
	reload(t, l.Bridge)
	reload(t, watched.Server)
	server.wait("RELOADING=1")
	server.wait("READY=1")
	l.Alice("sign", "raw", "release", "notes", "--force")
	watched.Server.Terminate()
	server.wait("STOPPING=1")
	l.Bridge.Terminate()
	bridge.wait("STOPPING=1")
}

// reload sends what ExecReload= of both units sends.
func reload(t *testing.T, process *lab.Process) {
	t.Helper()
	if err := process.Command.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
}

// TestKeysComeAsCredentials checks configurations as the units' comments tell to write them. systemd lets a service read
// its credentials through an access list, which shows as a readable group.
func TestKeysComeAsCredentials(t *testing.T) {
	root := unpacked(t)
	l := lab.New(t, filepath.Join(root, "usr/bin"), lab.Soft)
	for program, files := range map[string]struct{ certificate, config string }{
		"chancery-bridge": {"bridge.lab", "servers = ['server.lab']\n"},
		"chancery-server": {"server.lab", "[bridge]\naddress = 'localhost:1'\n"},
	} {
		credentials := t.TempDir()
		key := filepath.Join(credentials, program+".key")
		write(t, filepath.Join(credentials, program+".passphrase"), "a passphrase for the key\n")
		run(t, "openssl", "pkcs8", "-topk8", "-v2", "aes-256-cbc", "-in", l.Path("pki/"+files.certificate+".key"),
			"-out", key, "-passout", "file:"+filepath.Join(credentials, program+".passphrase"))
		if err := os.Chmod(key, 0o440); err != nil {
			t.Fatal(err)
		}
		unit := read(t, filepath.Join("systemd", program+".service"))
		tls := "[tls]\nca_certificate = '" + l.Path("pki/ca.crt") + "'\ncertificate = '" + l.Path("pki/"+files.certificate+".crt") + "'\n"
		for _, line := range strings.Split(unit, "\n") {
			if setting, ok := strings.CutPrefix(line, "#   "); ok {
				tls += strings.ReplaceAll(setting, "/run/credentials/"+program+".service", credentials) + "\n"
			}
		}
		l.Write(program+".toml", files.config+tls)
		l.With("CREDENTIALS_DIRECTORY="+credentials).Must(l.Program(program), "--config", program+".toml", "config", "check")
	}
}
