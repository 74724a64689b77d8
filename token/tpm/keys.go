package tpm

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"chancery/internal/durable"
	"chancery/token"
)

// Keys lists the keys whose files can be read. A damaged file is left out, so
// that it does not hide the others; Key says what is wrong with it. The TPM is
// not asked.
func (t *Token) Keys(ctx context.Context) ([]token.KeyInfo, error) {
	keys, err := t.list(ctx)
	if err != nil {
		return nil, t.failed("list keys", err)
	}
	return keys, nil
}

func (t *Token) list(ctx context.Context) ([]token.KeyInfo, error) {
	if err := t.take(ctx); err != nil {
		return nil, err
	}
	defer t.give()
	m, entries, err := t.readKeysDir()
	if err != nil {
		return nil, err
	}
	var keys []token.KeyInfo
	for _, entry := range entries {
		id, ok := idOfFile(entry.Name())
		if !ok {
			continue
		}
		if file, err := t.readKeyFile(m, id); err == nil {
			keys = append(keys, file.info)
		}
	}
	return keys, nil
}

// readKeysDir reads the generation in force, again when a change of PIN
// removed it just then.
func (t *Token) readKeysDir() (*manifest, []os.DirEntry, error) {
	for again := true; ; again = false {
		m, err := t.currentManifest()
		if err != nil {
			return nil, nil, err
		}
		entries, err := os.ReadDir(m.keysDir(t.dir))
		if err == nil {
			return m, entries, nil
		}
		if !again || !errors.Is(err, fs.ErrNotExist) {
			return nil, nil, fmt.Errorf("%w: %w", errFile, err)
		}
	}
}

func (t *Token) readKeyFile(m *manifest, id []byte) (*keyFile, error) {
	data, err := durable.ReadLimited(filepath.Join(m.keysDir(t.dir), keyFileName(id)), maxFileSize)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, token.ErrNoKey
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errFile, err)
	}
	file, err := decodeKeyFile(data, t.serial, m.ParentHandle, id)
	if err != nil && !isOurs(err) {
		err = fmt.Errorf("%w: %s: %w", errFile, keyFileName(id), err)
	}
	return file, err
}

// loggedIn returns the manifest when there is a login, and that is one with the
// PIN of now: another process may have changed it.
func (t *Token) loggedIn() (*manifest, error) {
	m, err := t.currentManifest()
	switch {
	case err != nil:
		return nil, err
	case t.auth == nil:
		return nil, token.ErrLoginRequired
	case t.generation != m.Generation:
		return nil, fmt.Errorf("the PIN was changed by another program: %w", token.ErrLoginRequired)
	}
	return m, nil
}

// Key opens one key and has the TPM load it, which shows an altered file
// (token.ErrMismatch).
func (t *Token) Key(ctx context.Context, id []byte) (token.Key, error) {
	var found *key
	err := t.use(ctx, fmt.Sprintf("open key %x", id), func(l *link) (err error) {
		found, err = t.open(l, id)
		return err
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}

func (t *Token) open(l *link, id []byte) (*key, error) {
	m, err := t.loggedIn()
	if err != nil {
		return nil, err
	}
	if !validID(id) {
		return nil, token.ErrNoKey
	}
	file, err := t.readKeyFile(m, id)
	if errors.Is(err, token.ErrNoKey) {
		if _, err := t.loggedIn(); err != nil {
			return nil, err // the PIN was changed just then, and with it the directory
		}
		t.forget(l, id)
	}
	if err != nil {
		return nil, err
	}
	return t.keep(l, file)
}

// keep returns the key from memory when it is the same key, with the file as it
// is now, after the TPM has loaded it.
func (t *Token) keep(l *link, file *keyFile) (*key, error) {
	k := t.keys[string(file.info.ID)]
	switch {
	case k == nil || !equal(k.info.Public, file.info.Public):
		k = &key{token: t, info: file.info}
	case k.file.same(file):
		file = k.file // which may be loaded
	default:
		l.unload(k.file.object)
	}
	if _, err := l.load(file.object); err != nil {
		return nil, err
	}
	if k.file != file {
		k.accepted, k.refused = false, false
	}
	k.file, k.generation = file, t.generation
	t.keys[string(file.info.ID)] = k
	return k, nil
}

// forget drops a key that is no longer on the token; Keys handed out fail from then on.
func (t *Token) forget(l *link, id []byte) {
	if k, ok := t.keys[string(id)]; ok {
		l.unload(k.file.object)
		k.gone = true
		delete(t.keys, string(id))
	}
}

// Destroy removes a key's file. Without it nobody can load the key again,
// except from a copy made before: a TPM does not know what it wrapped.
func (t *Token) Destroy(ctx context.Context, id []byte) error {
	what := fmt.Sprintf("destroy key %x", id)
	if err := t.take(ctx); err != nil {
		return t.failed(what, err)
	}
	defer t.give()
	return t.failed(what, t.destroy(ctx, id))
}

func (t *Token) destroy(ctx context.Context, id []byte) error {
	if _, err := t.loggedIn(); err != nil {
		return err
	}
	if !validID(id) {
		return token.ErrNoKey
	}
	err := t.locked(ctx, func(*manifest) error {
		m, err := t.loggedIn()
		if err != nil {
			return err
		}
		err = durable.Remove(filepath.Join(m.keysDir(t.dir), keyFileName(id)))
		if errors.Is(err, fs.ErrNotExist) {
			return token.ErrNoKey
		}
		if err != nil {
			return fmt.Errorf("%w: %w", errFile, err)
		}
		return nil
	})
	if err == nil || errors.Is(err, token.ErrNoKey) {
		t.forget(&t.link, id)
	}
	return err
}

func equal(a, b crypto.PublicKey) bool {
	comparable, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && comparable.Equal(b)
}

// same tells whether two files hold the same wrapped key.
func (f *keyFile) same(other *keyFile) bool {
	return bytes.Equal(f.public, other.public) && bytes.Equal(f.private.Buffer, other.private.Buffer)
}
