package confine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	landlocksys "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// childTask makes the test binary a process that confines itself, tries what it should and should not, and
// prints what came of it.
const childTask = "CONFINE_TEST_TASK"

func TestMain(m *testing.M) {
	if text := os.Getenv(childTask); text != "" {
		var t task
		if err := json.Unmarshal([]byte(text), &t); err != nil {
			panic(err)
		}
		if err := json.NewEncoder(os.Stdout).Encode(t.run()); err != nil {
			panic(err)
		}
		return
	}
	os.Exit(m.Run())
}

// task is what a child does.
type task struct {
	Rules     Rules
	Refusal   uint32 // the errno with which the kernel refuses landlock and filters of system calls; 0: it does not
	Outside   string // a directory outside of Rules.Write
	TCP, Unix string // listeners' addresses
	Abstract  string // another one's
}

// report is what a child found.
type report struct {
	Notices  []Notice
	Results  map[string]string // "" for what succeeded
	Status   map[string]string // of every thread, in /proc/self/task/*/status; "differs" where threads do
	Core     unix.Rlimit
	Dumpable int
}

// refuse has the kernel refuse landlock and seccomp.
func refuse(errno uint32) {
	filter := []unix.SockFilter{
		load(offsetNumber),
		equal(unix.SYS_LANDLOCK_CREATE_RULESET, 1, 0),
		equal(unix.SYS_SECCOMP, 0, 1),
		statement(unix.BPF_RET|unix.BPF_K, unix.SECCOMP_RET_ERRNO|errno),
		statement(unix.BPF_RET|unix.BPF_K, unix.SECCOMP_RET_ALLOW),
	}
	if err := landlocksys.AllThreadsPrctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	if err := install(filter); err != nil {
		panic(err)
	}
}

func (t *task) run() report {
	occupyThreads()
	if t.Refusal != 0 {
		refuse(t.Refusal)
	}
	r := report{Notices: Apply(t.Rules), Results: make(map[string]string), Status: threadStatus("NoNewPrivs", "Seccomp")}
	for name, try := range t.attempts() {
		// On a fresh thread: what holds for one only would be noticed.
		done := make(chan error)
		go func() { runtime.LockOSThread(); done <- try() }()
		if err := <-done; err != nil {
			r.Results[name] = kind(err)
		} else {
			r.Results[name] = ""
		}
	}
	_ = unix.Getrlimit(unix.RLIMIT_CORE, &r.Core)
	r.Dumpable, _ = unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	return r
}

func (t *task) attempts() map[string]func() error {
	inside := t.Rules.Write[0]
	return map[string]func() error{
		"read outside":      func() error { _, err := os.ReadFile(filepath.Join(t.Outside, "there")); return err },
		"write outside":     func() error { return os.WriteFile(filepath.Join(t.Outside, "new"), nil, 0o600) },
		"truncate outside":  func() error { return os.Truncate(filepath.Join(t.Outside, "there"), 1) },
		"remove outside":    func() error { return os.Remove(filepath.Join(t.Outside, "victim")) },
		"write inside":      func() error { return os.WriteFile(filepath.Join(inside, "new"), nil, 0o600) },
		"rename inside":     func() error { return os.Rename(filepath.Join(inside, "a", "f"), filepath.Join(inside, "b", "f")) },
		"write a file":      func() error { return os.WriteFile(t.Rules.Write[1], []byte("x"), 0o600) },
		"write null":        func() error { return os.WriteFile(os.DevNull, []byte("x"), 0) },
		"execute":           func() error { return exec.Command("/bin/true").Run() },
		"child writes":      func() error { return exec.Command("/bin/sh", "-c", "echo >"+filepath.Join(t.Outside, "child")).Run() },
		"TCP":               func() error { return dial("tcp", t.TCP) },
		"MPTCP":             func() error { return socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP) },
		"UDP":               func() error { return socket(unix.AF_INET6, unix.SOCK_DGRAM, 0) },
		"netlink":           func() error { return socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE) },
		"unix":              func() error { return dial("unix", t.Unix) },
		"abstract":          func() error { return dial("unix", t.Abstract) },
		"signal the parent": func() error { return syscall.Kill(os.Getppid(), 0) },
	}
}

// occupyThreads has several threads exist before anything is restricted.
func occupyThreads() {
	var ready sync.WaitGroup
	for range 4 {
		ready.Add(1)
		go func() {
			runtime.LockOSThread()
			ready.Done()
			select {}
		}()
	}
	ready.Wait()
}

// kind names what is behind an error, for the parent to compare.
func kind(err error) string {
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return "exit"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return "denied"
	case errors.Is(err, unix.EAFNOSUPPORT):
		return "no family"
	}
	return err.Error()
}

func dial(network, address string) error {
	c, err := net.DialTimeout(network, address, 10*time.Second)
	if err != nil {
		return err
	}
	return c.Close()
}

func socket(family, kind, protocol int) error {
	fd, err := unix.Socket(family, kind, protocol)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// threadStatus reads fields of all threads.
func threadStatus(fields ...string) map[string]string {
	found := make(map[string]string)
	files, _ := filepath.Glob("/proc/self/task/*/status")
	for _, file := range files {
		text, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // the thread has ended
		}
		for line := range strings.Lines(string(text)) {
			name, value, _ := strings.Cut(line, ":")
			value = strings.TrimSpace(value)
			for _, field := range fields {
				if name != field {
					continue
				}
				if before, ok := found[name]; ok && before != value {
					value = "differs"
				}
				found[name] = value
			}
		}
	}
	return found
}

// confined runs a child in a world of two directories and three listeners.
func confined(t *testing.T, set func(*task)) report {
	t.Helper()
	inside, outside := t.TempDir(), t.TempDir()
	file := filepath.Join(outside, "allowed")
	for _, path := range []string{filepath.Join(outside, "there"), filepath.Join(outside, "victim"), file} {
		write(t, path)
	}
	for _, name := range []string{"a", "b"} {
		if err := os.Mkdir(filepath.Join(inside, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(inside, "a", "f"))
	work := task{
		Rules:    Rules{Write: []string{inside, file, filepath.Join(outside, "missing")}},
		Outside:  outside,
		TCP:      listen(t, "tcp", "127.0.0.1:0"),
		Unix:     listen(t, "unix", filepath.Join(outside, "socket")),
		Abstract: listen(t, "unix", fmt.Sprintf("@confine-test-%d-%s", os.Getpid(), t.Name())),
	}
	set(&work)
	text, err := json.Marshal(work)
	if err != nil {
		t.Fatal(err)
	}
	command := exec.Command(os.Args[0])
	command.Env = append(os.Environ(), childTask+"="+string(text))
	command.Stderr = os.Stderr
	output, err := command.Output()
	if err != nil {
		t.Fatalf("the child failed: %v", err)
	}
	var r report
	if err := json.Unmarshal(output, &r); err != nil {
		t.Fatal(err)
	}
	return r
}

func write(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func listen(t *testing.T, network, address string) string {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	return l.Addr().String()
}

// landlockVersion is this kernel's; 0 without landlock.
func landlockVersion() int {
	version, err := landlocksys.LandlockGetABIVersion()
	if err != nil {
		return 0
	}
	return version
}

// expected is what a child should find with this version of landlock.
func expected(version int, network bool) map[string]string {
	denied := func(since int) string {
		if version >= since {
			return "denied"
		}
		return ""
	}
	want := map[string]string{
		"read outside": "", "write inside": "", "write a file": "", "write null": "", "execute": "",
		"rename inside": "", "netlink": "", "unix": "",
		"write outside": denied(1), "remove outside": denied(1), "truncate outside": denied(truncateVersion),
		"abstract": denied(scopeVersion), "signal the parent": denied(scopeVersion),
		"child writes": "", "TCP": "", "MPTCP": "", "UDP": "",
	}
	if version >= 1 {
		want["child writes"] = "exit"
	}
	if version == 1 {
		want["rename inside"] = "invalid cross-device link"
	}
	if !network {
		for _, name := range []string{"TCP", "MPTCP", "UDP"} {
			want[name] = "no family"
		}
	}
	return want
}

func checkProcess(t *testing.T, r report) {
	t.Helper()
	if r.Core != (unix.Rlimit{}) {
		t.Errorf("core files are limited to %+v", r.Core)
	}
	if r.Dumpable != 0 {
		t.Errorf("dumpable is %d", r.Dumpable)
	}
	if r.Status["NoNewPrivs"] != "1" {
		t.Errorf("NoNewPrivs of the threads is %q", r.Status["NoNewPrivs"])
	}
}

func TestApply(t *testing.T) {
	version := landlockVersion()
	t.Logf("landlock version %d", version)
	for name, network := range map[string]bool{"without network": false, "with network": true} {
		t.Run(name, func(t *testing.T) {
			r := confined(t, func(w *task) { w.Rules.Network = network })
			if diff := cmp.Diff(expected(version, network), r.Results); diff != "" {
				t.Errorf("what the child found (-want +got):\n%s", diff)
			}
			checkProcess(t, r)
			if !network && r.Status["Seccomp"] != "2" {
				t.Errorf("Seccomp of the threads is %q", r.Status["Seccomp"])
			}
			wantNotices := version < scopeVersion
			if (len(r.Notices) > 0) != wantNotices {
				t.Errorf("notices %v with version %d", r.Notices, version)
			}
		})
	}
}

// TestApplyWithoutLandlock has the kernel answer as one without landlock and without filters, and as it does below a unit's filter.
func TestApplyWithoutLandlock(t *testing.T) {
	for name, test := range map[string]struct {
		errno unix.Errno
		says  string
	}{
		"old kernel":    {unix.ENOSYS, "no landlock"},
		"unit's filter": {unix.EPERM, "SystemCallFilter"},
	} {
		t.Run(name, func(t *testing.T) {
			r := confined(t, func(w *task) { w.Refusal = uint32(test.errno) })
			if diff := cmp.Diff(expected(0, true), r.Results); diff != "" {
				t.Errorf("what the child found (-want +got):\n%s", diff)
			}
			checkProcess(t, r)
			if len(r.Notices) != 2 || !strings.Contains(r.Notices[0].String(), "network") || !strings.Contains(r.Notices[1].String(), test.says) {
				t.Errorf("notices: %v", r.Notices)
			}
		})
	}
}

// TestMissing is the table of what older versions of landlock lack.
func TestMissing(t *testing.T) {
	for version, want := range map[int]int{1: 3, 2: 3, 3: 2, 4: 2, 5: 1} {
		if got := missing(version); len(got) != want {
			t.Errorf("version %d: notices %v", version, got)
		}
	}
}
