package testtool

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"runtime"
	"strings"
	"testing"
)

// Remembers searches all memory of a process for a text. A process that hides its memory shows it to root only; without that right, and on
// other systems than Linux, the test ends as Missing says.
func Remembers(t testing.TB, pid int, text string) bool {
	t.Helper()
	if runtime.GOOS != "linux" {
		Missing(t, "a system that shows processes' memory as files (Linux)")
	}
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if errors.Is(err, fs.ErrPermission) {
		Missing(t, "the right to read other processes' memory (CAP_SYS_PTRACE)")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	regions, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	read := 0
	for line := range strings.Lines(string(regions)) {
		var from, to uint64
		var permissions string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &permissions); err != nil {
			t.Fatalf("%v in %q", err, line)
		}
		if !strings.HasPrefix(permissions, "r") || to > math.MaxInt64 { // the latter is the kernel's
			continue
		}
		found, n := searched(memory, int64(from), int64(to), []byte(text))
		if read += n; found {
			return true
		}
	}
	if read == 0 {
		t.Fatal("no memory could be read")
	}
	return false
}

// searched looks for a text between two addresses, and tells how much it could read.
func searched(memory *os.File, from, to int64, text []byte) (found bool, read int) {
	const step = 1 << 20
	buffer := make([]byte, step+len(text))
	for ; from < to; from += step {
		n, err := memory.ReadAt(buffer[:min(int64(len(buffer)), to-from)], from)
		read += n
		if bytes.Contains(buffer[:n], text) {
			return true, read
		}
		if err != nil { // of the kernel's own pages, which cannot be read, or a region that is no more
			return false, read
		}
	}
	return false, read
}
