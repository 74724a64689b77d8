package soft_test

import (
	"path/filepath"
	"testing"

	"chancery/token"
	"chancery/token/soft"
	"chancery/token/tokentest"
)

var pin = []byte("correct PIN")

var driver = tokentest.Driver{Name: "soft", New: func(t testing.TB) *tokentest.Fixture {
	dir := newToken(t)
	return &tokentest.Fixture{
		Token:  open(t, dir),
		PIN:    pin,
		Reopen: func(t testing.TB) token.Token { return open(t, dir) },
	}
}}

func TestContract(t *testing.T)  { tokentest.Run(t, driver) }
func BenchmarkSign(b *testing.B) { tokentest.BenchmarkSign(b, driver) }

// newToken makes a token and returns its directory.
func newToken(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "token")
	if err := soft.CreateCheaply(dir, "test token", pin); err != nil {
		t.Fatal(err)
	}
	return dir
}

func open(t testing.TB, dir string) *soft.Token {
	t.Helper()
	tok, err := soft.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tok.Close() })
	return tok
}
