package tpm_test

import (
	"crypto"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"chancery/swtpm"
	"chancery/token"
	"chancery/token/tokentest"
	"chancery/token/tpm"
)

var pin = []byte("correct PIN")

var driver = tokentest.Driver{Name: "tpm", Lacks: lacks, New: func(t testing.TB) *tokentest.Fixture {
	made := swtpm.Start(t)
	made.SetLockout(32, time.Hour) // as hardware has it; one of 3 is at its final try after two wrong PINs
	config := newToken(t, made)
	return &tokentest.Fixture{
		Token:  open(t, config),
		PIN:    pin,
		Reopen: func(t testing.TB) token.Token { return open(t, config) },
	}
}}

// lacks is what swtpm has not: RSA with SHA-3. ECDSA takes any digest.
func lacks(a token.Algorithm, opts crypto.SignerOpts) bool {
	return a.RSABits() != 0 && slices.Contains([]crypto.Hash{crypto.SHA3_256, crypto.SHA3_512}, opts.HashFunc())
}

func TestContract(t *testing.T) {
	t.Parallel()
	tokentest.Run(t, driver)
}

// newToken makes a token on a TPM.
func newToken(t testing.TB, made *swtpm.TPM) tpm.Config {
	t.Helper()
	config := tpm.Config{Device: made.Device(), Directory: filepath.Join(t.TempDir(), "token")}
	if err := tpm.Create(config, "test token", pin); err != nil {
		t.Fatal(err)
	}
	return config
}

func open(t testing.TB, config tpm.Config) *tpm.Token {
	t.Helper()
	tok, err := tpm.Open(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tok.Close() })
	return tok
}
