package confine

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"testing"
	"unsafe"

	"chancery/internal/testtool"
)

// mappingFlags are what the kernel says of the mapping that begins there (VmFlags in /proc/PID/smaps).
func mappingFlags(t *testing.T, begin uintptr) []string {
	t.Helper()
	file, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	found := false
	for lines := bufio.NewScanner(file); lines.Scan(); {
		line := lines.Text()
		if strings.HasPrefix(line, fmt.Sprintf("%x-", begin)) {
			found = true
		}
		if flags, ok := strings.CutPrefix(line, "VmFlags:"); ok && found {
			return strings.Fields(flags)
		}
	}
	t.Fatalf("no mapping begins at %x", begin)
	return nil
}

func TestSecretIsLocked(t *testing.T) {
	s := NewSecret([]byte("1234"))
	defer s.Destroy()
	if len(s.Notices()) > 0 {
		t.Fatalf("notices: %v", s.Notices())
	}
	flags := strings.Join(mappingFlags(t, uintptr(unsafe.Pointer(&s.region[0]))), " ")
	for _, flag := range []string{"lo", "dd", "dc"} { // locked, don't dump, don't copy on fork
		if !strings.Contains(flags, flag) {
			t.Errorf("the mapping's flags %q lack %s", flags, flag)
		}
	}
}

// TestSecretThatCannotBeLocked leaves the process nothing to lock.
func TestSecretThatCannotBeLocked(t *testing.T) {
	var s *Secret
	testtool.WithoutLockedMemory(t, func() { s = NewSecret([]byte("1234")) })
	defer s.Destroy()
	if notices := s.Notices(); len(notices) != 1 || !strings.Contains(notices[0].What, "swapped") {
		t.Errorf("notices: %v", notices)
	}
	if !s.Use(func(secret []byte) {
		if string(secret) != "1234" {
			t.Error("the secret has changed")
		}
	}) {
		t.Error("it cannot be used")
	}
}
