package pkcs11

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	p11 "github.com/miekg/pkcs11"

	"chancery/token"
)

// searchPage is how many handles one C_FindObjects asks for.
const searchPage = 100

// search returns the handles of the objects of a class, with an identifier when
// id is not empty.
func (s session) search(class uint, id []byte) (handles []p11.ObjectHandle, err error) {
	template := []*p11.Attribute{p11.NewAttribute(p11.CKA_CLASS, class)}
	if len(id) > 0 {
		template = append(template, p11.NewAttribute(p11.CKA_ID, id))
	}
	if err := s.api.FindObjectsInit(s.handle, template); err != nil {
		return nil, err
	}
	defer func() {
		if final := s.api.FindObjectsFinal(s.handle); err == nil {
			err = final
		}
	}()
	for {
		page, _, err := s.api.FindObjects(s.handle, searchPage)
		if err != nil {
			return nil, err
		}
		if len(page) == 0 {
			return handles, nil
		}
		handles = append(handles, page...)
	}
}

// privateHandle finds the one private key with this identifier.
func (s session) privateHandle(id []byte) (p11.ObjectHandle, error) {
	if len(id) < 1 || len(id) > token.MaxIDLength {
		return 0, token.ErrNoKey
	}
	handles, err := s.search(p11.CKO_PRIVATE_KEY, id)
	if err != nil {
		return 0, err
	}
	switch len(handles) {
	case 1:
		return handles[0], nil
	case 0:
		return 0, token.ErrNoKey
	}
	return 0, fmt.Errorf("%d private keys have this identifier, give them different ones: %w", len(handles), token.ErrMismatch)
}

// publicHalf reads the public key object with this identifier.
func (s session) publicHalf(id []byte) (token.KeyInfo, error) {
	handles, err := s.search(p11.CKO_PUBLIC_KEY, id)
	if err != nil {
		return token.KeyInfo{}, err
	}
	switch len(handles) {
	case 1:
		return s.describe(handles[0])
	case 0:
		return token.KeyInfo{}, fmt.Errorf("the token has the private half and no public key object beside it: %w", token.ErrMismatch)
	}
	return token.KeyInfo{}, fmt.Errorf("%d public keys have this identifier, remove all but one: %w", len(handles), token.ErrMismatch)
}

// attributes reads the values of an object, in the order of types.
func (s session) attributes(object p11.ObjectHandle, types ...uint) ([][]byte, error) {
	template := make([]*p11.Attribute, len(types))
	for i, t := range types {
		template[i] = p11.NewAttribute(t, nil)
	}
	found, err := s.api.GetAttributeValue(s.handle, object, template)
	if err != nil {
		return nil, err
	}
	values := make([][]byte, len(found))
	for i, a := range found {
		values[i] = a.Value
	}
	return values, nil
}

// flag reads a CK_BBOOL. A token that does not know the attribute answers no.
func (s session) flag(object p11.ObjectHandle, kind uint) (bool, error) {
	values, err := s.attributes(object, kind)
	if hasCode(err, p11.CKR_ATTRIBUTE_TYPE_INVALID) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return len(values[0]) == 1 && values[0][0] != 0, nil
}

// describe reads a public key object.
func (s session) describe(object p11.ObjectHandle) (token.KeyInfo, error) {
	values, err := s.attributes(object, p11.CKA_ID, p11.CKA_LABEL, p11.CKA_KEY_TYPE)
	if err != nil {
		return token.KeyInfo{}, err
	}
	info := token.KeyInfo{ID: values[0], Label: string(values[1])}
	if info.Public, err = s.publicKey(object, values[2]); err != nil {
		return token.KeyInfo{}, err
	}
	info.Algorithm, err = token.AlgorithmOf(info.Public)
	return info, err
}

// publicKey reads the key material of a public key object of this CKA_KEY_TYPE.
func (s session) publicKey(object p11.ObjectHandle, keyType []byte) (crypto.PublicKey, error) {
	switch {
	case bytes.Equal(keyType, ulong(p11.CKK_RSA)):
		values, err := s.attributes(object, p11.CKA_MODULUS, p11.CKA_PUBLIC_EXPONENT)
		if err != nil {
			return nil, err
		}
		return rsaPublic(values[0], values[1])
	case bytes.Equal(keyType, ulong(p11.CKK_EC)):
		values, err := s.attributes(object, p11.CKA_EC_PARAMS, p11.CKA_EC_POINT)
		if err != nil {
			return nil, err
		}
		return curvePublic(values[0], values[1])
	case bytes.Equal(keyType, ulong(ckkECEdwards)):
		values, err := s.attributes(object, p11.CKA_EC_POINT)
		if err != nil {
			return nil, err
		}
		return edwardsPublic(values[0])
	}
	return nil, fmt.Errorf("key type %x: %w", keyType, token.ErrUnsupported)
}

// ulong is a CK_ULONG as the module writes it.
func ulong(n uint) []byte {
	return p11.NewAttribute(p11.CKA_KEY_TYPE, n).Value
}

// rsaPublic reads CKA_MODULUS and CKA_PUBLIC_EXPONENT, big-endian.
func rsaPublic(modulus, exponent []byte) (*rsa.PublicKey, error) {
	n, e := new(big.Int).SetBytes(modulus), new(big.Int).SetBytes(exponent)
	// crypto/rsa takes exponents that fit 31 bits.
	if e.BitLen() < 2 || e.BitLen() > 31 || e.Bit(0) == 0 || n.Bit(0) == 0 {
		return nil, errors.New("the token's RSA public key is not a valid one")
	}
	return &rsa.PublicKey{N: n, E: int(e.Int64())}, nil
}

// curves are the CKA_EC_PARAMS of the curves: DER of the named curve's
// identifier (RFC 5480, section 2.1.1.1).
var curves = map[token.Algorithm]asn1.ObjectIdentifier{
	token.P256: {1, 2, 840, 10045, 3, 1, 7},
	token.P384: {1, 3, 132, 0, 34},
	token.P521: {1, 3, 132, 0, 35},
}

// curveParameters returns the CKA_EC_PARAMS of an algorithm's curve.
func curveParameters(a token.Algorithm) ([]byte, error) {
	return asn1.Marshal(curves[a])
}

// curvePublic reads CKA_EC_PARAMS and CKA_EC_POINT.
func curvePublic(parameters, point []byte) (*ecdsa.PublicKey, error) {
	curve, err := curveOf(parameters)
	if err != nil {
		return nil, err
	}
	public, err := ecdsa.ParseUncompressedPublicKey(curve, unwrapPoint(point))
	if err != nil {
		return nil, errors.New("the token's elliptic curve point is not a valid one")
	}
	return public, nil
}

func curveOf(parameters []byte) (elliptic.Curve, error) {
	var oid asn1.ObjectIdentifier
	if rest, err := asn1.Unmarshal(parameters, &oid); err == nil && len(rest) == 0 {
		for a, known := range curves {
			if known.Equal(oid) {
				return a.Curve(), nil
			}
		}
	}
	return nil, fmt.Errorf("curve parameters %x: %w", parameters, token.ErrUnsupported)
}

// edwardsPublic reads CKA_EC_POINT of an Ed25519 key; a point of another length
// is Ed448's.
func edwardsPublic(point []byte) (ed25519.PublicKey, error) {
	raw := unwrapPoint(point)
	if len(raw) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("point of %d bytes on an Edwards curve: %w", len(raw), token.ErrUnsupported)
	}
	return ed25519.PublicKey(raw), nil
}

// unwrapPoint takes a point out of its DER OCTET STRING. Some modules leave the
// wrapping away.
func unwrapPoint(point []byte) []byte {
	var raw []byte
	if rest, err := asn1.Unmarshal(point, &raw); err == nil && len(rest) == 0 {
		return raw
	}
	return point
}
