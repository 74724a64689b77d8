package seal

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"chancery/internal/credential"
)

const (
	infoSecret = "chancery seal 1: share of a secret file"

	// MinSecretSize is the shortest secret, in bytes.
	MinSecretSize = 32
	maxSecretSize = 4096
	saltSize      = 32
)

// File names a small secret file, or a systemd credential.
type File struct {
	Path       string `json:"file,omitempty"`
	Credential string `json:"credential,omitempty"` // below $CREDENTIALS_DIRECTORY, or among those of the daemon's unit
}

// unitCredentials is where systemd keeps the running daemon's credentials, for the daemon's user: operators' commands have no
// $CREDENTIALS_DIRECTORY of their own.
const unitCredentials = "/run/credentials/chancery-server.service"

// Name is the file's path.
func (f File) Name() string {
	if f.Credential == "" {
		return f.Path
	}
	if directory := os.Getenv("CREDENTIALS_DIRECTORY"); directory != "" {
		return filepath.Join(directory, f.Credential)
	}
	return filepath.Join(unitCredentials, f.Credential)
}

// Check tells what is wrong with the name itself: ErrUnsuitable, or nil.
func (f File) Check() error {
	switch {
	case (f.Path == "") == (f.Credential == ""):
		return fmt.Errorf("%w: name a file or a credential", ErrUnsuitable)
	case f.Path != "" && !filepath.IsAbs(f.Path):
		return fmt.Errorf("%w: %q is not an absolute path", ErrUnsuitable, f.Path)
	case f.Credential != "" && (filepath.Base(f.Credential) != f.Credential || strings.HasPrefix(f.Credential, ".")):
		return fmt.Errorf("%w: credential %q is not a plain file name", ErrUnsuitable, f.Credential)
	}
	return nil
}

// managed tells whether systemd sees to it that nobody else reads the file, whose mode says nothing then.
func (f File) managed() bool {
	return f.Credential != "" && (os.Getenv("CREDENTIALS_DIRECTORY") == "" || credential.Is(f.Name()))
}

// Secret is a Keeper whose share is derived from a file of at least MinSecretSize random bytes, such as a systemd
// credential, and a salt. It has to be a secret that is not stored where the database is.
type Secret struct{ File }

var _ Keeper = Secret{}

// New derives a share with a new salt.
func (s Secret) New(ctx context.Context) (share, kept []byte, err error) {
	kept = make([]byte, saltSize)
	rand.Read(kept)
	share, err = s.Share(ctx, kept)
	return share, kept, err
}

// Share derives the share again. Errors: ErrAbsent, ErrUnsuitable.
func (s Secret) Share(_ context.Context, kept []byte) ([]byte, error) {
	secret, err := s.Read()
	if err != nil {
		return nil, err
	}
	defer clear(secret)
	if len(secret) < MinSecretSize || len(bytes.Trim(secret, string(secret[:1]))) == 0 {
		return nil, fmt.Errorf("%w: %s has to hold at least %d random bytes", ErrUnsuitable, s.Name(), MinSecretSize)
	}
	return derive(secret, kept, infoSecret, ShareSize), nil
}

// Read reads the file, a regular one that only its owner can read, or the credential. The caller clears it.
// Errors: ErrAbsent, ErrUnsuitable.
func (f File) Read() ([]byte, error) {
	if err := f.Check(); err != nil {
		return nil, err
	}
	path := f.Name()
	file, err := os.OpenFile(path, os.O_RDONLY|openFlags, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrAbsent, err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrAbsent, err)
	}
	switch {
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%w: %s is not a regular file", ErrUnsuitable, path)
	case info.Mode().Perm()&0o077 != 0 && !f.managed():
		return nil, fmt.Errorf("%w: %s can be read by others: run chmod 0600 %s", ErrUnsuitable, path, path)
	case info.Size() == 0 || info.Size() > maxSecretSize:
		return nil, fmt.Errorf("%w: %s has %d bytes, not 1 to %d", ErrUnsuitable, path, info.Size(), maxSecretSize)
	}
	secret := make([]byte, info.Size())
	if _, err := io.ReadFull(file, secret); err != nil {
		clear(secret)
		return nil, fmt.Errorf("%w: %w", ErrAbsent, err)
	}
	return secret, nil
}
