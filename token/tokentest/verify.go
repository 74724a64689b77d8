package tokentest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	_ "crypto/sha256" // the hashes that cases use
	_ "crypto/sha3"
	_ "crypto/sha512"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"chancery/internal/testtool"
	"chancery/token"
)

// signing is one way in which a key signs.
type signing struct {
	name string
	opts crypto.SignerOpts
}

// cases lists the ways in which a key of this algorithm must sign.
func cases(a token.Algorithm) []signing {
	if a == token.Ed25519 {
		return []signing{{"message", crypto.Hash(0)}}
	}
	var all []signing
	for _, hash := range token.Hashes() {
		all = append(all, signing{hash.String(), hash})
	}
	if a.RSABits() == 0 {
		return all
	}
	for _, hash := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		all = append(all, signing{"PSS " + hash.String(),
			&rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash}})
	}
	return all
}

// input makes what is signed out of any message: itself for Ed25519, else its digest.
func (s signing) input(message []byte) []byte {
	if s.opts.HashFunc() == 0 {
		return message
	}
	h := s.opts.HashFunc().New()
	h.Write(message)
	return h.Sum(nil)
}

func (s signing) signAndVerify(ctx context.Context, key token.Key, message [32]byte) error {
	input := s.input(message[:])
	signature, err := key.Sign(ctx, input, s.opts)
	if err != nil {
		return err
	}
	return s.verify(key.Public(), input, signature)
}

// verify checks a signature with the standard library.
func (s signing) verify(public crypto.PublicKey, input, signature []byte) error {
	switch public := public.(type) {
	case *rsa.PublicKey:
		if pss, ok := s.opts.(*rsa.PSSOptions); ok {
			return rsa.VerifyPSS(public, pss.Hash, input, signature, pss)
		}
		return rsa.VerifyPKCS1v15(public, s.opts.HashFunc(), input, signature)
	case *ecdsa.PublicKey:
		if !ecdsa.VerifyASN1(public, input, signature) {
			return errors.New("ECDSA signature does not verify")
		}
		return nil
	case ed25519.PublicKey:
		if !ed25519.Verify(public, input, signature) {
			return errors.New("Ed25519 signature does not verify")
		}
		return nil
	}
	return fmt.Errorf("public key of type %T", public)
}

// verifyWithOpenSSL has `openssl pkeyutl` check a signature.
func (s signing) verifyWithOpenSSL(t testing.TB, public crypto.PublicKey, input, signature []byte) {
	t.Helper()
	openssl := testtool.Need(t, "openssl")
	dir := t.TempDir()
	arguments := []string{"pkeyutl", "-verify", "-pubin",
		"-inkey", writeFile(t, dir, "public.pem", publicPEM(t, public)),
		"-in", writeFile(t, dir, "input", input),
		"-sigfile", writeFile(t, dir, "signature", signature)}
	if hash := s.opts.HashFunc(); hash == 0 {
		arguments = append(arguments, "-rawin")
	} else {
		arguments = append(arguments, "-pkeyopt", "digest:"+opensslName(hash))
	}
	if _, ok := s.opts.(*rsa.PSSOptions); ok {
		arguments = append(arguments, "-pkeyopt", "rsa_padding_mode:pss", "-pkeyopt", "rsa_pss_saltlen:digest")
	}
	if out, err := exec.Command(openssl, arguments...).CombinedOutput(); err != nil {
		t.Errorf("openssl %s: %v\n%s", strings.Join(arguments, " "), err, out)
	}
}

// opensslName turns "SHA3-256" and "SHA-256" into openssl's sha3-256 and sha256.
func opensslName(hash crypto.Hash) string {
	return strings.Replace(strings.ToLower(hash.String()), "sha-", "sha", 1)
}

func publicPEM(t testing.TB, public crypto.PublicKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

func writeFile(t testing.TB, dir, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// equal compares public keys of any kind.
func equal(a, b crypto.PublicKey) bool {
	comparable, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && comparable.Equal(b)
}
