package soft

import (
	"crypto"
	"crypto/cipher"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"

	"chancery/token"
)

// keyFile is keys/HEX-ID.json.
type keyFile struct {
	Version   int             `json:"version"`
	ID        string          `json:"id"` // hexadecimal, as in the file's name
	Label     string          `json:"label"`
	Algorithm token.Algorithm `json:"algorithm"`
	Public    []byte          `json:"public_key"`  // SubjectPublicKeyInfo, DER
	Private   []byte          `json:"private_key"` // sealed PKCS#8: nonce, ciphertext and tag
}

func newKeyFile(spec token.KeySpec, public crypto.PublicKey) (*keyFile, error) {
	spki, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, err
	}
	return &keyFile{
		Version:   fileVersion,
		ID:        hex.EncodeToString(spec.ID),
		Label:     spec.Label,
		Algorithm: spec.Algorithm,
		Public:    spki,
	}, nil
}

// decodeKeyFile reads a key file and checks all that can be checked without
// login: that the identifier is the one asked for and that algorithm and public
// half agree.
func decodeKeyFile(data []byte, id []byte) (*keyFile, token.KeyInfo, error) {
	var file keyFile
	if err := decodeStrict(data, &file); err != nil {
		return nil, token.KeyInfo{}, err
	}
	if file.Version != fileVersion {
		return nil, token.KeyInfo{}, fmt.Errorf("version %d where this program reads %d", file.Version, fileVersion)
	}
	if file.ID != hex.EncodeToString(id) {
		return nil, token.KeyInfo{}, fmt.Errorf("the file is another key's: %w", token.ErrMismatch)
	}
	if err := token.CheckLabel(file.Label); err != nil {
		return nil, token.KeyInfo{}, err
	}
	if len(file.Private) <= sealOverhead {
		return nil, token.KeyInfo{}, errors.New("not a valid file: the private key is too short")
	}
	public, err := file.public()
	if err != nil {
		return nil, token.KeyInfo{}, err
	}
	return &file, token.KeyInfo{ID: id, Label: file.Label, Algorithm: file.Algorithm, Public: public}, nil
}

func (f *keyFile) public() (crypto.PublicKey, error) {
	public, err := x509.ParsePKIXPublicKey(f.Public)
	if err != nil {
		return nil, errors.New("not a valid file: the public key cannot be read")
	}
	algorithm, err := token.AlgorithmOf(public)
	if err != nil {
		return nil, err
	}
	if algorithm != f.Algorithm {
		return nil, fmt.Errorf("the public key is %s and the file says %q: %w", algorithm, f.Algorithm, token.ErrMismatch)
	}
	return public, nil
}

func (f *keyFile) encode() []byte {
	return encode(f)
}

// seal puts the private half under the master key.
func (f *keyFile) seal(aead cipher.AEAD, serial string, private crypto.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return err
	}
	defer clear(der)
	f.Private = aead.Seal(nil, nil, der, f.binding(serial))
	return nil
}

// open returns the private half. Anything altered in the file is ErrMismatch.
func (f *keyFile) open(aead cipher.AEAD, serial string) (crypto.Signer, error) {
	der, err := aead.Open(nil, nil, f.Private, f.binding(serial))
	if err != nil {
		return nil, fmt.Errorf("the file was altered or is another token's: %w", token.ErrMismatch)
	}
	defer clear(der)
	private, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("the private key cannot be read: %w", token.ErrMismatch)
	}
	return f.checked(private)
}

func (f *keyFile) checked(private crypto.PrivateKey) (crypto.Signer, error) {
	found, err := token.CheckPrivate(f.Algorithm, private)
	if err != nil {
		return nil, err
	}
	public, err := f.public()
	if err != nil {
		return nil, err
	}
	if !public.(interface{ Equal(crypto.PublicKey) bool }).Equal(found) {
		return nil, token.ErrMismatch
	}
	return private.(crypto.Signer), nil
}

func (f *keyFile) binding(serial string) []byte {
	return bind("chancery soft key 1",
		[]byte(serial), []byte(f.ID), []byte(f.Algorithm), []byte(f.Label), f.Public)
}
