package admin

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"chancery/access"
	"chancery/token"
	"chancery/users"
)

// KeySpec names a key to be registered.
type KeySpec struct {
	Name  string // Chancery's name for it, and the label of a new object on the token
	Token string
	// Manager is the key's first manager; its zero value is the actor with their own passphrase.
	Manager Grantee
}

const keyIDSize = 16 // bytes, at random: no two keys on a token ever share one

// CreateKey makes a key inside a token. The actor is one of the token's managers. When the key
// cannot be registered it is destroyed again. Errors: token.ErrUnsupported for an
// algorithm that the token does not make; users.ErrExists for a name in use.
func (o *Office) CreateKey(ctx context.Context, actor Actor, spec KeySpec, algorithm token.Algorithm) (users.Key, error) {
	return o.newKey(ctx, actor, spec, users.OriginGenerated, func(ctx context.Context, open token.Token, id []byte) (token.Key, error) {
		return open.Generate(ctx, token.KeySpec{ID: id, Label: spec.Name, Algorithm: algorithm})
	})
}

// ImportKey puts a private key (*rsa.PrivateKey, *ecdsa.PrivateKey or ed25519.PrivateKey)
// into a token. The actor is one of the token's managers. When the key cannot be
// registered it is removed from the token again. Errors: as CreateKey.
func (o *Office) ImportKey(ctx context.Context, actor Actor, spec KeySpec, private crypto.PrivateKey) (users.Key, error) {
	signer, ok := private.(crypto.Signer)
	if !ok {
		return users.Key{}, fmt.Errorf("%w: a private key of type %T cannot sign", ErrRequest, private)
	}
	algorithm, err := token.AlgorithmOf(signer.Public())
	if err != nil {
		return users.Key{}, fmt.Errorf("admin: key %q: %w", spec.Name, err)
	}
	return o.newKey(ctx, actor, spec, users.OriginImported, func(ctx context.Context, open token.Token, id []byte) (token.Key, error) {
		return open.Import(ctx, token.KeySpec{ID: id, Label: spec.Name, Algorithm: algorithm}, private)
	})
}

// registrar puts a key of the open token into the store with its first manager.
type registrar func(context.Context, token.Key, users.Origin) (users.Key, error)

// withToken checks all that can be checked beforehand, logs in as the actor and hands over the token.
func (o *Office) withToken(ctx context.Context, actor Actor, spec KeySpec, act func(token.Token, registrar) error) error {
	if err := users.CheckName(spec.Name); err != nil {
		return err
	}
	to, err := o.recipient(spec.Manager, actor.User)
	if err != nil {
		return err
	}
	s, err := o.Store.Snapshot(ctx)
	if err != nil {
		return err
	}
	if _, found := s.Key(spec.Name); found {
		return fmt.Errorf("admin: key %q: %w", spec.Name, users.ErrExists)
	}
	if _, err := enabledUser(s, to.name); err != nil {
		return err
	}
	ring := o.keyring(actor.Passphrase)
	p, err := o.tokenManager(s, actor, spec.Token, ring)
	if err != nil {
		return err
	}
	defer p.clear()
	open, err := o.openFor(ctx, p)
	if err != nil {
		return err
	}
	defer open.Close()
	return act(open, func(ctx context.Context, key token.Key, origin users.Origin) (users.Key, error) {
		attestation, err := attest(ctx, open, key)
		if err != nil {
			return users.Key{}, err
		}
		return o.register(ctx, registration{actor: actor, ring: ring, spec: spec, manager: to, key: key, origin: origin, attestation: attestation})
	})
}

// newKey makes a key on the token, tests it and registers it, or takes it away again.
func (o *Office) newKey(ctx context.Context, actor Actor, spec KeySpec, origin users.Origin, bring func(context.Context, token.Token, []byte) (token.Key, error)) (users.Key, error) {
	var made users.Key
	err := o.withToken(ctx, actor, spec, func(open token.Token, register registrar) error {
		id := make([]byte, keyIDSize)
		rand.Read(id)
		key, err := bring(ctx, open, id)
		if err != nil {
			return fmt.Errorf("admin: key %q: %w", spec.Name, err)
		}
		ctx, cancel := o.finishing(ctx)
		defer cancel()
		if err = proveKey(ctx, key); err == nil {
			made, err = register(ctx, key, origin)
		}
		if err != nil {
			made, err = o.takeBack(ctx, open, spec, id, err)
		}
		return err
	})
	return made, err
}

// takeBack destroys a key that was made and not registered. A store that failed may
// have registered it all the same, and a registered key must not be destroyed, so it is asked first.
func (o *Office) takeBack(ctx context.Context, open token.Token, spec KeySpec, id []byte, cause error) (users.Key, error) {
	s, err := o.Store.Snapshot(ctx)
	if err != nil {
		return users.Key{}, left(spec, id, cause)
	}
	if key, found := keyOnToken(s, spec.Token, id); found {
		return *key, nil
	}
	if err := open.Destroy(ctx, id); err != nil && !errors.Is(err, token.ErrNoKey) {
		return users.Key{}, left(spec, id, fmt.Errorf("%w, nor could it be destroyed: %w", cause, err))
	}
	return users.Key{}, fmt.Errorf("admin: key %q could not be registered, so it was destroyed again: %w", spec.Name, cause)
}

// left tells how to go on with a key that is on the token only.
func left(spec KeySpec, id []byte, cause error) error {
	return fmt.Errorf("admin: key %q is on token %q with the identifier %x and not registered: adopt it by that identifier: %w", spec.Name, spec.Token, id, cause)
}

// keyOnToken finds the registered key that a token holds under an identifier.
func keyOnToken(s *users.Snapshot, tokenName string, id []byte) (*users.Key, bool) {
	record, ok := s.Token(tokenName)
	if !ok {
		return nil, false
	}
	for _, key := range s.Keys() {
		if key.TokenID == record.ID && bytes.Equal(key.TokenKeyID, id) {
			return &key, true
		}
	}
	return nil, false
}

// registration is what register needs.
type registration struct {
	actor   Actor
	ring    *keyring
	spec    KeySpec
	manager recipient
	key     token.Key
	origin  users.Origin

	attestation string
}

func (o *Office) register(ctx context.Context, r registration) (users.Key, error) {
	key, err := describe(r)
	if err != nil {
		return users.Key{}, err
	}
	var added users.Key
	err = o.retrying(ctx, func(s *users.Snapshot) error {
		p, err := o.tokenManager(s, r.actor, r.spec.Token, r.ring)
		if err != nil {
			return err
		}
		defer p.clear()
		grant, err := firstManager(s, p, r.manager, key.Handle)
		if err != nil {
			return err
		}
		key.TokenID = p.token.ID
		added, err = o.Store.AddKey(ctx, key, grant)
		return err
	})
	return added, err
}

// firstManager makes the grant that comes with a new key, which has no identifier yet.
func firstManager(s *users.Snapshot, p *proof, to recipient, handle string) (users.Grant, error) {
	user, err := enabledUser(s, to.name)
	if err != nil {
		return users.Grant{}, err
	}
	grant := users.Grant{
		UserID: user.ID, TokenID: p.token.ID, Role: users.RoleManager,
		PINVersion: p.token.PINVersion, CreatedBy: p.user.Name,
	}
	binding := access.Binding{TokenSerial: p.token.Serial, KeyHandle: handle, User: user.Name, Role: string(grant.Role)}
	err = seal(&grant, to.accessKey(p.key), p.pins, binding)
	return grant, err
}

func describe(r registration) (users.Key, error) {
	public, err := x509.MarshalPKIXPublicKey(r.key.Public())
	if err != nil {
		return users.Key{}, fmt.Errorf("admin: key %q: %w: %w", r.spec.Name, token.ErrUnsupported, err)
	}
	return users.Key{
		Name: r.spec.Name, TokenKeyID: r.key.ID(), Algorithm: r.key.Algorithm(),
		Public: public, Handle: Handle(public), Origin: r.origin, Attestation: r.attestation,
	}, nil
}

// attest has the token say where a key lives, as JSON; "" where it has no way to say that.
func attest(ctx context.Context, open token.Token, key token.Key) (string, error) {
	attester, can := open.(token.Attester)
	if !can {
		return "", nil
	}
	attestation, err := attester.Attest(ctx, key.ID())
	if errors.Is(err, token.ErrUnsupported) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("admin: the token does not say where key %x lives: %w", key.ID(), err)
	}
	text, err := json.Marshal(attestation)
	return string(text), err
}

// Handle names a public key, given as DER SubjectPublicKeyInfo: upper-case hex SHA-256.
func Handle(public []byte) string {
	sum := sha256.Sum256(public)
	return strings.ToUpper(hex.EncodeToString(sum[:]))
}
