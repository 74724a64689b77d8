package confine

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
)

func TestSecret(t *testing.T) {
	for _, value := range []string{"", "1234", strings.Repeat("long ", 2000)} {
		source := []byte(value)
		s := NewSecret(source)
		clear(source)
		if !s.Use(func(secret []byte) {
			if string(secret) != value {
				t.Errorf("the secret of %d bytes has changed", len(value))
			}
		}) {
			t.Error("a fresh secret cannot be used")
		}
		s.Destroy()
		s.Destroy()
		if s.Use(func([]byte) { t.Error("called with a destroyed secret") }) {
			t.Error("a destroyed secret can be used")
		}
	}
}

func TestSecretIsNotPrinted(t *testing.T) {
	const value = "739205"
	s := NewSecret([]byte(value))
	defer s.Destroy()
	encoded, err := json.Marshal(map[string]any{"pin": s})
	if err != nil {
		t.Fatal(err)
	}
	texts := []string{string(encoded), s.String()}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		texts = append(texts, fmt.Sprintf(verb, s), fmt.Sprintf(verb, struct{ S *Secret }{s}), fmt.Sprintf(verb, []*Secret{s}))
	}
	for _, text := range texts {
		if strings.Contains(text, value) || strings.Contains(text, fmt.Sprintf("%x", value)) {
			t.Errorf("it shows in %q", text)
		}
	}
}

func TestSecretInUseWhileDestroyed(t *testing.T) {
	s := NewSecret([]byte("1234"))
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for s.Use(func(secret []byte) {
				if string(secret) != "1234" {
					t.Error("changed under use")
				}
			}) {
			}
		})
	}
	s.Destroy()
	all.Wait()
}
