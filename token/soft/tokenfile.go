package soft

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"golang.org/x/crypto/argon2"

	"chancery/token"
)

const (
	fileVersion   = 1
	masterKeySize = 32 // AES-256
	saltSize      = 16 // RFC 9106, section 3.1
	sealOverhead  = 28 // nonce and tag of AES-GCM with a random nonce
	argonName     = "argon2id"
)

// Bounds of what a token file may ask of this process (RFC 9106, section 3.1,
// allows far more); a planted file must not exhaust the host.
const (
	maxMemoryKiB = 1 << 20 // 1 GiB
	maxTime      = 16
	maxThreads   = 16
)

// kdfParameters is what Argon2id costs.
type kdfParameters struct {
	MemoryKiB uint32 `json:"memory_kib"`
	Time      uint32 `json:"time"`
	Threads   uint8  `json:"threads"`
}

// defaultParameters is the second recommended option of RFC 9106, section 4.
var defaultParameters = kdfParameters{MemoryKiB: 64 << 10, Time: 3, Threads: 4}

// tokenFile is token.json.
type tokenFile struct {
	Version int     `json:"version"`
	Serial  string  `json:"serial"`
	Label   string  `json:"label"`
	KDF     kdfSpec `json:"kdf"`
	Master  []byte  `json:"master_key"` // nonce, ciphertext and tag
}

type kdfSpec struct {
	Name string `json:"name"`
	kdfParameters
	Salt []byte `json:"salt"`
}

func decodeTokenFile(data []byte) (*tokenFile, error) {
	var file tokenFile
	if err := decodeStrict(data, &file); err != nil {
		return nil, fmt.Errorf("%s: %w", tokenFileName, err)
	}
	if err := file.check(); err != nil {
		return nil, fmt.Errorf("%s: %w", tokenFileName, err)
	}
	return &file, nil
}

func (f *tokenFile) check() error {
	if f.Version != fileVersion {
		return fmt.Errorf("version %d where this program reads %d", f.Version, fileVersion)
	}
	if serial, err := hex.DecodeString(f.Serial); err != nil || len(serial) != serialBytes {
		return fmt.Errorf("serial is not %d hexadecimal digits", 2*serialBytes)
	}
	if err := checkTokenLabel(f.Label); err != nil {
		return err
	}
	if len(f.Master) != masterKeySize+sealOverhead {
		return errors.New("master_key has the wrong length")
	}
	return f.KDF.check()
}

func (k *kdfSpec) check() error {
	if k.Name != argonName {
		return fmt.Errorf("key derivation is not %s", argonName)
	}
	if len(k.Salt) != saltSize {
		return errors.New("salt has the wrong length")
	}
	// Argon2 wants eight blocks of a KiB for each thread (RFC 9106, section 3.1).
	if k.Threads < 1 || k.Threads > maxThreads || k.Time < 1 || k.Time > maxTime ||
		k.MemoryKiB < 8*uint32(k.Threads) || k.MemoryKiB > maxMemoryKiB {
		return errors.New("key derivation parameters are out of bounds")
	}
	return nil
}

func (f *tokenFile) encode() []byte {
	return encode(f)
}

// seal puts the master key under the PIN with a fresh salt.
func (f *tokenFile) seal(master, pin []byte, parameters kdfParameters) error {
	f.KDF = kdfSpec{Name: argonName, kdfParameters: parameters, Salt: randomBytes(saltSize)}
	aead, err := f.pinCipher(pin)
	if err != nil {
		return err
	}
	f.Master = aead.Seal(nil, nil, master, f.binding())
	return nil
}

// open returns the master key, or ErrPINIncorrect. AES-GCM cannot tell a wrong
// PIN from an altered file, and the message says so.
func (f *tokenFile) open(pin []byte) ([]byte, error) {
	if len(pin) < MinPINLength || len(pin) > MaxPINLength {
		return nil, token.ErrPINIncorrect
	}
	aead, err := f.pinCipher(pin)
	if err != nil {
		return nil, err
	}
	master, err := aead.Open(nil, nil, f.Master, f.binding())
	if err != nil {
		return nil, fmt.Errorf("%w (or %s was altered)", token.ErrPINIncorrect, tokenFileName)
	}
	return master, nil
}

func (f *tokenFile) pinCipher(pin []byte) (cipher.AEAD, error) {
	key := argon2.IDKey(pin, f.KDF.Salt, f.KDF.Time, f.KDF.MemoryKiB, f.KDF.Threads, masterKeySize)
	defer clear(key)
	return newCipher(key)
}

func (f *tokenFile) binding() []byte {
	return bind("chancery soft token 1", []byte(f.Serial), []byte(f.Label))
}

// newCipher returns AES-256-GCM that draws its own nonce. One master key seals
// far fewer than 2^32 keys (NIST SP 800-38D, section 8.3).
func newCipher(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// bind joins a purpose and fields, each with its length, so that no two
// different lists give the same bytes.
func bind(purpose string, fields ...[]byte) []byte {
	out := binary.BigEndian.AppendUint32(nil, uint32(len(purpose)))
	out = append(out, purpose...)
	for _, field := range fields {
		out = binary.BigEndian.AppendUint32(out, uint32(len(field)))
		out = append(out, field...)
	}
	return out
}

// decodeStrict reads exactly one JSON value without unknown fields.
func decodeStrict(data []byte, into any) error {
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return fmt.Errorf("not a valid file: %w", err)
	}
	if _, err := decoder.Token(); err != io.EOF {
		return errors.New("not a valid file: something follows its end")
	}
	return nil
}

// encode cannot fail: the file types have only strings, numbers and bytes.
func encode(file any) []byte {
	data, err := json.MarshalIndent(file, "", "  ")
	if err != nil {
		panic(err)
	}
	return append(data, '\n')
}
