package openpgp

import (
	"bytes"
	"crypto"
	stded25519 "crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/ed25519"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// TestManyPendingDocuments signs in two phases, as a batch does: all documents
// first, then all digests, then all signatures.
func TestManyPendingDocuments(t *testing.T) {
	for _, k := range testKeys() {
		pending := make([]*Pending, 20)
		for i := range pending {
			var err error
			if pending[i], err = New(k.cert, Options{}); err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(pending[i], "document %d", i)
		}
		raw := make([][]byte, len(pending))
		for i, p := range pending {
			hash, digest := p.Digest()
			var err error
			if raw[i], err = k.signer.Sign(nil, digest, hash); err != nil {
				t.Fatal(err)
			}
		}
		for i, p := range pending {
			if _, err := p.Finish(raw[(i+1)%len(raw)]); !errors.Is(err, ErrSignature) {
				t.Fatalf("%s: Finish took another document's signature: %v", k.name, err)
			}
			signature, err := p.Finish(raw[i])
			if err != nil {
				t.Fatal(err)
			}
			verification, err := Verify(k.cert, signature, strings.NewReader(fmt.Sprintf("document %d", i)))
			if err != nil || verification.Fingerprint != k.cert.Fingerprint() {
				t.Fatalf("%s: Verify returned %+v, %v", k.name, verification, err)
			}
		}
	}
}

func TestFinishRefusesGarbage(t *testing.T) {
	for _, k := range testKeys() {
		p, err := New(k.cert, Options{})
		if err != nil {
			t.Fatal(err)
		}
		hash, digest := p.Digest()
		good, err := k.signer.Sign(nil, digest, hash)
		if err != nil {
			t.Fatal(err)
		}
		flipped := bytes.Clone(good)
		flipped[len(flipped)-1] ^= 1
		for name, raw := range map[string][]byte{
			"nothing":     nil,
			"zeros":       make([]byte, len(good)),
			"one short":   good[:len(good)-1],
			"one long":    append(bytes.Clone(good), 0),
			"flipped":     flipped,
			"zero r, s":   {0x30, 6, 2, 1, 0, 2, 1, 0},
			"not numbers": {0x30, 4, 5, 0, 5, 0},
		} {
			if _, err := p.Finish(raw); !errors.Is(err, ErrSignature) {
				t.Errorf("%s: %s: %v", k.name, name, err)
			}
		}
	}
}

func TestHashes(t *testing.T) {
	defaults := map[string]crypto.Hash{"p384": crypto.SHA384, "p521": crypto.SHA512}
	for _, k := range testKeys() {
		want := defaults[k.name]
		if want == 0 {
			want = crypto.SHA256
		}
		for _, asked := range []crypto.Hash{0, crypto.SHA256, crypto.SHA384, crypto.SHA512} {
			var out bytes.Buffer
			err := Sign(&out, strings.NewReader("document"), k.cert, k.signer, Options{Hash: asked})
			if asked != 0 && asked.Size() < want.Size() {
				if !errors.Is(err, ErrOptions) {
					t.Errorf("%s: %v is too weak, and gave %v", k.name, asked, err)
				}
				continue
			}
			if err != nil {
				t.Fatalf("%s, %v: %v", k.name, asked, err)
			}
			verification, err := Verify(k.cert, out.Bytes(), strings.NewReader("document"))
			if err != nil || (asked != 0 && verification.Hash != asked) || (asked == 0 && verification.Hash != want) {
				t.Errorf("%s, %v: %+v, %v", k.name, asked, verification, err)
			}
		}
		for _, bad := range []crypto.Hash{crypto.SHA1, crypto.SHA224, crypto.MD5, crypto.SHA3_256, crypto.Hash(99)} {
			if _, err := New(k.cert, Options{Hash: bad}); !errors.Is(err, ErrOptions) {
				t.Errorf("%s: hash %d gave %v", k.name, bad, err)
			}
		}
	}
}

// TestPacketBytes pins the hashed part of a signature packet: what the key
// signs besides the document. RFC 9580, sections 5.2.3 and 5.2.4.
func TestPacketBytes(t *testing.T) {
	at := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for name, want := range map[string]struct{ head, algorithm, hash string }{
		"rsa2048": {"0400", "01", "08"},
		"p256":    {"0400", "13", "08"},
		"p384":    {"0400", "13", "09"},
		"p521":    {"0400", "13", "0a"},
		"ed25519": {"0400", "16", "08"},
	} {
		k := keyNamed(t, name)
		p, err := New(k.cert, Options{Format: Binary, Time: at})
		if err != nil {
			t.Fatal(err)
		}
		expected := want.head + want.algorithm + want.hash + "001d" + // 29 bytes of subpackets
			"162104" + strings.ToLower(k.cert.Fingerprint()) + // issuer fingerprint, version 4
			"0502" + fmt.Sprintf("%08x", at.Unix()) // creation time
		if got := hex.EncodeToString(p.unsigned.hashed); got != expected {
			t.Errorf("%s: hashed part\n%s, want\n%s", name, got, expected)
		}
	}
}

// TestSamePacketTwice: a key without randomness gives the same file for the
// same document and time.
func TestSamePacketTwice(t *testing.T) {
	for _, name := range []string{"rsa2048", "ed25519"} {
		k := keyNamed(t, name)
		opts := Options{Format: Binary, Time: created.Add(time.Hour)}
		if !bytes.Equal(sign(t, k, "document", opts), sign(t, k, "document", opts)) {
			t.Errorf("%s: two signatures differ", name)
		}
	}
}

func TestSignRefuses(t *testing.T) {
	k, other := keyNamed(t, "p256"), keyNamed(t, "ed25519")
	for name, test := range map[string]struct {
		signer crypto.Signer
		opts   Options
		want   error
	}{
		"another key":           {other.signer, Options{}, ErrOtherKey},
		"before the key":        {k.signer, Options{Time: created.Add(-time.Second)}, ErrOptions},
		"after 2106":            {k.signer, Options{Time: time.Date(2107, 1, 1, 0, 0, 0, 0, time.UTC)}, ErrOptions},
		"text with detached":    {k.signer, Options{Text: &bytes.Buffer{}}, ErrOptions},
		"an unknown format":     {k.signer, Options{Format: 7}, ErrUnsupported},
		"a line without an end": {k.signer, Options{Format: Cleartext}, ErrText},
	} {
		document := strings.NewReader(strings.Repeat("x", maxLineLength+1))
		if err := Sign(&bytes.Buffer{}, document, k.cert, test.signer, test.opts); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
	if _, err := New(k.cert, Options{Format: Cleartext}); !errors.Is(err, ErrOptions) {
		t.Errorf("cleartext without a place for the text: %v", err)
	}
}

// TestNULBytesAreNotSignedInCleartext: GnuPG drops them at the ends of lines and finds the signature wrong.
func TestNULBytesAreNotSignedInCleartext(t *testing.T) {
	k := keyNamed(t, "ed25519")
	utf16 := "\xff\xfeh\x00i\x00\r\x00\n\x00"
	for name, document := range map[string]string{"UTF-16": utf16, "at the end": "text\x00", "inside": "te\x00xt\n"} {
		err := Sign(&bytes.Buffer{}, iotest.OneByteReader(strings.NewReader(document)), k.cert, k.signer, Options{Format: Cleartext})
		if !errors.Is(err, ErrText) {
			t.Errorf("%s: %v", name, err)
		}
		if err := Sign(&bytes.Buffer{}, strings.NewReader(document), k.cert, k.signer, Options{}); err != nil {
			t.Errorf("%s, detached: %v", name, err)
		}
	}
}

// TestNativeEd25519 signs with a certificate of algorithm 27, as other programs
// make them; the raw signature is not split into numbers there.
func TestNativeEd25519(t *testing.T) {
	entity, err := openpgp.NewEntity("Native", "", "native@example.com", &packet.Config{Algorithm: packet.PubKeyAlgoEd25519})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := entity.Serialize(&b); err != nil {
		t.Fatal(err)
	}
	cert, err := ParseCertificate(b.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	private := entity.PrivateKey.PrivateKey.(*ed25519.PrivateKey)
	signer := opaque{stded25519.NewKeyFromSeed(private.MarshalByteSecret())}
	var signature bytes.Buffer
	if err := Sign(&signature, strings.NewReader("document"), cert, signer, Options{}); err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(cert, signature.Bytes(), strings.NewReader("document")); err != nil {
		t.Error(err)
	}
}

func TestExpiredCertificate(t *testing.T) {
	k := keyNamed(t, "ed25519")
	armored, _, err := NewCertificate(k.signer, CertificateOptions{
		UserID: "Expired", Created: created, Expires: created.Add(time.Hour),
	})
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ParseCertificate([]byte(armored))
	if err != nil {
		t.Fatal(err)
	}
	if !cert.Expires().Equal(created.Add(time.Hour)) || !cert.Created().Equal(created) {
		t.Errorf("created %v, expires %v", cert.Created(), cert.Expires())
	}
	if _, err := New(cert, Options{}); !errors.Is(err, ErrExpired) {
		t.Errorf("New returned %v", err)
	}
	var signature bytes.Buffer
	err = Sign(&signature, strings.NewReader("document"), cert, k.signer, Options{Time: created.Add(time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	verification, err := Verify(cert, signature.Bytes(), strings.NewReader("document"))
	if !errors.Is(err, ErrExpired) || verification == nil || !verification.Time.Equal(created.Add(time.Minute)) {
		t.Errorf("Verify returned %+v, %v", verification, err)
	}
}
