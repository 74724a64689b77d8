package soft

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"chancery/internal/durable"
	"chancery/token"
)

const keyFileSuffix = ".json"

func (t *Token) keyPath(id []byte) string {
	return filepath.Join(t.dir, keysDirName, hex.EncodeToString(id)+keyFileSuffix)
}

// Keys lists the keys whose files can be read. A damaged file is left out, so
// that it does not hide the others; Key says what is wrong with it.
func (t *Token) Keys(ctx context.Context) ([]token.KeyInfo, error) {
	if err := t.ready(ctx); err != nil {
		return nil, t.failed("list keys", err)
	}
	entries, err := os.ReadDir(filepath.Join(t.dir, keysDirName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, t.failed("list keys", fmt.Errorf("directory is gone: %w", token.ErrTokenAbsent))
	}
	if err != nil {
		return nil, t.failed("list keys", err)
	}
	var keys []token.KeyInfo
	for _, entry := range entries {
		id, ok := idOfFile(entry.Name())
		if !ok {
			continue
		}
		if _, _, info, err := t.readKeyFile(id); err == nil {
			keys = append(keys, info)
		}
	}
	return keys, nil
}

// idOfFile reads the identifier in a key file's name; temporary files have none.
func idOfFile(name string) ([]byte, bool) {
	digits, ok := strings.CutSuffix(name, keyFileSuffix)
	if !ok || digits != strings.ToLower(digits) {
		return nil, false
	}
	id, err := hex.DecodeString(digits)
	if err != nil || len(id) < 1 || len(id) > token.MaxIDLength {
		return nil, false
	}
	return id, true
}

func (t *Token) readKeyFile(id []byte) (data []byte, file *keyFile, info token.KeyInfo, err error) {
	data, err = durable.ReadLimited(t.keyPath(id), maxFileSize)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, token.KeyInfo{}, token.ErrNoKey
	}
	if err != nil {
		return nil, nil, token.KeyInfo{}, err
	}
	file, info, err = decodeKeyFile(data, id)
	return data, file, info, err
}

// Key opens one key. An altered file is token.ErrMismatch and leaves the other
// keys alone.
func (t *Token) Key(ctx context.Context, id []byte) (token.Key, error) {
	k, err := t.openKey(ctx, id)
	if err != nil {
		return nil, t.failed(fmt.Sprintf("open key %x", id), err)
	}
	return k, nil
}

func (t *Token) openKey(ctx context.Context, id []byte) (*key, error) {
	if err := t.ready(ctx); err != nil {
		return nil, err
	}
	if !t.loggedIn() {
		return nil, token.ErrLoginRequired
	}
	if len(id) < 1 || len(id) > token.MaxIDLength {
		return nil, token.ErrNoKey
	}
	data, file, info, err := t.readKeyFile(id)
	if errors.Is(err, token.ErrNoKey) {
		t.forget(id)
	}
	if err != nil {
		return nil, err
	}
	return t.unsealed(data, file, info)
}

// unsealed returns the key from memory when its file is what it was, and else
// opens it and keeps it.
func (t *Token) unsealed(data []byte, file *keyFile, info token.KeyInfo) (*key, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, token.ErrClosed
	}
	if t.master == nil {
		return nil, token.ErrLoginRequired
	}
	k, known := t.keys[string(info.ID)]
	if known = known && k.source == string(data); known && k.private != nil {
		return k, nil
	}
	aead, err := newCipher(t.master)
	if err != nil {
		return nil, err
	}
	signer, err := file.open(aead, t.serial)
	if err != nil {
		return nil, err
	}
	if known { // from before a logout: whoever has it goes on with it
		k.private = signer
		return k, nil
	}
	if k != nil {
		k.wipe() // the file was written anew; whoever has the Key comes back here
	}
	k = &key{token: t, info: info, private: signer, source: string(data)}
	t.keys[string(info.ID)] = k
	return k, nil
}

// forget drops a key that is no longer on the token; Keys handed out fail from then on.
func (t *Token) forget(id []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if k, ok := t.keys[string(id)]; ok {
		k.wipe()
		delete(t.keys, string(id))
	}
}

// Generate makes a key with the standard library and seals it.
func (t *Token) Generate(ctx context.Context, spec token.KeySpec) (token.Key, error) {
	what := fmt.Sprintf("generate key %x", spec.ID)
	if err := t.mayAdd(ctx, spec); err != nil {
		return nil, t.failed(what, err)
	}
	private, err := generate(spec.Algorithm)
	if err != nil {
		return nil, t.failed(what, err)
	}
	k, err := t.add(ctx, spec, private)
	if err != nil {
		return nil, t.failed(what, err)
	}
	return k, nil
}

// Import seals an existing private key.
func (t *Token) Import(ctx context.Context, spec token.KeySpec, private crypto.PrivateKey) (token.Key, error) {
	what := fmt.Sprintf("import key %x", spec.ID)
	if err := t.mayAdd(ctx, spec); err != nil {
		return nil, t.failed(what, err)
	}
	if _, err := token.CheckPrivate(spec.Algorithm, private); err != nil {
		return nil, t.failed(what, err)
	}
	k, err := t.add(ctx, spec, private.(crypto.Signer))
	if err != nil {
		return nil, t.failed(what, err)
	}
	return k, nil
}

// mayAdd refuses early what add would refuse after a slow key generation.
func (t *Token) mayAdd(ctx context.Context, spec token.KeySpec) error {
	if err := t.ready(ctx); err != nil {
		return err
	}
	if err := token.CheckSpec(spec, token.Algorithms()); err != nil {
		return err
	}
	if !t.loggedIn() {
		return token.ErrLoginRequired
	}
	if _, err := os.Lstat(t.keyPath(spec.ID)); err == nil {
		return token.ErrKeyExists
	}
	return nil
}

func generate(a token.Algorithm) (crypto.Signer, error) {
	if bits := a.RSABits(); bits != 0 {
		return rsa.GenerateKey(rand.Reader, bits)
	}
	if curve := a.Curve(); curve != nil {
		return ecdsa.GenerateKey(curve, rand.Reader)
	}
	_, private, err := ed25519.GenerateKey(rand.Reader)
	return private, err
}

// add seals the key, publishes its file and reads it back as any other.
func (t *Token) add(ctx context.Context, spec token.KeySpec, private crypto.Signer) (*key, error) {
	file, err := newKeyFile(spec, private.Public())
	if err != nil {
		return nil, err
	}
	if err := t.seal(file, private); err != nil {
		return nil, err
	}
	err = t.locked(ctx, func() error {
		err := durable.PublishNew(t.keyPath(spec.ID), file.encode())
		if errors.Is(err, fs.ErrExist) {
			return token.ErrKeyExists
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	// The key exists now: a caller whose context ended meanwhile still gets it.
	return t.openKey(context.WithoutCancel(ctx), spec.ID)
}

func (t *Token) seal(file *keyFile, private crypto.Signer) error {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.master == nil {
		return token.ErrLoginRequired
	}
	aead, err := newCipher(t.master)
	if err != nil {
		return err
	}
	return file.seal(aead, t.serial, private)
}

// Destroy removes a key's file. Keys handed out by this process fail from then on.
func (t *Token) Destroy(ctx context.Context, id []byte) error {
	return t.failed(fmt.Sprintf("destroy key %x", id), t.destroy(ctx, id))
}

func (t *Token) destroy(ctx context.Context, id []byte) error {
	if err := t.ready(ctx); err != nil {
		return err
	}
	if !t.loggedIn() {
		return token.ErrLoginRequired
	}
	if len(id) < 1 || len(id) > token.MaxIDLength {
		return token.ErrNoKey
	}
	err := t.locked(ctx, func() error { return durable.Remove(t.keyPath(id)) })
	if errors.Is(err, fs.ErrNotExist) {
		err = token.ErrNoKey
	}
	if err == nil || errors.Is(err, token.ErrNoKey) {
		t.forget(id)
	}
	return err
}
