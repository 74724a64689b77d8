package tpm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"chancery/internal/durable"
)

// Create makes a new token in config.Directory, which must be absent or empty.
// The PIN has MinPINLength to MaxPINLength bytes (else token.ErrPINInvalid); no
// reference to it is kept. It trusts the TPM at config.Device, which it sees for
// the first time.
func Create(config Config, label string, pin []byte) error {
	if err := create(config, label, pin); err != nil {
		return fmt.Errorf("tpm: create token %q: %w", label, translate(err))
	}
	return nil
}

func create(config Config, label string, pin []byte) error {
	if err := checkNewPIN(pin); err != nil {
		return err
	}
	if err := checkTokenLabel(label); err != nil {
		return err
	}
	if err := prepareDir(config.Directory); err != nil {
		return fmt.Errorf("%w: %w", errFile, err)
	}
	m, err := createOnTPM(config, label, pin)
	if err != nil {
		return err
	}
	if err := os.Mkdir(m.keysDir(config.Directory), 0o700); err != nil {
		return fmt.Errorf("%w: %w", errFile, err)
	}
	if err := durable.PublishNew(filepath.Join(config.Directory, manifestName), m.encode()); err != nil {
		return fmt.Errorf("%w: %w", errFile, err)
	}
	return nil
}

func createOnTPM(config Config, label string, pin []byte) (m *manifest, err error) {
	l := &link{config: config}
	defer l.close()
	err = l.run(func() error {
		m = newManifest(label, l.parent, config.Parent)
		auth := m.authorisation(pin)
		defer clear(auth)
		return l.makePINObject(m, auth)
	})
	return m, err
}

// prepareDir makes the token's directory, or takes over an empty one.
func prepareDir(dir string) error {
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
			return err
		}
		return os.Mkdir(dir, 0o700)
	case err != nil:
		return err
	case len(entries) > 0:
		return fmt.Errorf("%s is not empty; name a new one", dir)
	}
	return os.Chmod(dir, 0o700)
}
