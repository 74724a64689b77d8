package tpm

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	keyfile "github.com/foxboron/go-tpm-keyfiles"
	"github.com/google/go-tpm/tpm2"

	"chancery/token"
)

const keyFileSuffix = ".pem"

// keyFile is keys-GENERATION/HEX-ID.pem: one TSS2 PRIVATE KEY ("ASN.1
// Specification for TPM 2.0 Key Files"), whose description is the label.
type keyFile struct {
	*object
	info  token.KeyInfo
	local bool // made in the TPM, not imported
}

// newKeyFile takes what the TPM gave out and checks that it is what was asked for.
func newKeyFile(serial string, spec token.KeySpec, public []byte, private tpm2.TPM2BPrivate) (*keyFile, error) {
	made, err := newObject(public, private.Buffer)
	if err != nil {
		return nil, err
	}
	contents, err := parsePublic(public)
	if err != nil {
		return nil, err
	}
	key, algorithm, err := publicKey(contents)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(contents.AuthPolicy.Buffer, keyBinding(serial, spec.ID, spec.Label)) {
		return nil, fmt.Errorf("the file is another key's or another token's: %w", token.ErrMismatch)
	}
	return &keyFile{
		object: made,
		info:   token.KeyInfo{ID: bytes.Clone(spec.ID), Label: spec.Label, Algorithm: algorithm, Public: key},
		local:  contents.ObjectAttributes.SensitiveDataOrigin,
	}, nil
}

// encode writes the file. The parent is the persistent handle or, for one that
// is made anew, the hierarchy whose standard storage key it is.
func (f *keyFile) encode(parent uint32) []byte {
	handle := tpm2.TPMHandle(parent)
	if parent == 0 {
		handle = tpm2.TPMRHOwner
	}
	key := keyfile.TPMKey{
		Keytype:     keyfile.OIDLoadableKey,
		Description: f.info.Label,
		Parent:      handle,
		Pubkey:      tpm2.BytesAs2B[tpm2.TPMTPublic](f.public),
		Privkey:     f.private,
	}
	return key.Bytes()
}

// decodeKeyFile reads a key file and checks all that can be checked without the
// TPM: that it is this token's, that the identifier and the label are its own
// (see binding), and that there is nothing else in it.
func decodeKeyFile(data []byte, serial string, parent uint32, id []byte) (*keyFile, error) {
	key, err := keyfile.Decode(data)
	if err != nil {
		return nil, errors.New("not a TSS2 PRIVATE KEY")
	}
	if err := token.CheckLabel(key.Description); err != nil {
		return nil, err
	}
	spec := token.KeySpec{ID: id, Label: key.Description}
	file, err := newKeyFile(serial, spec, key.Pubkey.Bytes(), key.Privkey)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(file.encode(parent), data) {
		return nil, fmt.Errorf("the file has more or other contents than a key of this token: %w", token.ErrMismatch)
	}
	return file, nil
}

func keyFileName(id []byte) string {
	return hex.EncodeToString(id) + keyFileSuffix
}

// idOfFile reads the identifier in a key file's name; temporary files have none.
func idOfFile(name string) ([]byte, bool) {
	digits, ok := strings.CutSuffix(name, keyFileSuffix)
	if !ok || digits != strings.ToLower(digits) {
		return nil, false
	}
	id, err := hex.DecodeString(digits)
	if err != nil || !validID(id) {
		return nil, false
	}
	return id, true
}

func validID(id []byte) bool {
	return len(id) >= 1 && len(id) <= token.MaxIDLength
}
