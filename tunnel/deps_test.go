package tunnel_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"chancery/internal/testtool"
)

// TestDependencies holds what the tunnel and the bridge may link, because a
// bridge that cannot link a parser cannot grow one.
func TestDependencies(t *testing.T) {
	goTool := testtool.Need(t, "go")
	allowed := map[string][]string{
		"chancery/tunnel":        {"chancery/tunnel"},
		"chancery/tunnel/bridge": {"chancery/tunnel", "chancery/tunnel/bridge"},
	}
	forbidden := map[string]string{
		"encoding/json": "what a bridge copies is opaque to it; it must be unable to read a request",
		"log/slog":      "it links encoding/json; tunnel.Logger is satisfied by *slog.Logger without it",
		"net/http":      "the data path serves no HTTP; metrics belong to the programs",
		"database/sql":  "who may connect is decided by certificates alone",
		"os/exec":       "nothing on the data path starts programs",
		"runtime/cgo":   "the bridge must be memory-safe; net and os/user are built without cgo here",
	}
	for pkg, own := range allowed {
		cmd := exec.Command(goTool, "list", "-deps", pkg)
		cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("go list: %v\n%s", err, out)
		}
		for dep := range strings.FieldsSeq(string(out)) {
			if reason, bad := forbidden[dep]; bad {
				t.Errorf("%s links %s: %s", pkg, dep, reason)
			}
			first, _, _ := strings.Cut(dep, "/")
			if strings.Contains(first, ".") {
				t.Errorf("%s links %s: only the standard library is trusted on the data path", pkg, dep)
			}
			if first == "chancery" && !slices.Contains(own, dep) {
				t.Errorf("%s links %s: the tunnel knows nothing of what it carries", pkg, dep)
			}
		}
	}
}
