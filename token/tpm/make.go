package tpm

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/go-tpm/tpm2"

	"chancery/internal/durable"
	"chancery/token"
)

// Generate makes a key inside the TPM, which never shows its private half:
// fixedTPM, fixedParent and sensitiveDataOrigin are set.
func (t *Token) Generate(ctx context.Context, spec token.KeySpec) (token.Key, error) {
	return t.add(ctx, "generate", spec, func(l *link, policy []byte) ([]byte, tpm2.TPM2BPrivate, error) {
		return l.generate(spec.Algorithm, policy, t.auth)
	})
}

// Import wraps an existing private key for the TPM's storage key. The key's own
// program keeps whatever copy it has.
func (t *Token) Import(ctx context.Context, spec token.KeySpec, private crypto.PrivateKey) (token.Key, error) {
	return t.add(ctx, "import", spec, func(l *link, policy []byte) ([]byte, tpm2.TPM2BPrivate, error) {
		public, err := token.CheckPrivate(spec.Algorithm, private)
		if err != nil {
			return nil, tpm2.TPM2BPrivate{}, err
		}
		return l.wrap(private, public, policy, t.auth)
	})
}

// maker returns what the TPM gives out of a new key.
type maker func(l *link, policy []byte) ([]byte, tpm2.TPM2BPrivate, error)

// add makes a key, publishes its file and opens it as any other.
func (t *Token) add(ctx context.Context, what string, spec token.KeySpec, make maker) (token.Key, error) {
	var added *key
	err := t.use(ctx, fmt.Sprintf("%s key %x", what, spec.ID), func(l *link) error {
		if err := t.mayAdd(l, spec); err != nil {
			return err
		}
		public, private, err := make(l, keyBinding(t.serial, spec.ID, spec.Label))
		if err != nil {
			return err
		}
		file, err := newKeyFile(t.serial, spec, public, private)
		if err != nil {
			return fmt.Errorf("the TPM made something else: %w: %w", token.ErrMismatch, err)
		}
		if err := t.publish(ctx, file); err != nil {
			return err
		}
		l.repeat = false // it exists now
		added, err = t.open(l, spec.ID)
		return err
	})
	if err != nil {
		return nil, err
	}
	return added, nil
}

// mayAdd refuses early what publish would refuse after a slow key generation.
func (t *Token) mayAdd(l *link, spec token.KeySpec) error {
	offers, err := l.learn()
	if err != nil {
		return err
	}
	if err := token.CheckSpec(spec, offers.algorithms); err != nil {
		return fmt.Errorf("%w: %w", errSpec, err)
	}
	m, err := t.loggedIn()
	if err != nil {
		return err
	}
	if _, err := os.Lstat(filepath.Join(m.keysDir(t.dir), keyFileName(spec.ID))); err == nil {
		return token.ErrKeyExists
	}
	return nil
}

func (t *Token) publish(ctx context.Context, file *keyFile) error {
	return t.locked(ctx, func(*manifest) error {
		m, err := t.loggedIn() // under the lock, nobody changes the PIN
		if err != nil {
			return err
		}
		err = durable.PublishNew(filepath.Join(m.keysDir(t.dir), keyFileName(file.info.ID)), file.encode(m.ParentHandle))
		if errors.Is(err, fs.ErrExist) {
			return token.ErrKeyExists
		}
		if err != nil {
			return fmt.Errorf("%w: %w", errFile, err)
		}
		return nil
	})
}

// generate has the TPM make a key. The authorisation crosses the wire encrypted.
func (l *link) generate(a token.Algorithm, policy, auth []byte) ([]byte, tpm2.TPM2BPrivate, error) {
	template, err := keyTemplate(a, policy)
	if err != nil {
		return nil, tpm2.TPM2BPrivate{}, err
	}
	l.evict(0)
	rsp, err := tpm2.Create{
		ParentHandle: l.parent.Auth(),
		InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
			UserAuth: tpm2.TPM2BAuth{Buffer: auth},
			Data:     tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{}),
		}},
		InPublic: tpm2.New2B(template),
	}.Execute(l.transport, l.parent.Session(EncryptedIn()))
	if err != nil {
		return nil, tpm2.TPM2BPrivate{}, err
	}
	return rsp.OutPublic.Bytes(), rsp.OutPrivate, nil
}

// wrap encrypts a private key to the storage key (part 1, section 23.3, outer
// wrapper) and has the TPM take it in (TPM2_Import). Nobody can have it
// duplicated again: that would take a policy, and its policy is a binding.
func (l *link) wrap(private crypto.PrivateKey, public crypto.PublicKey, policy, auth []byte) ([]byte, tpm2.TPM2BPrivate, error) {
	template, err := importTemplate(public, policy)
	if err != nil {
		return nil, tpm2.TPM2BPrivate{}, err
	}
	sensitive, err := sensitiveArea(private, auth)
	if err != nil {
		return nil, tpm2.TPM2BPrivate{}, err
	}
	defer clear(sensitive)
	name, err := tpm2.ObjectName(&template)
	if err != nil {
		return nil, tpm2.TPM2BPrivate{}, err
	}
	storage, err := tpm2.ImportEncapsulationKey(&l.parent.Public)
	if err != nil {
		return nil, tpm2.TPM2BPrivate{}, err
	}
	duplicate, seed, err := tpm2.CreateDuplicate(rand.Reader, storage, name.Buffer, sensitive)
	if err != nil {
		return nil, tpm2.TPM2BPrivate{}, err
	}
	l.evict(0)
	rsp, err := tpm2.Import{
		ParentHandle: l.parent.Auth(),
		ObjectPublic: tpm2.New2B(template),
		Duplicate:    tpm2.TPM2BPrivate{Buffer: duplicate},
		InSymSeed:    tpm2.TPM2BEncryptedSecret{Buffer: seed},
		Symmetric:    tpm2.TPMTSymDef{Algorithm: tpm2.TPMAlgNull},
	}.Execute(l.transport, l.parent.Session(EncryptedIn()))
	var code tpm2.TPMRC
	if errors.As(err, &code) && !code.IsWarning() && !isStale(err) {
		return nil, tpm2.TPM2BPrivate{}, fmt.Errorf("the TPM does not take this key: %w: %w", token.ErrUnsupported, err)
	}
	if err != nil {
		return nil, tpm2.TPM2BPrivate{}, err
	}
	return tpm2.Marshal(template), rsp.OutPrivate, nil
}

// sensitiveArea is the TPMT_SENSITIVE of a key: one prime, or the scalar.
func sensitiveArea(private crypto.PrivateKey, auth []byte) ([]byte, error) {
	area := tpm2.TPMTSensitive{AuthValue: tpm2.TPM2BAuth{Buffer: auth}}
	switch key := private.(type) {
	case *rsa.PrivateKey:
		area.SensitiveType = tpm2.TPMAlgRSA
		area.Sensitive = tpm2.NewTPMUSensitiveComposite(tpm2.TPMAlgRSA, &tpm2.TPM2BPrivateKeyRSA{Buffer: key.Primes[0].Bytes()})
	case *ecdsa.PrivateKey:
		scalar, err := key.Bytes()
		if err != nil {
			return nil, token.ErrMismatch
		}
		defer clear(scalar)
		area.SensitiveType = tpm2.TPMAlgECC
		area.Sensitive = tpm2.NewTPMUSensitiveComposite(tpm2.TPMAlgECC, &tpm2.TPM2BECCParameter{Buffer: scalar})
	default:
		return nil, token.ErrUnsupported
	}
	return tpm2.Marshal(area), nil
}
