package e2e

import (
	"context"
	"crypto"
	"crypto/sha256"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/e2e/lab"
)

// look fetches a page of a program's observer.
func look(t *testing.T, address, path string) (status int, body string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), lab.Patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(content)
}

// serviceManager stands in for systemd: it collects what a program tells it.
func serviceManager(t *testing.T) (environment []string, told func(what string)) {
	t.Helper()
	directory, err := os.MkdirTemp("", "notify") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(directory, "socket")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(); _ = os.RemoveAll(directory) })
	buffer := make([]byte, 4096)
	told = func(what string) {
		t.Helper()
		_ = conn.SetReadDeadline(time.Now().Add(lab.Patience))
		for {
			n, err := conn.Read(buffer)
			if err != nil {
				t.Fatalf("the service manager was not told %q: %v", what, err)
			}
			if slices.Contains(strings.Split(string(buffer[:n]), "\n"), what) {
				return
			}
		}
	}
	return []string{"NOTIFY_SOCKET=" + path, "WATCHDOG_USEC=200000"}, told
}

// observed starts bridge and server anew with an observer each.
func observed(t *testing.T, l *scene, extra ...string) (bridge, server string) {
	t.Helper()
	if code := l.Bridge.Terminate(); code != 0 {
		t.Fatalf("the bridge ended with %d", code)
	}
	l.Environment = append(l.Environment, "CHANCERY_BRIDGE_OBSERVE_LISTEN=127.0.0.1:0", "CHANCERY_SERVER_OBSERVE_LISTEN=127.0.0.1:0")
	l.Environment = append(l.Environment, extra...)
	l.StartBridge(l.Clients, l.Servers)
	l.Serve()
	const shown = `msg="showing metrics and health" address=(\S+)`
	return l.Bridge.WaitLog(shown)[1], l.Server.WaitLog(shown)[1]
}

// TestObservers signs with a real chain, and both programs tell what they did.
func TestObservers(t *testing.T) {
	l := newLab(t, lab.Soft)
	l.CreateKey("release", "p256")
	l.CreateKey("canary", "ed25519")
	bridge, server := observed(t, l, "CHANCERY_SERVER_OBSERVE_CANARY_KEY=canary", "CHANCERY_SERVER_OBSERVE_CANARY_USER=alice",
		"CHANCERY_SERVER_OBSERVE_CANARY_PASSPHRASE_FILE="+l.Path("alice.passphrase"), "CHANCERY_SERVER_OBSERVE_CANARY_DEADLINE=20s")
	l.Eventually(func() bool { status, _ := look(t, server, "/readyz"); return status == http.StatusOK }, "the server did not become ready")
	for _, address := range []string{bridge, server} {
		for _, path := range []string{"/healthz", "/readyz"} {
			if status, body := look(t, address, path); status != http.StatusOK {
				t.Errorf("%s: %d %s", path, status, body)
			}
		}
	}
	if _, body := look(t, server, "/readyz"); !strings.Contains(body, "canary: ok\n") || !strings.Contains(body, "tokens: ok\n") {
		t.Errorf("the server's readiness: %s", body)
	}
	_, key := l.unlocked(t, "release")
	for i := range 3 {
		digest := sha256.Sum256([]byte{byte(i)})
		if _, err := key.SignContext(t.Context(), digest[:], crypto.SHA256); err != nil {
			t.Fatal(err)
		}
	}
	contains(t, server, `chancery_server_requests_total{code="ok",kind="sign"} 4`, `chancery_server_signatures_total{algorithm="p256",outcome="ok",scheme="default"} 3`,
		`chancery_server_signatures_total{algorithm="ed25519",outcome="ok",scheme="default"} 1`, `chancery_server_canary_total{outcome="ok"} 1`,
		`chancery_server_token_state{state="ready",token="vault"} 1`, `chancery_server_sessions 2`, `chancery_server_audit_failures_total 0`, `chancery_build_info{`)
	contains(t, bridge, `chancery_bridge_pairs 1`, `chancery_bridge_pairs_total 1`, `chancery_bridge_waiting_connections{port="server"} 8`, `chancery_bridge_bytes_total{direction="up"}`, `chancery_build_info{`)

	l.Must(l.Program("chancery-server"), "--config", "server.toml", "key", "disable", "canary")
	status := l.Operator("status")
	if !strings.Contains(status, "queue: ") || !strings.Contains(status, "token: ") {
		t.Errorf("status:\n%s", status)
	}
	if code := l.Bridge.Terminate(); code != 0 {
		t.Errorf("the bridge ended with %d", code)
	}
	l.Eventually(func() bool {
		status, body := look(t, server, "/readyz")
		return status == http.StatusServiceUnavailable && strings.Contains(body, "bridge: failed")
	},
		"the server stays ready without its bridge")
	if status, body := look(t, server, "/healthz"); status != http.StatusOK {
		t.Errorf("the server is ill without its bridge: %s", body)
	}
	l.Eventually(func() bool { return strings.Contains(l.Operator("status"), "trouble: ") }, "no trouble is shown")
}

func contains(t *testing.T, address string, lines ...string) {
	t.Helper()
	_, body := look(t, address, "/metrics")
	for _, line := range lines {
		if !strings.Contains(body, line) {
			t.Errorf("%q is not among the metrics:\n%s", line, body)
		}
	}
}

// TestServiceManagerIsTold runs both programs below a service manager's watchdog.
func TestServiceManagerIsTold(t *testing.T) {
	l := newLab(t, lab.Soft)
	if code := l.Bridge.Terminate(); code != 0 {
		t.Fatalf("the bridge ended with %d", code)
	}
	serverEnvironment, server := serviceManager(t)
	l.Environment = append(l.Environment, serverEnvironment...)
	l.Serve() // without a bridge: whoever waits for the server is not held up
	server("READY=1")
	server("WATCHDOG=1")
	bridgeEnvironment, bridge := serviceManager(t)
	l.Environment = append(l.Environment, bridgeEnvironment...)
	l.StartBridge(l.Clients, l.Servers)
	bridge("READY=1")
	bridge("WATCHDOG=1")
	l.Server.Terminate()
	server("STOPPING=1")
	l.Bridge.Terminate()
	bridge("STOPPING=1")
}
