package tpm

import (
	"bytes"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"

	"github.com/google/go-tpm/tpm2"

	"chancery/internal/durable"
	"chancery/token"
)

const (
	manifestName    = "token.json"
	manifestVersion = 1
	keysPrefix      = "keys-"  // keys-GENERATION is the directory of key files
	maxFileSize     = 64 << 10 // far above the largest file here, of 3 KiB

	identityBytes   = 8
	generationBytes = 8
	serialBytes     = 16
	saltBytes       = 32
	authBytes       = 24 // 192 bits, 32 characters in base64: all that an authorisation under SHA-256 can have
)

// manifest is token.json. Replacing it is what changes the PIN: it names the
// one directory of key files that counts.
type manifest struct {
	Version      int    `json:"version"`
	Identity     string `json:"identity"` // random, hexadecimal
	Label        string `json:"label"`
	Parent       []byte `json:"parent"`        // TPMT_PUBLIC of the storage key
	ParentHandle uint32 `json:"parent_handle"` // where it is persistent; 0 where it is made anew
	Generation   string `json:"generation"`
	Salt         []byte `json:"salt"`        // of the PIN's derivation
	PINPublic    []byte `json:"pin_public"`  // TPMT_PUBLIC of the object that tells a right PIN
	PINPrivate   []byte `json:"pin_private"` // its private area, wrapped by the TPM
}

func newManifest(label string, parent *Parent, handle uint32) *manifest {
	return &manifest{
		Version:      manifestVersion,
		Identity:     randomHex(identityBytes),
		Label:        label,
		Parent:       tpm2.Marshal(parent.Public),
		ParentHandle: handle,
		Generation:   randomHex(generationBytes),
		Salt:         randomBytes(saltBytes),
	}
}

// readManifest tells an absent token from an unreadable one.
func readManifest(dir string) (*manifest, error) {
	data, err := durable.ReadLimited(filepath.Join(dir, manifestName), maxFileSize)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no token in %s: %w", dir, token.ErrTokenAbsent)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errFile, err)
	}
	m, err := decodeManifest(data)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", errFile, manifestName, err)
	}
	return m, nil
}

func decodeManifest(data []byte) (*manifest, error) {
	var m manifest
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&m); err != nil {
		return nil, fmt.Errorf("not a valid file: %w", err)
	}
	if _, err := decoder.Token(); err != io.EOF {
		return nil, errors.New("not a valid file: something follows its end")
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	return &m, nil
}

func (m *manifest) check() error {
	if m.Version != manifestVersion {
		return fmt.Errorf("version %d where this program reads %d", m.Version, manifestVersion)
	}
	if !isHex(m.Identity, identityBytes) || !isHex(m.Generation, generationBytes) {
		return errors.New("identity or generation has not the right hexadecimal digits")
	}
	if err := checkTokenLabel(m.Label); err != nil {
		return err
	}
	if len(m.Salt) != saltBytes {
		return errors.New("salt has the wrong length")
	}
	parent, err := parsePublic(m.Parent)
	if err != nil {
		return fmt.Errorf("parent: %w", err)
	}
	if err := checkParent(parent); err != nil {
		return err
	}
	_, err = m.pinObject()
	return err
}

func (m *manifest) encode() []byte {
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		panic(err) // strings, numbers and bytes always marshal
	}
	return append(data, '\n')
}

// serial is the token's identity: of this TPM, and of this directory. Another
// TPM's storage key cannot have it.
func (m *manifest) serial() string {
	h := sha256.Sum256(binding("", "serial", m.Parent, []byte(m.Identity)))
	return hex.EncodeToString(h[:serialBytes])
}

// pinObject checks that the object is the one that this package makes.
func (m *manifest) pinObject() (*object, error) {
	want := tpm2.Marshal(pinTemplate(m.serial()))
	public, err := parsePublic(m.PINPublic)
	if err != nil {
		return nil, fmt.Errorf("pin_public: %w", err)
	}
	unique := public.Unique
	public.Unique = pinTemplate("").Unique
	if public.Type != tpm2.TPMAlgKeyedHash || !bytes.Equal(tpm2.Marshal(*public), want) {
		return nil, fmt.Errorf("pin_public is not this token's: %w", token.ErrMismatch)
	}
	public.Unique = unique
	if len(m.PINPrivate) == 0 {
		return nil, errors.New("pin_private is missing")
	}
	return newObject(m.PINPublic, m.PINPrivate)
}

// authorisation derives from the PIN what the TPM checks.
//
// HKDF (RFC 5869) and nothing slower: the TPM itself counts and bounds the
// tries, and neither the wrapped key files nor recorded sessions, which are
// salted to the storage key, give anything to try a PIN on without it. The salt
// is the token's, so that two tokens with one PIN differ.
//
// The result is text, so that other TPM tools take it as a password, and has no
// zero byte, at which go-tpm would cut it.
func (m *manifest) authorisation(pin []byte) []byte {
	pseudorandom := extract(pin, m.Salt)
	defer clear(pseudorandom)
	key, err := hkdf.Expand(sha256.New, pseudorandom, "chancery tpm authorisation 1 "+m.serial(), authBytes)
	if err != nil {
		panic(err) // only lengths beyond 255 hashes fail
	}
	defer clear(key)
	auth := make([]byte, base64.RawStdEncoding.EncodedLen(len(key)))
	base64.RawStdEncoding.Encode(auth, key)
	return auth
}

// extract is HKDF-Extract with SHA-256 (RFC 5869, section 2.2), which leaves no copy of the secret behind.
func extract(secret, salt []byte) []byte {
	sum := hmac.New(sha256.New, salt)
	sum.Write(secret)
	pseudorandom := sum.Sum(nil)
	// What was written last stays in the hash's buffer, of one block, until something else is. Of two pieces of almost a
	// block each, the first reaches the buffer's end and begins anew, and the second covers what that one left.
	for range 2 {
		sum.Write(make([]byte, sha256.BlockSize-1))
	}
	return pseudorandom
}

func (m *manifest) keysDir(dir string) string {
	return filepath.Join(dir, keysPrefix+m.Generation)
}

func checkTokenLabel(label string) error {
	if label == "" {
		return errors.New("a token needs a label")
	}
	return token.CheckLabel(label)
}

func isHex(text string, bytes int) bool {
	raw, err := hex.DecodeString(text)
	return err == nil && len(raw) == bytes && hex.EncodeToString(raw) == text
}

func randomHex(n int) string {
	return hex.EncodeToString(randomBytes(n))
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails: it ends the program instead
	return b
}
