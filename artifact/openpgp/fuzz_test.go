package openpgp

import (
	"bytes"
	"strings"
	"testing"
)

func FuzzParseCertificate(f *testing.F) {
	for _, k := range testKeys() {
		f.Add([]byte(k.armored))
		packets, err := packetsOf(publicKeyBlock, []byte(k.armored))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(packets)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		cert, err := ParseCertificate(data)
		if err != nil {
			return
		}
		if cert.Public() == nil || len(cert.Fingerprint()) != 40 {
			t.Errorf("an incomplete certificate: %+v", cert)
		}
		_, _ = New(cert, Options{})
		_, _, _, _ = cert.Expires(), cert.Created(), cert.UserIDs(), cert.Revoked()
	})
}

// FuzzVerify: no mutation of a signature may verify for another document.
func FuzzVerify(f *testing.F) {
	keys := testKeys()
	for i, k := range keys {
		f.Add(i, sign(f, k, "document", Options{}))
		f.Add(i, sign(f, k, "document", Options{Format: Binary}))
	}
	f.Fuzz(func(t *testing.T, i int, signature []byte) {
		if i < 0 || i >= len(keys) {
			return
		}
		if verification, _ := Verify(keys[i].cert, signature, strings.NewReader("another document")); verification != nil {
			t.Errorf("it verifies a document that was never signed: %+v", verification)
		}
	})
}

// FuzzVerifyCleartext: whatever verifies is the text that was signed.
func FuzzVerifyCleartext(f *testing.F) {
	k := keyNamed(f, "ed25519")
	const document = "first\n- second  \n\nthird\n"
	message := sign(f, k, document, Options{Format: Cleartext})
	f.Add(message)
	f.Add(bytes.ReplaceAll(message, []byte("\n"), []byte("\r\n")))
	f.Fuzz(func(t *testing.T, message []byte) {
		var text bytes.Buffer
		if _, err := VerifyCleartext(k.cert, bytes.NewReader(message), &text); err == nil && text.String() != asSigned(document) {
			t.Errorf("it verifies a text that was never signed: %q", text.String())
		}
	})
}
