package openpgp

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// maxUserIDLength is in bytes. OpenPGP allows more; key servers and listings do not.
const maxUserIDLength = 255

const packetTypeUserID = 13

// CertificateOptions says what a new certificate claims.
type CertificateOptions struct {
	// UserID is the owner as others will read it, by convention "Name <mail>":
	// UTF-8 without control characters, at most 255 bytes.
	UserID string
	// Created is the key's creation time in whole seconds, which is required:
	// the fingerprint depends on it, so it must be kept with the key.
	Created time.Time
	// Expires is when the key stops being valid, in whole seconds. The zero
	// time means never.
	Expires time.Time
}

// NewCertificate makes the certificate of the signer's key, signed by that key
// itself: a version 4 primary key that certifies and signs, and one user ID. It
// returns the armoured certificate and its fingerprint (40 upper-case hex
// digits), which follows from the public key and Created alone. Options that
// make no sense are ErrOptions, keys that OpenPGP cannot hold ErrUnsupported;
// the signer's own errors are passed on.
func NewCertificate(signer crypto.Signer, opts CertificateOptions) (armored, fingerprint string, err error) {
	if err := opts.check(); err != nil {
		return "", "", err
	}
	key, err := newKeyPacket(signer.Public(), opts.Created)
	if err != nil {
		return "", "", err
	}
	signature, err := certify(signer, key, opts)
	if err != nil {
		return "", "", err
	}
	var packets bytes.Buffer
	if err := key.Serialize(&packets); err != nil {
		return "", "", fmt.Errorf("%w: %v", ErrUnsupported, err)
	}
	packets.Write(appendPacket(nil, packetTypeUserID, []byte(opts.UserID)))
	packets.Write(signature)

	block := armorBlock(publicKeyBlock, packets.Bytes())
	if _, err := ParseCertificate(block); err != nil {
		return "", "", err
	}
	return string(block), fingerprintOf(key), nil
}

// certify makes the positive certification of the user ID (RFC 9580, section 5.2.1.7).
func certify(signer crypto.Signer, key *packet.PublicKey, opts CertificateOptions) ([]byte, error) {
	hash, err := chooseHash(signer.Public(), 0)
	if err != nil {
		return nil, err
	}
	u, err := newUnsigned(key, packet.SigTypePositiveCert, hash, opts.Created, opts.subpackets())
	if err != nil {
		return nil, err
	}
	if err := key.SerializeForHash(u.content); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrUnsupported, err)
	}
	u.content.Write(binary.BigEndian.AppendUint32([]byte{0xb4}, uint32(len(opts.UserID))))
	u.content.Write([]byte(opts.UserID))

	raw, err := signer.Sign(rand.Reader, u.digest(), u.signerHash())
	if err != nil {
		return nil, fmt.Errorf("openpgp: signing the certificate: %w", err)
	}
	return u.complete(raw)
}

// subpackets are what the self-signature says of the key besides issuer and time.
func (o CertificateOptions) subpackets() []byte {
	b := appendSubpacket(nil, subpacketKeyFlags, []byte{packet.KeyFlagCertify | packet.KeyFlagSign})
	if !o.Expires.IsZero() {
		lifetime := uint32(o.Expires.Unix() - o.Created.Unix())
		b = appendSubpacket(b, subpacketKeyExpirationTime, binary.BigEndian.AppendUint32(nil, lifetime))
	}
	b = appendSubpacket(b, subpacketPreferredHashes,
		[]byte{hashIDs[crypto.SHA512], hashIDs[crypto.SHA384], hashIDs[crypto.SHA256]})
	b = appendSubpacket(b, subpacketKeyServerPrefs, []byte{0x80}) // only the owner may change it
	return appendSubpacket(b, subpacketPrimaryUserID, []byte{1})
}

// CheckUserID fails with ErrOptions for what NewCertificate takes for no user ID.
func CheckUserID(id string) error {
	switch {
	case id == "" || id != strings.TrimSpace(id) || len(id) > maxUserIDLength:
		return fmt.Errorf("%w: a user ID has 1 to %d bytes and no space around it", ErrOptions, maxUserIDLength)
	case !utf8.ValidString(id) || strings.ContainsFunc(id, unprintable):
		return fmt.Errorf("%w: a user ID is UTF-8 without control characters", ErrOptions)
	}
	return nil
}

func (o CertificateOptions) check() error {
	if err := CheckUserID(o.UserID); err != nil {
		return err
	}
	switch {
	case o.Created.IsZero():
		return fmt.Errorf("%w: a certificate needs its key's creation time", ErrOptions)
	case o.Expires.IsZero():
		return nil
	case o.Expires.Unix() <= o.Created.Unix() || o.Expires.Unix()-o.Created.Unix() > math.MaxUint32:
		return fmt.Errorf("%w: a key expires after it was made, and within 136 years", ErrOptions)
	}
	return nil
}

// unprintable tells characters that could disguise a user ID on a screen:
// controls, and format characters such as those that turn the writing direction.
func unprintable(r rune) bool {
	return unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp)
}
