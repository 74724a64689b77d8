package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"chancery/internal/cli"
	"chancery/signer"
	"chancery/token"
)

// tokensConfig says which code a token may bring into the process. A module's path stands in the
// database, and whoever writes there must not thereby choose what the daemon loads and runs.
type tokensConfig struct {
	Modules     []string      `mapstructure:"modules"`      // empty: what only root can have put there
	TPM         string        `mapstructure:"tpm"`          // the device of tokens in the TPM, and of seals
	Network     []string      `mapstructure:"network"`      // names of tokens whose processes may use the network
	Writable    []string      `mapstructure:"writable"`     // what all tokens' processes may write to
	CallTimeout time.Duration `mapstructure:"call_timeout"` // a call that takes longer ends the token's process
	OpenTimeout time.Duration `mapstructure:"open_timeout"`
	Queue       int           `mapstructure:"queue"`          // requests that wait for one token
	QueueUser   int           `mapstructure:"queue_per_user"` // of these, of one user

	UnsafeUnverified bool `mapstructure:"unsafe_unverified"` // for measurements only
}

func (c tokensConfig) validate() error {
	for _, path := range c.Modules {
		if !filepath.IsAbs(path) {
			return cli.Misconfigured("tokens.modules: %q is not an absolute path", path)
		}
	}
	if path := strings.TrimPrefix(c.TPM, "unix:"); !filepath.IsAbs(path) {
		return cli.Misconfigured("tokens.tpm: %q is neither the absolute path of a device nor unix: and that of a socket", c.TPM)
	}
	for _, path := range c.Writable {
		if !filepath.IsAbs(path) {
			return cli.Misconfigured("tokens.writable: %q is not an absolute path", path)
		}
	}
	switch {
	case c.CallTimeout <= 0:
		return cli.Misconfigured("tokens.call_timeout is %s: more than 0, for example 10s", c.CallTimeout)
	case c.OpenTimeout <= 0:
		return cli.Misconfigured("tokens.open_timeout is %s: more than 0, for example 30s", c.OpenTimeout)
	case c.Queue < 1:
		return cli.Misconfigured("tokens.queue is %d: at least 1", c.Queue)
	case c.QueueUser < 1:
		return cli.Misconfigured("tokens.queue_per_user is %d: at least 1", c.QueueUser)
	}
	return nil
}

// apply fills in what the configuration says of tokens.
func (c tokensConfig) apply(s *signer.Config) {
	s.TokenQueue, s.TokenQueueUser = c.Queue, c.QueueUser
	s.OpenTimeout = c.OpenTimeout
}

// module returns the file to load for a PKCS#11 module's path, if that may be loaded. It has no symbolic
// links any more, so that exchanging one after the check changes nothing.
func (c tokensConfig) module(path string) (string, error) {
	if !filepath.IsAbs(path) {
		return "", moduleRefused(path, "it is not an absolute path")
	}
	resolved, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("module %s is not installed: %w", path, token.ErrTokenAbsent)
	}
	if err != nil {
		return "", fmt.Errorf("module %s: %w", path, err)
	}
	if len(c.Modules) > 0 {
		if !slices.ContainsFunc(c.Modules, func(listed string) bool { return leadsTo(listed, resolved) }) {
			return "", moduleRefused(path, "tokens.modules does not list it")
		}
		return resolved, nil
	}
	if reason := notRoots(resolved); reason != "" {
		return "", moduleRefused(path, reason)
	}
	return resolved, nil
}

func leadsTo(path, resolved string) bool {
	target, err := filepath.EvalSymlinks(path)
	return err == nil && target == resolved
}

// notRoots says why others than root could have put a file in its place, or "".
func notRoots(path string) string {
	for at := path; ; at = filepath.Dir(at) {
		info, err := os.Lstat(at)
		if err != nil {
			return err.Error()
		}
		stat, known := info.Sys().(*syscall.Stat_t)
		switch {
		case at == path && !info.Mode().IsRegular():
			return at + " is not a regular file"
		case !known || stat.Uid != 0:
			return at + " does not belong to root"
		case info.Mode().Perm()&0o022 != 0:
			return at + " can be written by its group or others"
		case at == filepath.Dir(at):
			return ""
		}
	}
}

func moduleRefused(path, reason string) error {
	return &cli.Error{
		Exit: cli.ExitUsage, Code: "module_not_allowed",
		Message: fmt.Sprintf("the PKCS#11 module %s is not loaded: %s; a module must be a regular file that, with each directory above it, belongs to root and can be written by nobody else", path, reason),
		Hint:    "if you trust it, list it in tokens.modules of the configuration",
	}
}
