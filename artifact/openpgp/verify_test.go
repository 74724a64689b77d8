package openpgp

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

func TestVerifyRefuses(t *testing.T) {
	k, other := keyNamed(t, "p256"), keyNamed(t, "ed25519")
	good := sign(t, k, "document", Options{})
	bare := sign(t, k, "document", Options{Format: Binary})
	byOther := sign(t, other, "document", Options{Format: Binary})
	bad := bytes.Clone(bare)
	bad[len(bad)-1] ^= 1
	for name, test := range map[string]struct {
		signature []byte
		want      error
	}{
		"nothing":              {nil, ErrMalformed},
		"text":                 {[]byte("no signature"), ErrMalformed},
		"too long":             {make([]byte, maxSignatureSize+1), ErrMalformed},
		"cut packet":           {bare[:len(bare)-4], ErrMalformed},
		"cut armour":           {good[:len(good)-20], ErrMalformed},
		"a certificate":        {[]byte(k.armored), ErrMalformed},
		"two blocks":           {append(bytes.Clone(good), good...), ErrMalformed},
		"too many":             {bytes.Repeat(bare, maxSignaturePackets+1), ErrMalformed},
		"another's":            {byOther, ErrOtherKey},
		"flipped":              {bad, ErrSignature},
		"a good and a bad one": {append(bytes.Clone(bare), bad...), ErrSignature},
		"from the future":      {sign(t, k, "document", Options{Time: time.Now().Add(time.Hour)}), ErrSignature},
		"of another document":  {sign(t, k, "documents", Options{}), ErrSignature},
	} {
		verification, err := Verify(k.cert, test.signature, strings.NewReader("document"))
		if !errors.Is(err, test.want) || verification != nil {
			t.Errorf("%s: %+v, %v; want %v", name, verification, err, test.want)
		}
	}
}

func TestVerifyPassesOverOthers(t *testing.T) {
	k, other := keyNamed(t, "p256"), keyNamed(t, "ed25519")
	both := append(sign(t, other, "document", Options{Format: Binary}), sign(t, k, "document", Options{Format: Binary})...)
	for _, cert := range []*Certificate{k.cert, other.cert} {
		verification, err := Verify(cert, both, strings.NewReader("document"))
		if err != nil || verification.Fingerprint != cert.Fingerprint() {
			t.Errorf("%+v, %v", verification, err)
		}
	}
}

func TestVerifyTellsReadErrors(t *testing.T) {
	k := keyNamed(t, "p256")
	broken := iotest.ErrReader(io.ErrNoProgress)
	if _, err := Verify(k.cert, sign(t, k, "x", Options{}), broken); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("Verify returned %v", err)
	}
	if _, err := VerifyCleartext(k.cert, broken, nil); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("VerifyCleartext returned %v", err)
	}
	if err := Sign(io.Discard, broken, k.cert, k.signer, Options{}); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("Sign returned %v", err)
	}
}

func TestCleartextRoundTrip(t *testing.T) {
	k := keyNamed(t, "p384")
	for name, document := range documents() {
		message := sign(t, k, document, Options{Format: Cleartext})
		for _, variant := range [][]byte{message, bytes.ReplaceAll(message, []byte("\n"), []byte(" \r\n"))} {
			var text bytes.Buffer
			if _, err := VerifyCleartext(k.cert, iotest.HalfReader(bytes.NewReader(variant)), &text); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if want := asSigned(document); text.String() != want {
				t.Errorf("%s: read %.200q, want %.200q", name, text.String(), want)
			}
		}
	}
}

// TestCleartextInPieces: where a Write ends must not matter.
func TestCleartextInPieces(t *testing.T) {
	k := keyNamed(t, "ed25519")
	opts := Options{Format: Cleartext, Time: created}
	for name, document := range documents() {
		if len(document) > 1<<20 {
			continue
		}
		var pieces bytes.Buffer
		err := Sign(&pieces, iotest.OneByteReader(strings.NewReader(document)), k.cert, k.signer, opts)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(pieces.Bytes(), sign(t, k, document, opts)) {
			t.Errorf("%s: signed in pieces it is another message", name)
		}
	}
}

func TestCleartextRefuses(t *testing.T) {
	k := keyNamed(t, "ed25519")
	message := string(sign(t, k, "first\n- second\nthird\n", Options{Format: Cleartext}))
	replace := func(old, new string) string {
		if !strings.Contains(message, old) {
			t.Fatalf("the message lacks %q", old)
		}
		return strings.Replace(message, old, new, 1)
	}
	for name, test := range map[string]struct {
		message string
		want    error
	}{
		"nothing":             {"", ErrMalformed},
		"text before":         {"trust me\n" + message, ErrMalformed},
		"text after":          {message + "trust me\n", ErrMalformed},
		"another message":     {message + message, ErrMalformed},
		"unknown header":      {replace("Hash: SHA256", "Comment: trust me"), ErrMalformed},
		"text as a header":    {replace("Hash: SHA256", "Hash: SHA256\ntrust me"), ErrMalformed},
		"weak hash":           {replace("Hash: SHA256", "Hash: SHA1"), ErrMalformed},
		"another hash":        {replace("Hash: SHA256", "Hash: SHA512"), ErrSignature},
		"endless header":      {replace("Hash: SHA256", strings.Repeat("Hash: SHA256\n", 40)), ErrMalformed},
		"no signature":        {message[:strings.Index(message, signatureBegin)], ErrMalformed},
		"cut signature":       {message[:len(message)-40], ErrMalformed},
		"unescaped dash":      {replace("- - second", "-second"), ErrMalformed},
		"changed text":        {replace("first", "fierst"), ErrSignature},
		"an added line":       {replace("third", "third\nfourth"), ErrSignature},
		"an added empty line": {replace("third\n", "third\n\n"), ErrSignature},
		"an added indent":     {replace("third", " third"), ErrSignature},
		"an endless line":     {replace("first", strings.Repeat("x", 1<<20)), ErrMalformed},
		"a detached one":      {string(sign(t, k, "first", Options{})), ErrMalformed},
	} {
		if _, err := VerifyCleartext(k.cert, strings.NewReader(test.message), nil); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
	if _, err := VerifyCleartext(k.cert, strings.NewReader(replace("Hash: SHA256\n", "")), nil); err != nil {
		t.Errorf("without a Hash header: %v", err)
	}
	if _, err := VerifyCleartext(k.cert, strings.NewReader(replace("Hash: SHA256", "Hash: SHA512, SHA256")), nil); err != nil {
		t.Errorf("with two hashes: %v", err)
	}
	if _, err := VerifyCleartext(keyNamed(t, "p256").cert, strings.NewReader(message), nil); !errors.Is(err, ErrOtherKey) {
		t.Errorf("with another certificate: %v", err)
	}
}

// TestCleartextRefusesBinarySignature: a signature over a file must not pass
// for one over a text.
func TestCleartextRefusesBinarySignature(t *testing.T) {
	k := keyNamed(t, "ed25519")
	message := cleartextBegin + "\nHash: SHA256\n\ntext\n" + string(sign(t, k, "text", Options{}))
	if _, err := VerifyCleartext(k.cert, strings.NewReader(message), nil); !errors.Is(err, ErrSignature) {
		t.Errorf("VerifyCleartext returned %v", err)
	}
}

// certificateWith is the key's certificate with packets added: at its end, or behind the primary key.
func certificateWith(t *testing.T, k testKey, before, signature []byte, atEnd bool) *Certificate {
	t.Helper()
	packets, err := packetsOf(publicKeyBlock, []byte(k.armored))
	if err != nil {
		t.Fatal(err)
	}
	place := len(packets)
	if !atEnd {
		place = 2 + int(packets[1]) // the primary key's packet, with a length of one octet
	}
	cert, err := ParseCertificate(slices.Insert(bytes.Clone(packets), place, append(bytes.Clone(before), signature...)...))
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// selfSign makes a signature by the key over what content writes.
func selfSign(t *testing.T, k testKey, kind packet.SignatureType, at time.Time, subpackets []byte, content func(io.Writer)) []byte {
	t.Helper()
	u, err := newUnsigned(k.cert.entity.PrimaryKey, kind, crypto.SHA256, at, subpackets)
	if err != nil {
		t.Fatal(err)
	}
	content(u.content)
	raw, err := k.signer.Sign(rand.Reader, u.digest(), u.signerHash())
	if err != nil {
		t.Fatal(err)
	}
	signature, err := u.complete(raw)
	if err != nil {
		t.Fatal(err)
	}
	return signature
}

// TestAdoptedKeysDoNotSign binds somebody else's key as a subkey, without the signature that only its owner can make.
func TestAdoptedKeysDoNotSign(t *testing.T) {
	victim, thief := keyNamed(t, "p256"), keyNamed(t, "ed25519")
	_, material, err := keyMaterial(victim.cert.public)
	if err != nil {
		t.Fatal(err)
	}
	body := binary.BigEndian.AppendUint32([]byte{4}, uint32(created.Unix()))
	body = append(append(body, byte(packet.PubKeyAlgoECDSA)), material...)
	const packetTypeSubkey = 14
	subkey := appendPacket(nil, packetTypeSubkey, body)
	for name, flags := range map[string][]byte{
		"without flags":  nil,
		"for encryption": appendSubpacket(nil, subpacketKeyFlags, []byte{packet.KeyFlagEncryptStorage}),
	} {
		binding := selfSign(t, thief, packet.SigTypeSubkeyBinding, created, flags, func(w io.Writer) {
			_ = thief.cert.entity.PrimaryKey.SerializeForHash(w)
			_ = victim.cert.entity.PrimaryKey.SerializeForHash(w)
		})
		cert := certificateWith(t, thief, subkey, binding, true)
		verification, err := Verify(cert, sign(t, victim, "document", Options{}), strings.NewReader("document"))
		if !errors.Is(err, ErrSignature) || verification != nil {
			t.Errorf("%s: %+v, %v", name, verification, err)
		}
		if _, err := VerifyCleartext(cert, bytes.NewReader(sign(t, victim, "document", Options{Format: Cleartext})), nil); !errors.Is(err, ErrSignature) {
			t.Errorf("%s, cleartext: %v", name, err)
		}
	}
}
