package bridge_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"chancery/internal/certfile"
	"chancery/pki"
	"chancery/tunnel"
	"chancery/tunnel/bridge"
	"chancery/tunnel/tunneltest"
)

// childDirectory names, in the environment, the directory of the certificates
// of a bridge that this program shall be instead of running tests.
const childDirectory = "CHANCERY_TEST_BRIDGE"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDirectory); dir != "" {
		if err := beBridge(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// beBridge serves on loopback, prints its two addresses, and answers each line
// of its input with its figures: waiting servers, pairs, bytes in use.
func beBridge(dir string) error {
	identity, _, err := certfile.Load(filesIn(dir))
	if err != nil {
		return err
	}
	const many = 20000
	b, err := bridge.New(bridge.Config{TLS: identity.BridgeServer(), Servers: []string{"server-1"},
		MaxWaiting: many, MaxSessions: many, MaxPerClient: many, Drain: -1})
	if err != nil {
		return err
	}
	clients, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	servers, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	go func() {
		defer stop()
		fmt.Println(clients.Addr(), servers.Addr())
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			if in.Text() == "memory" {
				fmt.Println(inUse())
				continue
			}
			s := b.Stats()
			fmt.Println(s.WaitingServers, s.Pairs)
		}
	}()
	return b.Serve(ctx, clients, servers)
}

func filesIn(dir string) certfile.Files {
	return certfile.Files{
		CA: filepath.Join(dir, "ca.crt"), Certificate: filepath.Join(dir, "bridge.crt"), Key: filepath.Join(dir, "bridge.key"),
	}
}

// inUse returns the live heap and the stacks, in bytes.
func inUse() int {
	for range 6 { // each round halves the stacks that are too large
		runtime.GC()
		time.Sleep(10 * time.Millisecond)
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc + m.StackInuse)
}

// child is a bridge in a process of its own.
type child struct {
	t                      *testing.T
	in                     io.Writer
	out                    *bufio.Reader
	clientAddr, serverAddr string
}

func startChild(t *testing.T, authority *tunneltest.Authority) *child {
	t.Helper()
	dir := t.TempDir()
	certPEM, keyPEM, err := authority.Issue(pki.Request{Kind: pki.Bridge, Hosts: []string{tunneltest.BridgeHost}})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := pki.WritePair(dir, "bridge", certPEM, keyPEM); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.crt"), authority.CertificatePEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	command := exec.Command(os.Args[0])
	command.Env = append(os.Environ(), childDirectory+"="+dir)
	command.Stderr = os.Stderr
	in, inErr := command.StdinPipe()
	out, outErr := command.StdoutPipe()
	if inErr != nil || outErr != nil {
		t.Fatal(inErr, outErr)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = command.Wait()
	})
	c := &child{t: t, in: in, out: bufio.NewReader(out)}
	c.scan(&c.clientAddr, &c.serverAddr)
	return c
}

func (c *child) scan(into ...any) {
	c.t.Helper()
	line, err := c.out.ReadString('\n')
	if err == nil {
		_, err = fmt.Sscan(line, into...)
	}
	if err != nil {
		c.t.Fatalf("the bridge's process: %q, %v", line, err)
	}
}

func (c *child) memory() (bytes int) {
	fmt.Fprintln(c.in, "memory")
	c.scan(&bytes)
	return bytes
}

func (c *child) await(what string, waiting, pairs int) {
	c.t.Helper()
	tunneltest.Eventually(c.t, what, func() bool {
		var w, p int
		fmt.Fprintln(c.in, "stats")
		c.scan(&w, &p)
		return w == waiting && p == pairs
	})
}

// dial says hello to the bridge and keeps the connection until the test ends.
func (c *child) dial(address string, config *tls.Config, role tunnel.Role) *tls.Conn {
	c.t.Helper()
	conn, err := tls.Dial("tcp", address, config)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { conn.NetConn().Close() })
	if _, err := conn.Write(hello(role, tunnel.EnumFirst)); err != nil {
		c.t.Fatal(err)
	}
	return conn
}

// TestMemory prints what the bridge's process keeps for each waiting leg and
// for each pair. CHANCERY_LEGS asks for another number of legs, for example 5000.
func TestMemory(t *testing.T) {
	legs := 200
	if text := os.Getenv("CHANCERY_LEGS"); text != "" {
		var err error
		if legs, err = strconv.Atoi(strings.TrimSpace(text)); err != nil {
			t.Fatal(err)
		}
	}
	authority := tunneltest.NewAuthority(t)
	c := startChild(t, authority)
	server := authority.Identity(pki.Request{Kind: pki.Server, CommonName: "server-1", Hosts: []string{tunneltest.ServerHost}}).OuterDialer(tunneltest.BridgeHost)
	client := authority.Identity(pki.Request{Kind: pki.Client, CommonName: "alice"}).OuterDialer(tunneltest.BridgeHost)
	before := c.memory()
	var servers []*tls.Conn
	for range legs {
		servers = append(servers, c.dial(c.serverAddr, server, tunnel.RoleServer))
	}
	c.await("all wait", legs, 0)
	waiting := c.memory()
	t.Logf("%d waiting legs: %d bytes each", legs, (waiting-before)/legs)
	var clients []*tls.Conn
	for range legs {
		clients = append(clients, c.dial(c.clientAddr, client, tunnel.RoleClient))
	}
	c.await("all are paired", 0, legs)
	t.Logf("%d fresh pairs: %d bytes each", legs, (c.memory()-before)/legs)
	for _, size := range []int{1 << 10, 20 << 10} {
		for i := range legs { // which client met which server does not matter
			send(t, clients[i], size)
			send(t, servers[i], size)
		}
		t.Logf("%d pairs idle after %d bytes each way: %d bytes each", legs, size, (c.memory()-before)/legs)
	}
}

func send(t *testing.T, conn *tls.Conn, size int) {
	t.Helper()
	if _, err := conn.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
}
