package certfile

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/youmark/pkcs8"

	"chancery/internal/credential"
)

// readKey reads the first private key of the key file, or returns the previous
// one where the file holds the same bytes. The digest is of those.
func readKey(files Files, previous *pair) (crypto.Signer, [sha256.Size]byte, error) {
	content, err := readFile(files.Key, maxFile, private)
	if err != nil {
		return nil, [sha256.Size]byte{}, err
	}
	defer clear(content)
	digest := sha256.Sum256(content)
	passphrase := files.Passphrase
	if previous != nil {
		if digest == previous.keyDigest {
			return previous.certificate.PrivateKey.(crypto.Signer), digest, nil
		}
		if files.Interactive {
			passphrase = cannotAsk
		}
	}
	key, err := findKey(files.Key, content, passphrase)
	return key, digest, err
}

// cannotAsk stands for a prompt while the program runs.
func cannotAsk() ([]byte, error) {
	return nil, errors.New("it can only be typed when the program starts; restart it to use the new key")
}

// findKey parses the first private key of a PEM file's content.
func findKey(path string, rest []byte, passphrase func() ([]byte, error)) (crypto.Signer, error) {
	for {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			return nil, fmt.Errorf("%w: %q holds no private key; it must be PEM (BEGIN PRIVATE KEY)", ErrUnusable, path)
		}
		if !strings.HasSuffix(block.Type, "PRIVATE KEY") {
			continue
		}
		defer clear(block.Bytes)
		key, err := parseKey(path, block, passphrase)
		if err != nil {
			return nil, err
		}
		signer, ok := key.(crypto.Signer)
		if !ok {
			return nil, fmt.Errorf("%w: the key in %q cannot sign; use an ECDSA, Ed25519 or RSA key", ErrUnusable, path)
		}
		return signer, nil
	}
}

func parseKey(path string, block *pem.Block, passphrase func() ([]byte, error)) (key any, err error) {
	if block.Headers["DEK-Info"] != "" {
		return nil, fmt.Errorf("%w: the key in %q is protected in an old form that is not safe; "+
			"convert it with: openssl pkcs8 -topk8 -v2 aes-256-cbc -in OLD -out NEW", ErrUnusable, path)
	}
	switch block.Type {
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "ENCRYPTED PRIVATE KEY":
		return decryptKey(path, block.Bytes, passphrase)
	default:
		return nil, fmt.Errorf("%w: %q holds a %q, which is not supported; convert it with: openssl pkcs8 -topk8", ErrUnusable, path, block.Type)
	}
	if err != nil {
		// The cause would quote bytes of the key's encoding.
		return nil, fmt.Errorf("%w: the private key in %q cannot be read; is the file damaged?", ErrUnusable, path)
	}
	return key, nil
}

// decryptKey opens a PKCS#8 key that is protected by PBES2 (RFC 8018).
func decryptKey(path string, der []byte, passphrase func() ([]byte, error)) (any, error) {
	if passphrase == nil {
		return nil, fmt.Errorf("%w: the key %q is protected by a passphrase; configure where the passphrase comes from", ErrUnusable, path)
	}
	secret, err := passphrase()
	if err != nil {
		return nil, fmt.Errorf("%w: passphrase for the key %q: %w", ErrUnusable, path, err)
	}
	defer clear(secret)
	if len(secret) == 0 {
		return nil, fmt.Errorf("%w: the passphrase for the key %q is empty", ErrUnusable, path)
	}
	key, _, err := pkcs8.ParsePrivateKey(der, secret)
	if err == nil {
		return key, nil
	}
	if strings.Contains(err.Error(), "supported") {
		return nil, fmt.Errorf("%w: the protection of the key %q is not supported; "+
			"convert it with: openssl pkcs8 -topk8 -v2 aes-256-cbc -v2prf hmacWithSHA256 -in OLD -out NEW", ErrUnusable, path)
	}
	return nil, fmt.Errorf("%w: the passphrase does not open the key %q; try again", ErrUnusable, path)
}

// private refuses a key file that its owner shares with others. It judges the
// opened file, so that it cannot be swapped in between. A credential from
// systemd is readable by its group and protected by its directory.
func private(file *os.File) error {
	if runtime.GOOS == "windows" { // its permission bits say nothing
		return nil
	}
	info, err := file.Stat()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnusable, err)
	}
	if info.Mode().Perm()&0o077 == 0 || credential.Is(file.Name()) {
		return nil
	}
	return fmt.Errorf("%w: the private key %q can be read or changed by others (mode %04o); run: chmod 600 %s",
		ErrUnusable, file.Name(), info.Mode().Perm(), file.Name())
}
