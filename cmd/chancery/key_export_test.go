package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"testing"
	"time"

	"chancery/artifact/openpgp"
	"chancery/client"
	"chancery/tunnel/wire"
)

// certified returns a new key with a certificate of each kind.
func certified(t *testing.T) *client.KeyInfo {
	t.Helper()
	signer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, signer.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	armored, _, err := openpgp.NewCertificate(signer, openpgp.CertificateOptions{UserID: "a <a@example.com>", Created: time.Now().Add(-time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	return &client.KeyInfo{Name: "key", Public: signer.Public(), Certificates: []wire.Certificate{
		{Type: wire.CertificateX509, Text: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))},
		{Type: wire.CertificatePGP, Text: armored},
	}}
}

func TestExportedCertificatesAreOverTheKey(t *testing.T) {
	key, other := certified(t), certified(t)
	for i, format := range []string{"x509", "openpgp"} {
		plain, err := export(key, format)
		if err != nil {
			t.Fatal(err)
		}
		own := key.Certificates[i].Text
		key.Certificates[i].Text = "\x1b[2J\n" + own + "\x1b[2J\n"
		if cleaned, err := export(key, format); err != nil || string(cleaned) != string(plain) {
			t.Errorf("%s: %q, %v", format, cleaned, err)
		}
		for what, text := range map[string]string{"another key's": other.Certificates[i].Text, "garbage": "garbage"} {
			key.Certificates[i].Text = text
			if got, err := export(key, format); err == nil {
				t.Errorf("%s: %s certificate was exported: %q", format, what, got)
			}
		}
	}
}
