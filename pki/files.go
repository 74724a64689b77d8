package pki

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// ErrExists is returned instead of overwriting a file. Move the old one away
// first, or choose another name.
var ErrExists = errors.New("pki: the file exists already")

// WritePair writes NAME.crt (mode 0644) and NAME.key (mode 0600) into dir, which
// is made with mode 0755 if it is missing, and returns their paths. It never
// overwrites (ErrExists), and leaves neither file behind when it fails. The
// name must be a plain file name (ErrRequest).
func WritePair(dir, name string, certPEM, keyPEM []byte) (certPath, keyPath string, err error) {
	if name == "" || name != filepath.Base(name) || strings.HasPrefix(name, ".") {
		return "", "", fmt.Errorf("%w: %q cannot be the name of the files: choose one without a slash that does not begin with a dot", ErrRequest, name)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", "", fmt.Errorf("pki: make directory %q: %w", dir, err)
	}
	certPath, keyPath = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	if err := writeNew(keyPath, keyPEM, 0o600); err != nil {
		return "", "", err
	}
	if err := writeNew(certPath, certPEM, 0o644); err != nil {
		return "", "", errors.Join(err, os.Remove(keyPath))
	}
	return certPath, keyPath, nil
}

// Write writes the authority as NAME.crt and NAME.key; see WritePair.
func (ca *CA) Write(dir, name string) (certPath, keyPath string, err error) {
	keyPEM, err := ca.KeyPEM()
	if err != nil {
		return "", "", err
	}
	return WritePair(dir, name, ca.CertificatePEM(), keyPEM)
}

// writeNew creates a file that does not exist yet and makes it durable.
func writeNew(path string, content []byte, mode os.FileMode) (err error) {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w: %q", ErrExists, path)
	}
	if err != nil {
		return fmt.Errorf("pki: create %q: %w", path, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("pki: write %q: %w", path, err), os.Remove(path))
		}
	}()
	_, err = file.Write(content)
	if err == nil {
		err = file.Sync()
	}
	return errors.Join(err, file.Close())
}
