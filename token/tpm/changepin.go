package tpm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-tpm/tpm2"

	"chancery/internal/durable"
	"chancery/token"
)

// ChangePIN has the TPM wrap every key anew with the authorisation that belongs
// to the new PIN (TPM2_ObjectChangeAuth). The new files form a generation of
// their own, which one rename of token.json puts in force: after a crash either
// the old PIN or the new one works, for all keys.
//
// A wrong old PIN costs one of the TPM's tries, and so does each file that was
// wrapped under another PIN. The last one is not spent: nothing changes then
// (token.ErrPINLocked). Copies of the old files, if anybody has them, still open
// with the old PIN on this TPM.
func (t *Token) ChangePIN(ctx context.Context, old, new []byte) error {
	if err := checkNewPIN(new); err != nil {
		return t.failed("change PIN", err)
	}
	return t.use(ctx, "change PIN", func(l *link) error {
		return t.locked(ctx, func(m *manifest) error {
			return t.changePIN(l, m, old, new)
		})
	})
}

func (t *Token) changePIN(l *link, m *manifest, old, new []byte) error {
	if err := l.mayTryPIN(old); err != nil {
		return err
	}
	oldAuth := m.authorisation(old)
	defer clear(oldAuth)
	if err := l.provePIN(m, oldAuth); err != nil {
		return err
	}
	next := *m
	next.Generation, next.Salt = randomHex(generationBytes), randomBytes(saltBytes)
	newAuth := next.authorisation(new)
	change := pinChange{token: t, link: l, from: m, to: &next, oldAuth: oldAuth, newAuth: newAuth}
	if err := change.run(); err != nil {
		clear(newAuth)
		return err
	}
	t.followPIN(l, &next, newAuth)
	_ = t.sweep(&next) // what is left of the old generation goes with the next change
	return nil
}

// followPIN has a login made with the old PIN go on with the new one.
func (t *Token) followPIN(l *link, m *manifest, auth []byte) {
	l.evict(0)
	l.endSession()
	if t.auth == nil {
		clear(auth)
		return
	}
	t.logIn(m, auth)
}

// pinChange writes a generation.
type pinChange struct {
	token            *Token
	link             *link
	from, to         *manifest
	oldAuth, newAuth []byte
	foreign          []string // files that were wrapped under another PIN, fewer than the TPM has tries
}

func (c *pinChange) run() error {
	if err := c.rewrapPIN(); err != nil {
		return err
	}
	dir := c.to.keysDir(c.token.dir)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("%w: %w", errFile, err)
	}
	if err := c.rewrapAll(dir); err != nil {
		_ = os.RemoveAll(dir) // else the next change removes it
		return err
	}
	if err := durable.SyncDir(c.token.dir); err != nil {
		return fmt.Errorf("%w: %w", errFile, err)
	}
	// A power cut within Replace leaves one of the two manifests, and both generations are there.
	if err := durable.Replace(filepath.Join(c.token.dir, manifestName), c.to.encode()); err != nil {
		return fmt.Errorf("%w: %w", errFile, err)
	}
	return nil
}

func (c *pinChange) rewrapPIN() error {
	pinObject, err := c.from.pinObject()
	if err != nil {
		return err
	}
	private, err := c.rewrap(pinObject)
	if err != nil {
		return err
	}
	c.to.PINPrivate = private.Buffer
	return nil
}

func (c *pinChange) rewrapAll(dir string) error {
	entries, err := os.ReadDir(c.from.keysDir(c.token.dir))
	if err != nil {
		return fmt.Errorf("%w: %w", errFile, err)
	}
	for _, entry := range entries {
		id, ok := idOfFile(entry.Name())
		if !ok {
			continue
		}
		data, err := c.rewrapFile(id)
		if errors.Is(err, token.ErrPINLocked) && len(c.foreign) > 0 {
			return fmt.Errorf("each of %s was wrapped under another PIN and cost a try, move them elsewhere: %w", strings.Join(c.foreign, ", "), err)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", entry.Name(), err)
		}
		if err := durable.PublishNew(filepath.Join(dir, entry.Name()), data); err != nil {
			return fmt.Errorf("%w: %w", errFile, err)
		}
	}
	return nil
}

// rewrapFile returns the new content of a key file. A file that is no key of
// this token stays as it is, for whoever looks into what happened to it.
func (c *pinChange) rewrapFile(id []byte) ([]byte, error) {
	file, err := c.token.readKeyFile(c.from, id)
	if err == nil {
		var changed tpm2.TPM2BPrivate
		if changed, err = c.rewrap(file.object); err == nil {
			file.private = changed
			return file.encode(c.to.ParentHandle), nil
		}
	}
	if !errors.Is(err, token.ErrMismatch) && !errors.Is(err, errFile) {
		return nil, err
	}
	if errors.Is(err, errForeign) {
		c.foreign = append(c.foreign, keyFileName(id))
	}
	data, err := durable.ReadLimited(filepath.Join(c.from.keysDir(c.token.dir), keyFileName(id)), maxFileSize)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errFile, err)
	}
	return data, nil
}

// rewrap changes one object's authorisation. The new one crosses the wire encrypted.
func (c *pinChange) rewrap(o *object) (tpm2.TPM2BPrivate, error) {
	l := c.link
	if err := l.mayTry(); err != nil {
		return tpm2.TPM2BPrivate{}, err
	}
	l.evict(0)
	handle, err := l.loadOnce(o)
	if err != nil {
		return tpm2.TPM2BPrivate{}, err
	}
	rsp, err := tpm2.ObjectChangeAuth{
		ObjectHandle: tpm2.AuthHandle{
			Handle: handle.Handle, Name: handle.Name,
			Auth: l.parent.Session(tpm2.Auth(c.oldAuth), EncryptedIn()),
		},
		ParentHandle: tpm2.NamedHandle{Handle: l.parent.Handle, Name: l.parent.Name},
		NewAuth:      tpm2.TPM2BAuth{Buffer: c.newAuth},
	}.Execute(l.transport)
	if flushErr := l.flushAfter(err, handle.Handle); err == nil {
		err = flushErr
	}
	if isRejected(err) {
		return tpm2.TPM2BPrivate{}, fmt.Errorf("%w: %w", errForeign, err)
	}
	if err != nil {
		return tpm2.TPM2BPrivate{}, err
	}
	return rsp.OutPrivate, nil
}
