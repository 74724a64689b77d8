package pkcs11

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/asn1"
	"fmt"
	"math/big"

	p11 "github.com/miekg/pkcs11"

	"chancery/token"
)

// Import creates the two objects of an existing key (C_CreateObject). Tokens
// that only take wrapped keys refuse, which is token.ErrUnsupported.
func (t *Token) Import(ctx context.Context, spec token.KeySpec, private crypto.PrivateKey) (token.Key, error) {
	k, err := t.add(ctx, spec, func(ctx context.Context) error {
		if _, err := token.CheckPrivate(spec.Algorithm, private); err != nil {
			return err
		}
		return t.create(ctx, spec, private)
	})
	if err != nil {
		return nil, t.failed(fmt.Sprintf("import key %x", spec.ID), err)
	}
	return k, nil
}

func (t *Token) create(ctx context.Context, spec token.KeySpec, private crypto.PrivateKey) error {
	secret, public, err := material(spec.Algorithm, private)
	if err != nil {
		return err
	}
	defer wipe(secret)
	return t.withLogin(ctx, func(s session) error {
		object, err := s.api.CreateObject(s.handle, append(append(privateTemplate(spec),
			p11.NewAttribute(p11.CKA_CLASS, p11.CKO_PRIVATE_KEY)), secret...))
		if hasCode(err, p11.CKR_ATTRIBUTE_VALUE_INVALID) { // to tpm2-pkcs11 this is the class
			return fmt.Errorf("the token takes no private keys from outside: %w: %w", token.ErrUnsupported, err)
		}
		if err != nil {
			return err
		}
		_, err = s.api.CreateObject(s.handle, append(append(publicTemplate(spec),
			p11.NewAttribute(p11.CKA_CLASS, p11.CKO_PUBLIC_KEY)), public...))
		if err == nil {
			return nil
		}
		if undo := s.api.DestroyObject(s.handle, object); undo != nil {
			return fmt.Errorf("%w; and the private half could not be removed again: %v", err, undo)
		}
		return err
	})
}

// material returns the attributes that hold the key itself: of the private
// half, and of the public one.
func material(a token.Algorithm, private crypto.PrivateKey) (secret, public []*p11.Attribute, err error) {
	switch key := private.(type) {
	case *rsa.PrivateKey:
		secret, public = rsaMaterial(key)
		return secret, public, nil
	case *ecdsa.PrivateKey:
		return curveMaterial(a, key)
	case ed25519.PrivateKey:
		return edwardsMaterial(key)
	}
	return nil, nil, fmt.Errorf("private key of type %T: %w", private, token.ErrUnsupported)
}

// rsaMaterial follows PKCS#11 v2.40 current mechanisms specification, section 2.1.3.
func rsaMaterial(key *rsa.PrivateKey) (secret, public []*p11.Attribute) {
	key.Precompute()
	modulus, exponent := key.N.Bytes(), big.NewInt(int64(key.E)).Bytes()
	public = []*p11.Attribute{
		p11.NewAttribute(p11.CKA_KEY_TYPE, p11.CKK_RSA),
		p11.NewAttribute(p11.CKA_MODULUS, modulus),
		p11.NewAttribute(p11.CKA_PUBLIC_EXPONENT, exponent),
	}
	secret = []*p11.Attribute{
		p11.NewAttribute(p11.CKA_KEY_TYPE, p11.CKK_RSA),
		p11.NewAttribute(p11.CKA_MODULUS, modulus),
		p11.NewAttribute(p11.CKA_PUBLIC_EXPONENT, exponent),
		p11.NewAttribute(p11.CKA_PRIVATE_EXPONENT, key.D.Bytes()),
		p11.NewAttribute(p11.CKA_PRIME_1, key.Primes[0].Bytes()),
		p11.NewAttribute(p11.CKA_PRIME_2, key.Primes[1].Bytes()),
		p11.NewAttribute(p11.CKA_EXPONENT_1, key.Precomputed.Dp.Bytes()),
		p11.NewAttribute(p11.CKA_EXPONENT_2, key.Precomputed.Dq.Bytes()),
		p11.NewAttribute(p11.CKA_COEFFICIENT, key.Precomputed.Qinv.Bytes()),
	}
	return secret, public
}

// curveMaterial follows PKCS#11 v2.40 current mechanisms specification, sections 2.3.3 and 2.3.4.
func curveMaterial(a token.Algorithm, key *ecdsa.PrivateKey) (secret, public []*p11.Attribute, err error) {
	parameters, err := curveParameters(a)
	if err != nil {
		return nil, nil, err
	}
	scalar, err := key.Bytes()
	if err != nil {
		return nil, nil, err
	}
	raw, err := key.PublicKey.Bytes()
	if err != nil {
		return nil, nil, err
	}
	point, err := asn1.Marshal(raw)
	if err != nil {
		return nil, nil, err
	}
	secret, public = onCurve(p11.CKK_EC, parameters, scalar, point)
	return secret, public, nil
}

// edwardsMaterial follows PKCS#11 v3.0 current mechanisms specification,
// sections 2.3.5 and 2.3.6: the value is the seed of RFC 8032.
func edwardsMaterial(key ed25519.PrivateKey) (secret, public []*p11.Attribute, err error) {
	point, err := asn1.Marshal([]byte(key.Public().(ed25519.PublicKey)))
	if err != nil {
		return nil, nil, err
	}
	secret, public = onCurve(ckkECEdwards, edwardsName, key.Seed(), point)
	return secret, public, nil
}

func onCurve(keyType uint, parameters, value, point []byte) (secret, public []*p11.Attribute) {
	secret = []*p11.Attribute{
		p11.NewAttribute(p11.CKA_KEY_TYPE, keyType),
		p11.NewAttribute(p11.CKA_EC_PARAMS, parameters),
		p11.NewAttribute(p11.CKA_VALUE, value),
	}
	public = []*p11.Attribute{
		p11.NewAttribute(p11.CKA_KEY_TYPE, keyType),
		p11.NewAttribute(p11.CKA_EC_PARAMS, parameters),
		p11.NewAttribute(p11.CKA_EC_POINT, point),
	}
	return secret, public
}

// wipe overwrites the private values that were copied for the module.
func wipe(secret []*p11.Attribute) {
	for _, a := range secret {
		switch a.Type {
		case p11.CKA_PRIVATE_EXPONENT, p11.CKA_PRIME_1, p11.CKA_PRIME_2, p11.CKA_EXPONENT_1,
			p11.CKA_EXPONENT_2, p11.CKA_COEFFICIENT, p11.CKA_VALUE:
			clear(a.Value)
		}
	}
}
