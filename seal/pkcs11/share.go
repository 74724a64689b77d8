package pkcs11

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" // in OAEP, where its weakness against collisions does not matter (RFC 8017, appendix B.1)
	"crypto/sha256"
	"fmt"
	"hash"
	"math/big"

	"github.com/miekg/pkcs11"

	"chancery/seal"
)

// The ways to encrypt a share, as they are stored.
const (
	oaepSHA256 = "RSA-OAEP-SHA256"
	oaepSHA1   = "RSA-OAEP-SHA1" // for tokens that have no other
	aesGCM     = "AES-GCM"
	aesCBC     = "AES-CBC-PAD" // for tokens without GCM; what seal encrypts under the share tells altered bytes
)

const (
	gcmIVSize  = 12
	gcmTagBits = 128
	minRSABits = 2048
)

// refusals are what a token answers that knows no such mechanism, or not with these parameters.
var refusals = []uint{pkcs11.CKR_MECHANISM_INVALID, pkcs11.CKR_MECHANISM_PARAM_INVALID, pkcs11.CKR_ARGUMENTS_BAD, pkcs11.CKR_FUNCTION_NOT_SUPPORTED}

// protect makes a share and tries the ways that suit the key until one works both ways.
func (s *session) protect() ([]byte, *kept, error) {
	var ways []string
	switch s.keyType {
	case pkcs11.CKK_RSA:
		ways = []string{oaepSHA256, oaepSHA1}
	case pkcs11.CKK_AES:
		ways = []string{aesGCM, aesCBC}
	default:
		return nil, nil, fmt.Errorf("%w: the key is neither RSA nor AES", seal.ErrUnsuitable)
	}
	var last error
	for _, way := range ways {
		share, made, err := s.protectBy(way)
		if err == nil {
			return share, made, nil
		}
		if !is11(err, refusals...) {
			return nil, nil, err
		}
		last = err
	}
	return nil, nil, fmt.Errorf("%w: the token can encrypt in none of the ways %v: %w", seal.ErrUnsuitable, ways, last)
}

func (s *session) protectBy(way string) ([]byte, *kept, error) {
	share := make([]byte, seal.ShareSize)
	rand.Read(share)
	made, err := s.encrypt(way, share)
	if err != nil {
		return nil, nil, err
	}
	again, err := s.recover(made)
	if err != nil {
		return nil, nil, err
	}
	defer clear(again)
	if !bytes.Equal(again, share) {
		return nil, nil, fmt.Errorf("%w: it does not decrypt what it encrypted", seal.ErrUnsuitable)
	}
	return share, made, nil
}

func (s *session) encrypt(way string, share []byte) (*kept, error) {
	switch way {
	case oaepSHA256:
		return s.encryptRSA(way, sha256.New(), share)
	case oaepSHA1:
		return s.encryptRSA(way, sha1.New(), share)
	}
	made := &kept{Mechanism: way, IV: make([]byte, ivSize(way))}
	rand.Read(made.IV)
	mechanism, free, err := made.mechanism()
	if err != nil {
		return nil, err
	}
	defer free()
	if err := s.module.EncryptInit(s.handle, mechanism, s.key); err != nil {
		return nil, fmt.Errorf("%s: %w", way, err)
	}
	if made.Share, err = s.module.Encrypt(s.handle, share); err != nil {
		return nil, fmt.Errorf("%s: %w", way, err)
	}
	if made.gcm != nil {
		made.IV = made.gcm.IV() // some tokens take one of their own
	}
	return made, nil
}

func ivSize(way string) int {
	if way == aesGCM {
		return gcmIVSize
	}
	return 16 // AES' block
}

// encryptRSA needs the public half only, which private keys carry as well (PKCS#11 v2.40, section 2.1.3).
func (s *session) encryptRSA(way string, h hash.Hash, share []byte) (*kept, error) {
	attributes, err := s.module.GetAttributeValue(s.handle, s.key, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_MODULUS, nil), pkcs11.NewAttribute(pkcs11.CKA_PUBLIC_EXPONENT, nil),
	})
	if err != nil {
		return nil, absent("read the public half", err)
	}
	exponent := new(big.Int).SetBytes(attributes[1].Value)
	public := &rsa.PublicKey{N: new(big.Int).SetBytes(attributes[0].Value), E: int(exponent.Int64())}
	if public.N.BitLen() < minRSABits || exponent.BitLen() > 31 {
		return nil, fmt.Errorf("%w: an RSA key of %d bits, with at least %d wanted", seal.ErrUnsuitable, public.N.BitLen(), minRSABits)
	}
	encrypted, err := rsa.EncryptOAEP(h, rand.Reader, public, share, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", seal.ErrUnsuitable, err)
	}
	return &kept{Mechanism: way, Share: encrypted}, nil
}

// recover asks the token to decrypt.
func (s *session) recover(made *kept) ([]byte, error) {
	mechanism, free, err := made.mechanism()
	if err != nil {
		return nil, err
	}
	defer free()
	if err := s.module.DecryptInit(s.handle, mechanism, s.key); err != nil {
		return nil, decrypting(made, err)
	}
	share, err := s.module.Decrypt(s.handle, made.Share)
	if err != nil {
		return nil, decrypting(made, err)
	}
	return share, nil
}

// decrypting tells bytes that this key did not encrypt from a token that does not work.
func decrypting(made *kept, err error) error {
	switch {
	case is11(err, pkcs11.CKR_ENCRYPTED_DATA_INVALID, pkcs11.CKR_ENCRYPTED_DATA_LEN_RANGE, pkcs11.CKR_DATA_INVALID, pkcs11.CKR_DATA_LEN_RANGE,
		pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_FUNCTION_FAILED):
		return fmt.Errorf("%w: %s: %w", seal.ErrForeign, made.Mechanism, err)
	case is11(err, pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED, pkcs11.CKR_KEY_TYPE_INCONSISTENT):
		return fmt.Errorf("%w: the key may not decrypt: %w", seal.ErrUnsuitable, err)
	}
	return fmt.Errorf("%w: %s: %w", seal.ErrAbsent, made.Mechanism, err)
}

// mechanism is that of decryption; free gives its memory back.
func (k *kept) mechanism() (list []*pkcs11.Mechanism, free func(), err error) {
	free = func() {}
	var one *pkcs11.Mechanism
	switch k.Mechanism {
	case oaepSHA256:
		one = pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS_OAEP, pkcs11.NewOAEPParams(pkcs11.CKM_SHA256, pkcs11.CKG_MGF1_SHA256, pkcs11.CKZ_DATA_SPECIFIED, nil))
	case oaepSHA1:
		one = pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS_OAEP, pkcs11.NewOAEPParams(pkcs11.CKM_SHA_1, pkcs11.CKG_MGF1_SHA1, pkcs11.CKZ_DATA_SPECIFIED, nil))
	case aesGCM:
		k.gcm = pkcs11.NewGCMParams(k.IV, nil, gcmTagBits)
		one, free = pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, k.gcm), k.gcm.Free
	case aesCBC:
		one = pkcs11.NewMechanism(pkcs11.CKM_AES_CBC_PAD, k.IV)
	default:
		return nil, nil, fmt.Errorf("%w: mechanism %q", seal.ErrForeign, k.Mechanism)
	}
	return []*pkcs11.Mechanism{one}, free, nil
}
