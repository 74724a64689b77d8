package worker

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"chancery/softhsm"
	"chancery/token"
	"chancery/token/guard"
	"chancery/token/pkcs11"
	"chancery/token/soft"
)

// role has the test binary be something else than a test: a worker, or a program that has one.
const role = "WORKER_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(role) {
	case "":
		os.Exit(m.Run())
	case "worker":
		os.Exit(beWorker())
	case "parent":
		os.Exit(beParent())
	case "echo":
		os.Exit(beEcho())
	}
	fmt.Fprintln(os.Stderr, "no such role")
	os.Exit(2)
}

// specification says which token a test's worker opens.
type specification struct {
	Driver string // "soft", "pkcs11", "fake"
	Soft   string // directory
	PKCS11 pkcs11.Config
	Fake   fakeConfig
	Procs  int // GOMAXPROCS; 0: as Serve finds best
}

func inheritedLink() net.Conn {
	file := os.NewFile(LinkFD, "link")
	conn, err := net.FileConn(file)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	file.Close()
	return conn
}

func beWorker() int {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	if os.Getenv("WORKER_TEST_QUIET") != "" {
		log = slog.New(slog.DiscardHandler)
	}
	if text := os.Getenv(lies); text != "" {
		lie, err := hex.DecodeString(text)
		if err != nil {
			return 2
		}
		return beLiar(inheritedLink(), lie)
	}
	err := Serve(inheritedLink(), openSpecified, log)
	if err != nil {
		return 1
	}
	if os.Getenv("WORKER_TEST_IGNORES_CLOSE") != "" {
		select {}
	}
	return 0
}

func openSpecified(_ context.Context, text []byte, _ *slog.Logger) (token.Token, error) {
	var s specification
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, err
	}
	switch s.Driver {
	case "soft":
		return soft.Open(s.Soft)
	case "pkcs11":
		return pkcs11.Open(s.PKCS11)
	case "fake":
		open, err := openFake(s.Fake)
		if err != nil || s.Fake.PINs == "" {
			return open, err
		}
		return guard.New(s.Fake.PINs).Wrap(open), nil
	}
	return nil, fmt.Errorf("driver %q: %w", s.Driver, token.ErrUnsupported)
}

// lies is what a worker says, in hexadecimal digits, when it is asked for its keys.
const lies = "WORKER_TEST_LIES"

// beLiar speaks on the link in place of a server.
func beLiar(conn net.Conn, lie []byte) int {
	l := newLink(conn)
	if _, err := l.read(); err != nil || l.writeBytes(kindResult, 1, []byte(`{"Slots":4}`)) != nil {
		return 2
	}
	if _, err := l.read(); err != nil {
		return 2
	}
	if _, err := conn.Write(lie); err != nil {
		return 2
	}
	select {}
}

// beParent is a daemon with a worker in which a call hangs. It prints the worker's number and waits for its end.
func beParent() int {
	ctx := context.Background()
	specified := []byte(os.Getenv("WORKER_TEST_SPECIFICATION"))
	var s specification
	if err := json.Unmarshal(specified, &s); err != nil {
		return 2
	}
	if s.Fake.Open == "hang" {
		go func() {
			time.Sleep(300 * time.Millisecond)
			children, _ := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/children", syscall.Getpid()))
			fmt.Println(strings.Fields(string(children) + " 0")[0])
		}()
	}
	p, err := Start(ctx, Config{Specification: specified, Environment: workerEnvironment(), CallTimeout: time.Minute})
	if err != nil {
		return 2
	}
	hanging, err := hangACall(ctx, p)
	if err != nil {
		return 2
	}
	<-hanging
	fmt.Println(p.PID())
	select {}
}

func workerEnvironment(more ...string) []string {
	return append(append(os.Environ(), role+"=worker"), more...)
}

// start starts a worker for the test.
func start(t testing.TB, s specification, change func(*Config)) *Process {
	t.Helper()
	p, err := tryStart(t, s, change)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func tryStart(t testing.TB, s specification, change func(*Config)) (*Process, error) {
	t.Helper()
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Specification: text, Environment: workerEnvironment("WORKER_TEST_QUIET=1"), Log: slog.New(slog.DiscardHandler), CallTimeout: 20 * time.Second}
	if change != nil {
		change(&cfg)
	}
	p, err := Start(t.Context(), cfg)
	if err == nil {
		t.Cleanup(func() { p.Close() })
	}
	return p, err
}

// state is a process' one of proc(5), such as "T" for a stopped one; "" where there is none.
func state(pid int) string {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(status), ") ")
	return rest[:1]
}

// isRunning tells whether there is such a process that is more than a zombie.
func isRunning(pid int) bool { return state(pid) != "" && state(pid) != "Z" }

// stop returns when all threads of the process have stopped, which is some time after the signal.
func stop(t testing.TB, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the process stops", func() bool { return state(pid) == "T" })
}

func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if holds() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}

// softToken makes a software token with a key of each algorithm and returns its PIN.
func softHome(t testing.TB, algorithms ...token.Algorithm) (specification, home) {
	t.Helper()
	dir := t.TempDir() + "/token"
	if err := soft.Create(dir, "soft", []byte(rightPIN)); err != nil {
		t.Fatal(err)
	}
	open, err := soft.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	return specification{Driver: "soft", Soft: dir}, furnish(t, open, rightPIN, algorithms)
}

func softHSMHome(t testing.TB, module string, algorithms ...token.Algorithm) (specification, home) {
	t.Helper()
	made := softhsm.ForTest(t)
	cfg := pkcs11.Config{Module: made.Store.Module, Serial: made.Serial}
	open, err := pkcs11.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	h := furnish(t, open, string(made.PIN), algorithms)
	if module != "" {
		cfg.Module = module
	}
	return specification{Driver: "pkcs11", PKCS11: cfg}, h
}

// furnish makes keys in a token.
func furnish(t testing.TB, open token.Token, pin string, algorithms []token.Algorithm) home {
	t.Helper()
	ctx := context.Background()
	if err := open.Login(ctx, []byte(pin)); err != nil {
		t.Fatal(err)
	}
	info, err := open.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	h := home{serial: info.Serial, pin: pin}
	for i, a := range algorithms {
		key, err := open.Generate(ctx, token.KeySpec{ID: []byte{byte(i + 1)}, Label: string(a), Algorithm: a})
		if err != nil {
			t.Fatal(err)
		}
		h.keys = append(h.keys, token.KeyInfo{ID: key.ID(), Algorithm: a, Public: key.Public()})
	}
	return h
}
