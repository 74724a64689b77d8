package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"chancery/internal/cli"
	"chancery/token"
	"chancery/users"
)

// TestModuleFromTheDatabase stores locations that somebody who can write to the database might choose.
func TestModuleFromTheDatabase(t *testing.T) {
	planted := filepath.Join(t.TempDir(), "planted.so")
	link := filepath.Join(t.TempDir(), "link.so")
	write(t, planted)
	if err := os.Symlink(planted, link); err != nil {
		t.Fatal(err)
	}
	root := rootsFile(t)
	for _, c := range []struct {
		name, location string
		listed         []string
		reason         string // "": it gets past the check
	}{
		{"anybody's", planted, nil, "is not loaded: /"},
		{"behind a link", link, nil, "is not loaded: /"},
		{"relative", "planted.so", nil, "not an absolute path"},
		{"a directory", filepath.Dir(root), nil, "not a regular file"},
		{"root's", root, nil, ""},
		{"root's, not listed", root, []string{planted}, "tokens.modules does not list it"},
		{"listed", planted, []string{root, planted}, ""},
		{"listed by another name", planted, []string{link}, ""},
		{"a link to what is listed", link, []string{planted}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := tokensConfig{Modules: c.listed}
			_, err := config.open(t.Context(), users.Token{Driver: driverPKCS11, Location: c.location, Serial: "1"})
			var refused *cli.Error
			switch {
			case c.reason == "" && !errors.Is(err, token.ErrTokenAbsent): // none of these files is a module
				t.Error(err)
			case c.reason != "" && (!errors.As(err, &refused) || refused.Code != "module_not_allowed" || !strings.Contains(refused.Message, c.reason)):
				t.Errorf("%v, want %q", err, c.reason)
			}
		})
	}
}

func TestModuleIsLoadedFromWhereItIs(t *testing.T) {
	target, link := filepath.Join(t.TempDir(), "module.so"), filepath.Join(t.TempDir(), "link.so")
	write(t, target)
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	want, err := filepath.EvalSymlinks(target)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := (tokensConfig{Modules: []string{link}}).module(link); err != nil || got != want {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
}

func write(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, []byte("no module"), 0o755); err != nil {
		t.Fatal(err)
	}
}

// rootsFile is a file on every system that only root can replace.
func rootsFile(t *testing.T) string {
	t.Helper()
	path, err := filepath.EvalSymlinks("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	return path
}
