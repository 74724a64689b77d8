package openpgp

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"
)

// opaque hides a key behind crypto.Signer, as a token's key is hidden: code
// that asserts a concrete type fails with it.
type opaque struct{ key crypto.Signer }

func (o opaque) Public() crypto.PublicKey { return o.key.Public() }
func (o opaque) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return o.key.Sign(r, digest, opts)
}

// testKey is a key of the tests with its certificate.
type testKey struct {
	name    string
	signer  crypto.Signer
	armored string
	cert    *Certificate
}

var created = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// testKeys makes one key of each kind, once for all tests.
var testKeys = sync.OnceValue(func() []testKey {
	must := func(key crypto.Signer, err error) crypto.Signer {
		if err != nil {
			panic(err)
		}
		return opaque{key}
	}
	rsaKey := func(bits int) crypto.Signer {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		return must(key, err)
	}
	ecdsaKey := func(curve elliptic.Curve) crypto.Signer {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		return must(key, err)
	}
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	keys := []testKey{
		{name: "rsa2048", signer: rsaKey(2048)},
		{name: "rsa3072", signer: rsaKey(3072)},
		{name: "rsa4096", signer: rsaKey(4096)},
		{name: "p256", signer: ecdsaKey(elliptic.P256())},
		{name: "p384", signer: ecdsaKey(elliptic.P384())},
		{name: "p521", signer: ecdsaKey(elliptic.P521())},
		{name: "ed25519", signer: must(edwards, err)},
	}
	for i := range keys {
		armored, _, err := NewCertificate(keys[i].signer, CertificateOptions{
			UserID: "Release " + keys[i].name + " <release@example.com>", Created: created,
		})
		if err != nil {
			panic(err)
		}
		keys[i].armored = armored
		if keys[i].cert, err = ParseCertificate([]byte(armored)); err != nil {
			panic(err)
		}
	}
	return keys
})

func keyNamed(t testing.TB, name string) testKey {
	t.Helper()
	for _, k := range testKeys() {
		if k.name == name {
			return k
		}
	}
	t.Fatalf("no key %q", name)
	return testKey{}
}

func sign(t testing.TB, k testKey, document string, opts Options) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := Sign(&out, strings.NewReader(document), k.cert, k.signer, opts); err != nil {
		t.Fatalf("signing with %s: %v", k.name, err)
	}
	return out.Bytes()
}

// documents are what signing programs are handed.
func documents() map[string]string {
	return map[string]string{
		"empty":          "",
		"newline":        "\n",
		"newlines":       "\n\n\n",
		"plain":          "A text.\nOf two lines.\n",
		"unterminated":   "A text\nwithout an end",
		"dashes":         "- a list\n-- \n-----BEGIN PGP SIGNATURE-----\n --not first\n-\n",
		"armour":         "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nfake\n-----END PGP SIGNATURE-----\n",
		"trailing space": "one  \ntwo\t \n \t\nthree \t x \n   ",
		"crlf":           "one\r\ntwo\r\n\r\n- three\r\n",
		"carriage":       "one\rtwo\r\r\nthree\r \nfour\n\r",
		"from":           "From here\nFrom: there\n",
		"utf-8":          "Grüße, 世界 🔏\nпривет  \n",
		"latin-1":        "Gr\xfc\xdfe\n\xff\xfe\n",
		"long lines":     strings.Repeat(strings.Repeat("x", maxLineLength)+"\n", 3),
		"10 MB":          strings.Repeat("A line of a document that does not end soon.  \n- and another\n", 10<<20/64),
	}
}

func isError(err, target error) bool { return errors.Is(err, target) }
