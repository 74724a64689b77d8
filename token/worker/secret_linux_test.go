package worker

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"chancery/internal/testtool"
)

// TestAPINThatCannotBeLockedIsTold leaves the process nothing to lock: the log says so, once, and nothing of the PIN.
func TestAPINThatCannotBeLockedIsTold(t *testing.T) {
	var log bytes.Buffer
	v := NewVault(nil, slog.New(slog.NewTextHandler(&log, nil)))
	testtool.WithoutLockedMemory(t, func() {
		v.keepPIN([]byte(rightPIN))
		v.keepPIN([]byte(rightPIN))
	})
	v.forgetKept()
	if text := log.String(); strings.Count(text, "may be swapped out") != 1 || strings.Contains(text, rightPIN) {
		t.Errorf("the log says %q", text)
	}
}
