// Package imports keeps the architecture's import rules: what each program may
// link, and which way packages may look at each other.
package imports

import (
	"os/exec"
	"strings"
	"testing"
)

// Everything but the server is listed with CGO_ENABLED=0, where a package that
// needs cgo does not even list.

// rule forbids packages to all of a package's dependencies, with the reason that a failing test tells.
type rule struct {
	of        string
	forbidden []string // an import path, or a prefix ending in "/..."
	because   string
}

var rules = []rule{
	{"./cmd/chancery-bridge", []string{"chancery/tunnel/wire", "chancery/signer", "chancery/users/...", "chancery/users", "chancery/token/...", "chancery/token", "chancery/admin", "chancery/client", "chancery/access", "chancery/artifact/..."},
		"the bridge copies bytes: one that cannot link a parser, a key or a user cannot grow one"},
	{"./tunnel", []string{"encoding/json", "log/slog", "chancery/tunnel/...", "chancery/users", "chancery/token", "chancery/signer"},
		"the tunnel is TLS, hello and ack, and carries any message"},
	{"./tunnel/bridge", []string{"encoding/json", "chancery/tunnel/wire", "chancery/users", "chancery/token", "chancery/signer"},
		"no parser stands on the bridge's data path"},
	{"./cmd/chancery", []string{"chancery/signer", "chancery/users/...", "chancery/users", "chancery/token/...", "chancery/token", "chancery/admin", "chancery/softhsm"},
		"the client builds without cgo for every system and knows nothing of the server's store"},
	{"./client", []string{"chancery/signer", "chancery/users", "chancery/token", "chancery/admin", "chancery/artifact/..."},
		"the client library is what other programs link"},
	{"./cmd/chancery-server", []string{"chancery/softhsm", "chancery/softhsm/...", "chancery/swtpm", "chancery/client", "chancery/tunnel/bridge", "testing"},
		"a production daemon holds neither a throw-away token nor the other programs"},
	{"./token", []string{"chancery/..."},
		"what a token is depends on nothing of ours"},
	{"./tunnel/wire", []string{"chancery/tunnel", "chancery/token", "chancery/users", "chancery/signer"},
		"messages are shared by both ends and lean on neither"},
	{"./users", []string{"chancery/tunnel/...", "chancery/tunnel", "chancery/signer", "chancery/artifact/...", "chancery/token/..."},
		"the store knows names of algorithms, not drivers, and nothing of the wire"},
	{"./signer", []string{"chancery/token/pkcs11", "chancery/token/tpm", "chancery/token/soft", "chancery/token/replica", "chancery/artifact/...", "chancery/client"},
		"the session server takes tokens through their interface; only the daemon's wiring names drivers"},
	{"./signer/queue", []string{"chancery/..."},
		"whose turn it is depends on nothing of ours"},
	{"./token/worker", []string{"chancery/token/pkcs11", "chancery/token/tpm", "chancery/token/soft", "chancery/token/replica", "chancery/signer", "chancery/tunnel/...", "chancery/audit"},
		"a token's process keeps any token; who serves sessions is at the other end of its link"},
	{"./internal/confine", []string{"chancery/..."},
		"what a process gives up depends on nothing of ours"},
	{"./seal", []string{"chancery/seal/...", "chancery/token/...", "chancery/signer", "chancery/users/...", "chancery/access/...", "github.com/miekg/pkcs11", "github.com/google/go-tpm/..."},
		"the data key is the same whatever keeps it; what asks hardware runs in a process of its own"},
	{"./seal/tpm", []string{"github.com/miekg/pkcs11", "chancery/token/..."},
		"a TPM's seal needs no PKCS#11 module"},
	{"./access", []string{"chancery/..."},
		"access keys are shared by client and server and lean on neither"},
	{"./artifact/...", []string{"chancery/client", "chancery/tunnel/...", "chancery/tunnel", "chancery/signer", "chancery/users", "chancery/token"},
		"a file format declares the small interface it needs and knows no transport"},
}

func TestImports(t *testing.T) {
	for _, rule := range rules {
		t.Run(strings.ReplaceAll(strings.TrimPrefix(rule.of, "./"), "/", "_"), func(t *testing.T) {
			for dependency := range dependencies(t, rule.of) {
				if forbids(rule.forbidden, dependency) {
					t.Errorf("%s links %s: %s", rule.of, dependency, rule.because)
				}
			}
		})
	}
}

// dependencies lists what the packages import, directly or not, themselves left out.
func dependencies(t *testing.T, pattern string) map[string]bool {
	t.Helper()
	command := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}} {{.DepOnly}}{{else}}{{.ImportPath}} true{{end}}", pattern)
	command.Dir = "../.."
	command.Env = append(command.Environ(), "CGO_ENABLED="+cgoFor(pattern))
	output, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("go list %s: %v\n%s", pattern, err, output)
	}
	found := make(map[string]bool)
	for line := range strings.Lines(string(output)) {
		path, depOnly, _ := strings.Cut(strings.TrimSpace(line), " ")
		if depOnly == "true" {
			found[path] = true
		}
	}
	return found
}

func cgoFor(pattern string) string {
	if pattern == "./cmd/chancery-server" {
		return "1"
	}
	return "0"
}

func forbids(forbidden []string, path string) bool {
	for _, pattern := range forbidden {
		prefix, isTree := strings.CutSuffix(pattern, "/...")
		if path == pattern || isTree && strings.HasPrefix(path, prefix+"/") {
			return true
		}
	}
	return false
}
