package openpgp

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestCertificateAnswers(t *testing.T) {
	for _, k := range testKeys() {
		c := k.cert
		if !samePublic(k.signer.Public(), c.Public()) {
			t.Errorf("%s: another public key", k.name)
		}
		if len(c.Fingerprint()) != 40 || !strings.HasSuffix(c.Fingerprint(), c.KeyID()) {
			t.Errorf("%s: fingerprint %s, key ID %s", k.name, c.Fingerprint(), c.KeyID())
		}
		if !c.Created().Equal(created) || !c.Expires().IsZero() || c.Revoked() {
			t.Errorf("%s: created %v, expires %v, revoked %v", k.name, c.Created(), c.Expires(), c.Revoked())
		}
		if ids := c.UserIDs(); len(ids) != 1 || ids[0] != "Release "+k.name+" <release@example.com>" {
			t.Errorf("%s: user IDs %q", k.name, ids)
		}
	}
}

// TestKeyPacketBytes pins the packet that a fingerprint is computed from, with
// the public key of RFC 8032, section 7.1, test 1.
func TestKeyPacketBytes(t *testing.T) {
	public, err := hex.DecodeString("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
	if err != nil {
		t.Fatal(err)
	}
	key, err := newKeyPacket(ed25519.PublicKey(public), created)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := key.Serialize(&b); err != nil {
		t.Fatal(err)
	}
	want := "c633" + "04" + "695735a5" + "16" + // header, version, creation time, EdDSALegacy
		"092b06010401da470f01" + "0107" + "40" + hex.EncodeToString(public)
	if got := hex.EncodeToString(b.Bytes()); got != want {
		t.Errorf("key packet\n%s, want\n%s", got, want)
	}
}

// TestSelfSignatureBytes pins what a certificate says of its key.
func TestSelfSignatureBytes(t *testing.T) {
	opts := CertificateOptions{UserID: "x", Created: created, Expires: created.Add(24 * time.Hour)}
	want := "021b03" + "050900015180" + "04150a0908" + "021780" + "021901"
	if got := hex.EncodeToString(opts.subpackets()); got != want {
		t.Errorf("subpackets %s, want %s", got, want)
	}
}

func TestNewCertificateRefuses(t *testing.T) {
	signer := keyNamed(t, "ed25519").signer
	for name, opts := range map[string]CertificateOptions{
		"no user ID":        {Created: created},
		"long user ID":      {UserID: strings.Repeat("x", 256), Created: created},
		"space around it":   {UserID: "x ", Created: created},
		"control character": {UserID: "x\ny", Created: created},
		"turned direction":  {UserID: "x\u202ey", Created: created},
		"not UTF-8":         {UserID: "x\xff", Created: created},
		"no creation time":  {UserID: "x"},
		"made before 1970":  {UserID: "x", Created: time.Date(1969, 1, 1, 0, 0, 0, 0, time.UTC)},
		"made after 2106":   {UserID: "x", Created: time.Date(2107, 1, 1, 0, 0, 0, 0, time.UTC)},
		"expires at once":   {UserID: "x", Created: created, Expires: created},
		"expires before":    {UserID: "x", Created: created, Expires: created.Add(-time.Hour)},
		"expires too late":  {UserID: "x", Created: created, Expires: created.AddDate(137, 0, 0)},
	} {
		if _, _, err := NewCertificate(signer, opts); !errors.Is(err, ErrOptions) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWeakKeysAreRefused(t *testing.T) {
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	opts := CertificateOptions{UserID: "x", Created: created}
	if _, _, err := NewCertificate(opaque{p224}, opts); !errors.Is(err, ErrUnsupported) {
		t.Errorf("P-224: %v", err)
	}
	if _, _, err := NewCertificate(opaque{small}, opts); !errors.Is(err, ErrUnsupported) {
		t.Errorf("RSA-1024: %v", err)
	}
}

func TestParseCertificateRefuses(t *testing.T) {
	k := keyNamed(t, "p256")
	packets, err := packetsOf(publicKeyBlock, []byte(k.armored))
	if err != nil {
		t.Fatal(err)
	}
	other, err := packetsOf(publicKeyBlock, []byte(keyNamed(t, "ed25519").armored))
	if err != nil {
		t.Fatal(err)
	}
	renamed := bytes.Replace(packets, []byte("Release p256"), []byte("Release p257"), 1)
	keyOnly := packets[:2+int(packets[1])]
	for name, data := range map[string][]byte{
		"nothing":             nil,
		"text":                []byte("no certificate"),
		"too long":            make([]byte, maxCertificateSize+1),
		"another block":       []byte(strings.ReplaceAll(k.armored, "PUBLIC KEY BLOCK", "MESSAGE")),
		"two blocks":          []byte(k.armored + k.armored),
		"two primary keys":    append(bytes.Clone(packets), other...),
		"without its end":     []byte(k.armored[:len(k.armored)-40]),
		"cut packets":         packets[:len(packets)-5],
		"no self-signature":   keyOnly,
		"changed user ID":     renamed,
		"trailing garbage":    append(bytes.Clone(packets), 0xff, 0xff),
		"literal data inside": append(bytes.Clone(packets), 0xcb, 7, 'b', 0, 0, 0, 0, 0, 'x'),
		"too many packets":    append(bytes.Clone(packets), bytes.Repeat([]byte{0xcd, 1, 'x'}, maxCertificatePackets)...),
	} {
		if _, err := ParseCertificate(data); !errors.Is(err, ErrCertificate) {
			t.Errorf("%s: %v", name, err)
		}
	}
	noted := "A note of where this came from\n\n" + strings.ReplaceAll(k.armored, "\n", "\r\n")
	if _, err := ParseCertificate([]byte(noted)); err != nil {
		t.Errorf("with a note and CRLF: %v", err)
	}
}
