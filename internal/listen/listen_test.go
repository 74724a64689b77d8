package listen

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
)

func TestFailed(t *testing.T) {
	for cause, want := range map[error]struct{ code, hint string }{
		syscall.EADDRINUSE:            {"port_busy", "stop that program, or change listen.clients in the configuration"},
		syscall.EACCES:                {"port_denied", "CAP_NET_BIND_SERVICE"},
		errors.New("no such address"): {"listen_failed", "check listen.clients in the configuration"},
	} {
		told := Failed("clients", ":44334", "listen.clients", fmt.Errorf("listen: %w", cause))
		if told.Code != want.code || !strings.Contains(told.Hint, want.hint) || !errors.Is(told, cause) || !strings.HasPrefix(told.Message, "cannot listen for clients on :44334: ") {
			t.Errorf("%v is told as %+v", cause, told)
		}
	}
}
