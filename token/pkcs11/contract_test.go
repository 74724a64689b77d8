package pkcs11_test

import (
	"testing"

	"chancery/softhsm"
	"chancery/token"
	"chancery/token/pkcs11"
	"chancery/token/tokentest"
)

var driver = tokentest.Driver{Name: "pkcs11", New: func(t testing.TB) *tokentest.Fixture {
	hsm := softhsm.ForTest(t)
	return &tokentest.Fixture{
		Token:  open(t, config(hsm)),
		PIN:    hsm.PIN,
		Reopen: func(t testing.TB) token.Token { return open(t, config(hsm)) },
	}
}}

func TestContract(t *testing.T)  { tokentest.Run(t, driver) }
func BenchmarkSign(b *testing.B) { tokentest.BenchmarkSign(b, driver) }

func config(hsm *softhsm.Token) pkcs11.Config {
	return pkcs11.Config{Module: hsm.Store.Module, Serial: hsm.Serial}
}

func open(t testing.TB, cfg pkcs11.Config) *pkcs11.Token {
	t.Helper()
	tok, err := pkcs11.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tok.Close() })
	return tok
}
