package tpm_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	keyfile "github.com/foxboron/go-tpm-keyfiles"
	"github.com/google/go-tpm/tpm2"

	"chancery/internal/testtool"
	"chancery/swtpm"
	"chancery/token"
	"chancery/token/tpm"
)

// TestKeyfilesSigns has the library of the TSS2 format sign with a key file by itself.
func TestKeyfilesSigns(t *testing.T) {
	made, config, key := keyForOthers(t)
	file, err := keyfile.Decode(read(t, keyPath(t, config, "a")))
	if err != nil {
		t.Fatal(err)
	}
	if file.Description != "label of a" || !file.HasAuth() {
		t.Errorf("description %q, authorisation %v", file.Description, file.HasAuth())
	}
	connection := made.Transport()
	defer connection.Close()
	signer, err := file.Signer(connection, nil, authorisation(t, config))
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("message"))
	signature, err := signer.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if !ecdsa.VerifyASN1(key.Public().(*ecdsa.PublicKey), digest[:], signature) {
		t.Error("the signature is wrong")
	}
}

// TestToolsSign has tpm2-tools load the key under the standard storage key and sign.
func TestToolsSign(t *testing.T) {
	made, config, key := keyForOthers(t)
	file, err := keyfile.Decode(read(t, keyPath(t, config, "a")))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "key.pub"), tpm2.Marshal(file.Pubkey))
	write(t, filepath.Join(dir, "key.priv"), tpm2.Marshal(file.Privkey))
	write(t, filepath.Join(dir, "message"), []byte("message"))
	for _, command := range [][]string{
		{"tpm2_createprimary", "-C", "o", "-G", "ecc256:aes128cfb", "-c", "parent.ctx",
			"-a", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt"},
		{"tpm2_load", "-C", "parent.ctx", "-u", "key.pub", "-r", "key.priv", "-c", "key.ctx"},
		{"tpm2_flushcontext", "-t"},
		{"tpm2_sign", "-c", "key.ctx", "-p", "str:" + string(authorisation(t, config)), "-g", "sha256", "-f", "plain", "-o", "signature", "message"},
	} {
		run(t, made, dir, command...)
	}
	digest := sha256.Sum256([]byte("message"))
	if !ecdsa.VerifyASN1(key.Public().(*ecdsa.PublicKey), digest[:], read(t, filepath.Join(dir, "signature"))) {
		t.Error("the signature is wrong")
	}
}

// TestOpenSSLReadsTheArmour checks the file's outer form as any PEM and DER reader sees it.
func TestOpenSSLReadsTheArmour(t *testing.T) {
	made, config, _ := keyForOthers(t)
	path := keyPath(t, config, "a")
	block, rest := pem.Decode(read(t, path))
	if block == nil || block.Type != "TSS2 PRIVATE KEY" || len(rest) != 0 {
		t.Fatalf("not one TSS2 PRIVATE KEY:\n%s", read(t, path))
	}
	run(t, made, t.TempDir(), "openssl", "asn1parse", "-in", path)
}

// keyForOthers makes a token with a key, and lets go of the TPM.
func keyForOthers(t *testing.T) (*swtpm.TPM, tpm.Config, token.Key) {
	t.Helper()
	made := swtpm.Start(t)
	config := newToken(t, made)
	tok := open(t, config)
	login(t, tok)
	key := generate(t, tok, "a", token.P256)
	if err := tok.Close(); err != nil {
		t.Fatal(err)
	}
	return made, config, key
}

func authorisation(t *testing.T, config tpm.Config) []byte {
	t.Helper()
	auth, err := tpm.Authorisation(config, pin)
	if err != nil {
		t.Fatal(err)
	}
	return auth
}

func run(t *testing.T, made *swtpm.TPM, dir string, command ...string) {
	t.Helper()
	c := exec.Command(testtool.Need(t, command[0]), command[1:]...)
	c.Dir, c.Env = dir, append(os.Environ(), made.Env()...)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", command[0], err, out)
	}
}
