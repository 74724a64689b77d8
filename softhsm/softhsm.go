// Package softhsm makes throw-away SoftHSM tokens, for tests and for `dev`.
//
// SoftHSM reads its configuration, which names the directory of its tokens,
// when a process initialises the module. A process therefore sees one Store at
// a time: close all tokens of one before making another.
package softhsm

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"chancery/internal/testtool"
	"chancery/token/pkcs11"
)

// Environment variables.
const (
	envConfig = "SOFTHSM2_CONF"   // SoftHSM's own
	envModule = "SOFTHSM2_MODULE" // path of the module, for distributions that FindModule does not know
)

// ErrNotInstalled says that FindModule found no SoftHSM.
var ErrNotInstalled = errors.New("softhsm: not installed; install the package softhsm2 (Debian) or softhsm (Fedora, Arch), or set SOFTHSM2_MODULE")

// places are where distributions keep the module.
var places = []string{
	"/usr/lib/softhsm/libsofthsm2.so",                  // Debian, Ubuntu
	"/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so", // Debian, Ubuntu
	"/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
	"/usr/lib64/pkcs11/libsofthsm2.so",  // Fedora
	"/usr/lib64/softhsm/libsofthsm2.so", // Fedora, openSUSE
	"/usr/lib64/libsofthsm2.so",
	"/usr/lib/pkcs11/libsofthsm2.so", // Arch
	"/usr/lib/libsofthsm2.so",        // Arch
	"/usr/local/lib/softhsm/libsofthsm2.so",
	"/opt/homebrew/lib/softhsm/libsofthsm2.so",
}

// FindModule returns the path of SoftHSM's PKCS#11 module, or ErrNotInstalled.
func FindModule() (string, error) {
	if path := os.Getenv(envModule); path != "" {
		if _, err := os.Stat(path); err != nil {
			return "", fmt.Errorf("softhsm: %s: %w", envModule, err)
		}
		return path, nil
	}
	for _, path := range places {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", ErrNotInstalled
}

// Store is a directory of SoftHSM tokens.
type Store struct {
	Module string // path of the PKCS#11 module
	Config string // path of softhsm2.conf
}

// Token is one token of a Store.
type Token struct {
	Store  *Store
	Label  string
	Serial string // selects the token; slot numbers change
	PIN    []byte // the user PIN
}

// NewStore makes an empty store in dir, which it creates when absent, and sets
// SOFTHSM2_CONF for this process.
func NewStore(dir string) (*Store, error) {
	module, err := FindModule()
	if err != nil {
		return nil, err
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("softhsm: %w", err)
	}
	tokens := filepath.Join(dir, "tokens")
	if err := os.MkdirAll(tokens, 0o700); err != nil {
		return nil, fmt.Errorf("softhsm: %w", err)
	}
	store := &Store{Module: module, Config: filepath.Join(dir, "softhsm2.conf")}
	text := "directories.tokendir = " + tokens + "\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n"
	if err := os.WriteFile(store.Config, []byte(text), 0o600); err != nil {
		return nil, fmt.Errorf("softhsm: %w", err)
	}
	if err := os.Setenv(envConfig, store.Config); err != nil {
		return nil, fmt.Errorf("softhsm: %w", err)
	}
	return store, nil
}

// Env returns what a child process needs in its environment to see this store.
func (s *Store) Env() []string {
	return []string{envConfig + "=" + s.Config}
}

// AddToken makes one more token, with a random security officer's PIN that
// nobody keeps. The user PIN has 4 to 255 bytes.
func (s *Store) AddToken(label string, pin []byte) (*Token, error) {
	serial, err := pkcs11.Initialize(pkcs11.NewTokenConfig{
		Module: s.Module,
		Label:  label,
		SOPIN:  []byte(rand.Text()),
		PIN:    pin,
	})
	if err != nil {
		return nil, fmt.Errorf("softhsm: %w", err)
	}
	return &Token{Store: s, Label: label, Serial: serial, PIN: pin}, nil
}

// New makes a store in dir with one token.
func New(dir, label string, pin []byte) (*Token, error) {
	store, err := NewStore(dir)
	if err != nil {
		return nil, err
	}
	return store.AddToken(label, pin)
}

// Env returns what a child process needs in its environment to see this token.
func (t *Token) Env() []string {
	return t.Store.Env()
}

// ForTest makes a store with one token that live as long as the test. Without
// SoftHSM the test ends as testtool.Missing says.
func ForTest(t testing.TB) *Token {
	t.Helper()
	if _, err := FindModule(); err != nil {
		testtool.Missing(t, "SoftHSM")
	}
	t.Setenv(envConfig, "") // restores it after the test
	made, err := New(t.TempDir(), "chancery test", []byte("correct PIN"))
	if err != nil {
		t.Fatal(err)
	}
	return made
}
