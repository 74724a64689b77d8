package confine

import (
	"fmt"
	"io"
	"sync"
)

// concealed stands wherever a Secret is printed.
const concealed = "(secret)"

// Secret keeps a PIN, or something as short, in memory of its own: locked, so that it is never swapped out, left out of
// core files, and not there in a child process. Its methods may be called from several goroutines at once.
type Secret struct {
	mu      sync.RWMutex
	region  []byte // whole pages outside of Go's heap, or of the heap where the system gave none
	mapped  bool
	length  int
	notices []Notice
}

// NewSecret copies value, which stays the caller's to clear. It never fails: Notices tells what the system
// did not grant, such as locking where RLIMIT_MEMLOCK is spent.
func NewSecret(value []byte) *Secret {
	s := &Secret{length: len(value)}
	s.region, s.mapped, s.notices = allocate(len(value))
	copy(s.region, value)
	return s
}

// Notices tells what protection this secret goes without; nil if none.
func (s *Secret) Notices() []Notice { return s.notices }

// Use calls use with the secret itself, not with a copy; it must neither change nor keep it. Once the secret is
// destroyed, use is not called and the answer is false.
func (s *Secret) Use(use func(secret []byte)) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.region == nil {
		return false
	}
	use(s.region[:s.length:s.length])
	return true
}

// Destroy waits for every Use under way, overwrites the secret and gives its memory back. It may be called again.
func (s *Secret) Destroy() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.region == nil {
		return
	}
	clear(s.region)
	if s.mapped {
		release(s.region)
	}
	s.region = nil
}

// Format prints a fixed text, whatever the verb.
func (s *Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, concealed) }

// String is a fixed text.
func (s *Secret) String() string { return concealed }

// MarshalText gives a fixed text, in JSON and in logs too.
func (s *Secret) MarshalText() ([]byte, error) { return []byte(concealed), nil }
