// Package credential knows the files that systemd hands to a service as credentials
// (systemd.exec(5), LoadCredential=). Their modes say nothing: access to them is restricted in other ways.
package credential

import (
	"errors"
	"os"
	"path/filepath"
)

// Is tells whether a path lies, symbolic links resolved, in the directory of systemd's credentials.
func Is(path string) bool {
	directory := os.Getenv("CREDENTIALS_DIRECTORY")
	if directory == "" {
		return false
	}
	directory, dirErr := filepath.EvalSymlinks(directory)
	path, pathErr := filepath.EvalSymlinks(path)
	if errors.Join(dirErr, pathErr) != nil {
		return false
	}
	relative, err := filepath.Rel(directory, path)
	return err == nil && filepath.IsLocal(relative)
}
