package pkcs11

import (
	"context"
	"errors"
	"fmt"

	"github.com/ThalesGroup/crypto11"
	p11 "github.com/miekg/pkcs11"

	"chancery/token"
)

// Keys lists the public key objects that have an identifier and an algorithm
// of token.Algorithms. Others, and those that cannot be read, are left out.
func (t *Token) Keys(ctx context.Context) ([]token.KeyInfo, error) {
	var keys []token.KeyInfo
	err := t.reading(ctx, func(s session) error {
		keys = nil
		handles, err := s.search(p11.CKO_PUBLIC_KEY, nil)
		if err != nil {
			return err
		}
		for _, handle := range handles {
			info, err := s.describe(handle)
			if next := reactionTo(err); next != giveUp && next != lookUp {
				return err // the key is not what cannot be read
			}
			if err == nil && len(info.ID) > 0 && len(info.ID) <= token.MaxIDLength {
				keys = append(keys, info)
			}
		}
		return nil
	})
	if err != nil {
		return nil, t.failed("list keys", err)
	}
	return keys, nil
}

// Key finds a key that was generated, imported or adopted, and has it sign a
// random value once: anyone may put a public key object beside a private key,
// and only a signature shows that the two belong together.
func (t *Token) Key(ctx context.Context, id []byte) (token.Key, error) {
	k, err := t.findKey(ctx, id)
	if err != nil {
		return nil, t.failed(fmt.Sprintf("find key %x", id), err)
	}
	return k, nil
}

func (t *Token) findKey(ctx context.Context, id []byte) (*key, error) {
	var k *key
	err := t.reading(ctx, t.onlyLoggedIn(func(s session) error {
		private, err := s.privateHandle(id)
		if err != nil {
			return err
		}
		if asks, err := s.flag(private, p11.CKA_ALWAYS_AUTHENTICATE); err != nil || asks {
			return orUnsupported(err, "the token wants the PIN before each signature of this key")
		}
		info, err := s.publicHalf(id)
		if err != nil {
			return err
		}
		k = &key{token: t, info: info}
		return nil
	}))
	if err != nil {
		return nil, err
	}
	return k, k.prove(ctx)
}

func orUnsupported(err error, reason string) error {
	if err != nil {
		return err
	}
	return fmt.Errorf("%s: %w", reason, token.ErrUnsupported)
}

// Generate makes a key pair inside the token: private, sensitive, never
// extractable, and for signatures only. What the token says of the new key is
// read back, and a key that came out less protected is removed.
func (t *Token) Generate(ctx context.Context, spec token.KeySpec) (token.Key, error) {
	k, err := t.add(ctx, spec, func(ctx context.Context) error { return t.generate(ctx, spec) })
	if err != nil {
		return nil, t.failed(fmt.Sprintf("generate key %x", spec.ID), err)
	}
	return k, nil
}

// add makes a key pair while nobody else of this process changes the token.
func (t *Token) add(ctx context.Context, spec token.KeySpec, make func(context.Context) error) (*key, error) {
	if err := t.ready(ctx); err != nil {
		return nil, err
	}
	if err := token.CheckSpec(spec, t.algorithms); err != nil {
		return nil, err
	}
	if err := t.acquire(ctx, t.changes, 1); err != nil {
		return nil, err
	}
	defer t.changes.Release(1)
	if err := t.withLogin(ctx, func(s session) error { return s.unused(spec.ID) }); err != nil {
		return nil, err
	}
	// From here on the key may exist: finish, or clean up, whatever ctx says.
	ctx = context.WithoutCancel(ctx)
	if err := make(ctx); err != nil {
		return nil, t.undo(ctx, spec.ID, err)
	}
	k, err := t.protectedKey(ctx, spec.ID)
	if err != nil {
		return nil, t.undo(ctx, spec.ID, err)
	}
	return k, nil
}

// unused refuses an identifier that either half of a key has.
func (s session) unused(id []byte) error {
	for _, class := range []uint{p11.CKO_PRIVATE_KEY, p11.CKO_PUBLIC_KEY} {
		handles, err := s.search(class, id)
		if err != nil {
			return err
		}
		if len(handles) > 0 {
			return token.ErrKeyExists
		}
	}
	return nil
}

// generate makes the pair through crypto11, or beside it for Ed25519.
func (t *Token) generate(ctx context.Context, spec token.KeySpec) error {
	if spec.Algorithm == token.Ed25519 {
		return t.withLogin(ctx, func(s session) error { return s.generateEdwards(spec) })
	}
	return t.withContext(ctx, func(c *cryptoContext) error {
		quirks, err := readQuirks(t.module.api)
		if err != nil {
			return err
		}
		public, private := attributeSet(publicTemplate(spec)), attributeSet(privateTemplate(spec))
		if quirks.rsaDecrypts {
			delete(private, p11.CKA_DECRYPT)
		}
		if bits := spec.Algorithm.RSABits(); bits != 0 {
			_, err = c.GenerateRSAKeyPairWithAttributes(public, private, bits)
			return err
		}
		_, err = c.GenerateECDSAKeyPairWithAttributes(public, private, spec.Algorithm.Curve())
		return err
	})
}

func attributeSet(template []*p11.Attribute) crypto11.AttributeSet {
	set := crypto11.NewAttributeSet()
	set.AddIfNotPresent(template)
	return set
}

// publicTemplate is the public half of every new key. It does not forbid to encrypt: anybody can with a
// public key, and tpm2-pkcs11 takes CKA_ENCRYPT for the bit that lets the private half sign.
func publicTemplate(spec token.KeySpec) []*p11.Attribute {
	return []*p11.Attribute{
		p11.NewAttribute(p11.CKA_TOKEN, true),
		p11.NewAttribute(p11.CKA_PRIVATE, false),
		p11.NewAttribute(p11.CKA_ID, spec.ID),
		p11.NewAttribute(p11.CKA_LABEL, spec.Label),
		p11.NewAttribute(p11.CKA_VERIFY, true),
	}
}

// privateTemplate is the private half of every new key: it signs and does nothing else.
func privateTemplate(spec token.KeySpec) []*p11.Attribute {
	template := []*p11.Attribute{
		p11.NewAttribute(p11.CKA_TOKEN, true),
		p11.NewAttribute(p11.CKA_PRIVATE, true),
		p11.NewAttribute(p11.CKA_SENSITIVE, true),
		p11.NewAttribute(p11.CKA_EXTRACTABLE, false),
		p11.NewAttribute(p11.CKA_ID, spec.ID),
		p11.NewAttribute(p11.CKA_LABEL, spec.Label),
		p11.NewAttribute(p11.CKA_SIGN, true),
	}
	if spec.Algorithm.RSABits() != 0 {
		return append(template,
			p11.NewAttribute(p11.CKA_DECRYPT, false),
			p11.NewAttribute(p11.CKA_UNWRAP, false))
	}
	return append(template, p11.NewAttribute(p11.CKA_DERIVE, false))
}

// protectedKey reads back what the token made of a new key and opens it.
func (t *Token) protectedKey(ctx context.Context, id []byte) (*key, error) {
	err := t.withLogin(ctx, func(s session) error {
		private, err := s.privateHandle(id)
		if err != nil {
			return err
		}
		sensitive, err := s.flag(private, p11.CKA_SENSITIVE)
		if err != nil {
			return err
		}
		extractable, err := s.flag(private, p11.CKA_EXTRACTABLE)
		if err != nil {
			return err
		}
		if !sensitive || extractable {
			return fmt.Errorf("the token left the key sensitive %t, extractable %t: %w", sensitive, extractable, token.ErrUnsupported)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return t.findKey(ctx, id)
}

// undo removes what there is of a new key that cannot stay. When two private keys share the
// identifier another process was faster; nothing is removed then, since the
// two cannot be told apart.
func (t *Token) undo(ctx context.Context, id []byte, cause error) error {
	if err := t.destroy(ctx, id); err != nil && !errors.Is(err, token.ErrNoKey) {
		return fmt.Errorf("%w; and it could not be removed again: %v", cause, err)
	}
	return cause
}

// Destroy removes both halves of a key, the private one first.
func (t *Token) Destroy(ctx context.Context, id []byte) error {
	what := fmt.Sprintf("destroy key %x", id)
	if err := t.acquire(ctx, t.changes, 1); err != nil {
		return t.failed(what, err)
	}
	defer t.changes.Release(1)
	if err := t.destroy(ctx, id); err != nil {
		return t.failed(what, err)
	}
	return nil
}

func (t *Token) destroy(ctx context.Context, id []byte) error {
	gone := false // the private half, when this goes on with another session
	return t.withLogin(ctx, func(s session) error {
		private, err := s.privateHandle(id)
		if err != nil && !(gone && errors.Is(err, token.ErrNoKey)) {
			return err
		}
		if !gone {
			if err := s.api.DestroyObject(s.handle, private); err != nil {
				return err
			}
			gone = true
		}
		publics, err := s.search(p11.CKO_PUBLIC_KEY, id)
		if err != nil {
			return err
		}
		for _, public := range publics {
			if err := s.api.DestroyObject(s.handle, public); err != nil {
				return err
			}
		}
		return nil
	})
}
