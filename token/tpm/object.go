package tpm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"crypto"

	"github.com/google/go-tpm/tpm2"

	"chancery/token"
)

// defaultExponent is F4, which a TPM writes as zero (part 2, section 12.2.3.5).
const defaultExponent = 65537

// object is what the TPM gave out of a key: its public area, and its private
// area wrapped under the parent.
type object struct {
	public  []byte // TPMT_PUBLIC
	private tpm2.TPM2BPrivate
	name    tpm2.TPM2BName
}

func newObject(public []byte, private []byte) (*object, error) {
	contents, err := parsePublic(public)
	if err != nil {
		return nil, err
	}
	name, err := tpm2.ObjectName(contents)
	if err != nil {
		return nil, errors.New("the public area names an unknown hash")
	}
	return &object{public: public, private: tpm2.TPM2BPrivate{Buffer: private}, name: *name}, nil
}

// parsePublic reads a TPMT_PUBLIC that has nothing behind it.
func parsePublic(data []byte) (*tpm2.TPMTPublic, error) {
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](data)
	if err != nil || !bytes.Equal(tpm2.Marshal(*public), data) {
		return nil, errors.New("the public area cannot be read")
	}
	return public, nil
}

// binding ties an object to its place. It fills the object's authPolicy, which
// the TPM hashes into the object's name and covers by the wrapped private
// area's integrity check, so that no file passes for another key's, label's or
// token's. As a policy it is one that no session can have, since that would
// take a policy digest with this value.
func binding(serial, kind string, fields ...[]byte) []byte {
	h := sha256.New()
	write := func(field []byte) {
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(field))))
		h.Write(field)
	}
	write([]byte("chancery tpm object 1"))
	write([]byte(serial))
	write([]byte(kind))
	for _, field := range fields {
		write(field)
	}
	return h.Sum(nil)
}

func keyBinding(serial string, id []byte, label string) []byte {
	return binding(serial, "key", id, []byte(label))
}

// keyAttributes are those of a signing key. With noDA clear, a wrong PIN counts
// against the TPM's lockout.
func keyAttributes(local bool) tpm2.TPMAObject {
	return tpm2.TPMAObject{
		FixedTPM:            local,
		FixedParent:         local,
		SensitiveDataOrigin: local,
		UserWithAuth:        true,
		SignEncrypt:         true,
	}
}

// keyTemplate describes a key to be made. Its scheme is left open, so that each
// signature names its own.
func keyTemplate(a token.Algorithm, policy []byte) (tpm2.TPMTPublic, error) {
	template := tpm2.TPMTPublic{
		NameAlg:          tpm2.TPMAlgSHA256,
		ObjectAttributes: keyAttributes(true),
		AuthPolicy:       tpm2.TPM2BDigest{Buffer: policy},
	}
	if bits := a.RSABits(); bits != 0 {
		template.Type = tpm2.TPMAlgRSA
		template.Parameters = rsaParameters(bits, 0)
		template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{})
		return template, nil
	}
	curve, err := curveID(a.Curve())
	if err != nil {
		return template, fmt.Errorf("%s keys: %w", a, err)
	}
	template.Type = tpm2.TPMAlgECC
	template.Parameters = curveParameters(curve)
	template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})
	return template, nil
}

func rsaParameters(bits int, exponent uint32) tpm2.TPMUPublicParms {
	return tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{
		Symmetric: tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgNull},
		Scheme:    tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgNull},
		KeyBits:   tpm2.TPMKeyBits(bits),
		Exponent:  exponent,
	})
}

func curveParameters(curve tpm2.TPMECCCurve) tpm2.TPMUPublicParms {
	return tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
		Symmetric: tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgNull},
		Scheme:    tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgNull},
		CurveID:   curve,
		KDF:       tpm2.TPMTKDFScheme{Scheme: tpm2.TPMAlgNull},
	})
}

func curveID(curve elliptic.Curve) (tpm2.TPMECCCurve, error) {
	switch curve {
	case elliptic.P256():
		return tpm2.TPMECCNistP256, nil
	case elliptic.P384():
		return tpm2.TPMECCNistP384, nil
	}
	return 0, token.ErrUnsupported
}

// importTemplate is the public area of an existing key.
func importTemplate(public crypto.PublicKey, policy []byte) (tpm2.TPMTPublic, error) {
	algorithm, err := token.AlgorithmOf(public)
	if err != nil {
		return tpm2.TPMTPublic{}, err
	}
	template, err := keyTemplate(algorithm, policy)
	if err != nil {
		return tpm2.TPMTPublic{}, err
	}
	template.ObjectAttributes = keyAttributes(false)
	switch key := public.(type) {
	case *rsa.PublicKey:
		exponent := uint32(key.E)
		if key.E == defaultExponent {
			exponent = 0
		}
		template.Parameters = rsaParameters(algorithm.RSABits(), exponent)
		template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: key.N.Bytes()})
	case *ecdsa.PublicKey:
		point, err := key.Bytes() // 4 ‖ X ‖ Y, both as long as the field (SEC 1, section 2.3.3)
		if err != nil {
			return tpm2.TPMTPublic{}, token.ErrMismatch
		}
		half := len(point) / 2
		template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: point[1 : 1+half]},
			Y: tpm2.TPM2BECCParameter{Buffer: point[1+half:]},
		})
	}
	return template, nil
}

// publicKey reads the key out of a public area and checks that it is one of
// ours: attributes, parameters and, for a curve, that the point lies on it.
func publicKey(public *tpm2.TPMTPublic) (crypto.PublicKey, token.Algorithm, error) {
	if public.Type != tpm2.TPMAlgRSA && public.Type != tpm2.TPMAlgECC {
		return nil, "", errors.New("the key is neither RSA nor of an elliptic curve")
	}
	key, err := tpm2.Pub(*public)
	if err != nil {
		return nil, "", errors.New("the public key cannot be read")
	}
	algorithm, err := token.AlgorithmOf(key)
	if err != nil {
		return nil, "", err
	}
	if curve, ok := key.(*ecdsa.PublicKey); ok {
		if _, err := curve.ECDH(); err != nil {
			return nil, "", errors.New("the public key is not a point of its curve")
		}
	}
	if err := checkSigningKey(public); err != nil {
		return nil, "", err
	}
	return key, algorithm, nil
}

// checkSigningKey refuses public areas that this package does not make: above
// all a key without the lockout's protection.
func checkSigningKey(public *tpm2.TPMTPublic) error {
	a := public.ObjectAttributes
	if a != keyAttributes(true) && a != keyAttributes(false) || public.NameAlg != tpm2.TPMAlgSHA256 {
		return fmt.Errorf("the key has other attributes than this driver's: %w", token.ErrMismatch)
	}
	var want tpm2.TPMUPublicParms
	switch public.Type {
	case tpm2.TPMAlgRSA:
		detail, err := public.Parameters.RSADetail()
		if err != nil {
			return errors.New("the RSA parameters cannot be read")
		}
		want = rsaParameters(int(detail.KeyBits), detail.Exponent)
	default:
		detail, err := public.Parameters.ECCDetail()
		if err != nil {
			return errors.New("the curve cannot be read")
		}
		want = curveParameters(detail.CurveID)
	}
	other := *public
	other.Parameters = want
	if !bytes.Equal(tpm2.Marshal(other), tpm2.Marshal(*public)) {
		return fmt.Errorf("the key has other parameters than this driver's: %w", token.ErrMismatch)
	}
	return nil
}
