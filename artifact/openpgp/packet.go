package openpgp

import (
	"bytes"
	"crypto"
	_ "crypto/sha256" // registers the hashes that signatures use
	_ "crypto/sha3"
	_ "crypto/sha512"
	"encoding/binary"
	"fmt"
	"hash"
	"math"
	"math/bits"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// Signature subpacket types (RFC 9580, section 5.2.3.7).
const (
	subpacketCreationTime      = 2
	subpacketKeyExpirationTime = 9
	subpacketIssuerKeyID       = 16
	subpacketPreferredHashes   = 21
	subpacketKeyServerPrefs    = 23
	subpacketPrimaryUserID     = 25
	subpacketKeyFlags          = 27
	subpacketIssuer            = 33
)

// newFormatHeader marks a packet header in the OpenPGP format (RFC 9580,
// section 4.2), to be combined with the packet type.
const newFormatHeader = 0xc0

const packetTypeSignature = 2

// hashIDs are the hashes that this package signs with (RFC 9580, section 9.5).
var hashIDs = map[crypto.Hash]byte{crypto.SHA256: 8, crypto.SHA384: 9, crypto.SHA512: 10}

// unsigned is a version 4 signature packet before its signature is known
// (RFC 9580, sections 5.2.3 and 5.2.4).
type unsigned struct {
	key     *packet.PublicKey
	hash    crypto.Hash
	content hash.Hash // what is signed, without the packet's own hashed part
	hashed  []byte    // the packet from its version to its hashed subpackets
}

// newUnsigned prepares a signature of this type; extra are further hashed
// subpackets. What is signed is then written to content.
func newUnsigned(key *packet.PublicKey, kind packet.SignatureType, hash crypto.Hash, at time.Time, extra []byte) (*unsigned, error) {
	seconds := at.Unix()
	if seconds < 0 || seconds > math.MaxUint32 {
		return nil, fmt.Errorf("%w: OpenPGP has no time %s", ErrOptions, at.UTC().Format(time.RFC3339))
	}
	subpackets := appendSubpacket(nil, subpacketIssuer, append([]byte{byte(key.Version)}, key.Fingerprint...))
	subpackets = appendSubpacket(subpackets, subpacketCreationTime, binary.BigEndian.AppendUint32(nil, uint32(seconds)))
	subpackets = append(subpackets, extra...)

	hashed := []byte{4, byte(kind), byte(key.PubKeyAlgo), hashIDs[hash]}
	hashed = binary.BigEndian.AppendUint16(hashed, uint16(len(subpackets)))
	hashed = append(hashed, subpackets...)
	return &unsigned{key: key, hash: hash, content: hash.New(), hashed: hashed}, nil
}

// signerHash is what crypto.SignerOpts must say for this key.
func (u *unsigned) signerHash() crypto.Hash {
	if isEdDSA(u.key) {
		return 0
	}
	return u.hash
}

func (u *unsigned) digest() []byte {
	state := u.contentSoFar()
	state.Write(u.hashed)
	state.Write([]byte{4, 0xff})
	state.Write(binary.BigEndian.AppendUint32(nil, uint32(len(u.hashed))))
	return state.Sum(nil)
}

// contentSoFar copies the hash, so that it can be finished more than once.
func (u *unsigned) contentSoFar() hash.Hash {
	// Every hash of the standard library is a Cloner, and its Clone cannot fail.
	state, _ := u.content.(hash.Cloner).Clone()
	return state
}

// complete returns the packet with its raw signature, after verifying it.
func (u *unsigned) complete(raw []byte) ([]byte, error) {
	material, err := signatureMaterial(u.key, raw)
	if err != nil {
		return nil, err
	}
	unhashed := appendSubpacket(nil, subpacketIssuerKeyID, binary.BigEndian.AppendUint64(nil, u.key.KeyId))
	body := binary.BigEndian.AppendUint16(bytes.Clone(u.hashed), uint16(len(unhashed)))
	body = append(body, unhashed...)
	body = append(body, u.digest()[:2]...)
	body = append(body, material...)
	whole := appendPacket(nil, packetTypeSignature, body)

	parsed, err := packet.Read(bytes.NewReader(whole))
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrSignature, err)
	}
	if err := u.key.VerifySignature(u.contentSoFar(), parsed.(*packet.Signature)); err != nil {
		return nil, fmt.Errorf("%w: it does not fit key %s", ErrSignature, fingerprintOf(u.key))
	}
	return whole, nil
}

// appendSubpacket appends a subpacket that is not critical. All that this
// package writes have bodies below 191 bytes, so one length octet is enough
// (RFC 9580, section 5.2.3.7).
func appendSubpacket(b []byte, kind byte, body []byte) []byte {
	b = append(b, byte(len(body)+1), kind)
	return append(b, body...)
}

// appendPacket appends a packet with its header (RFC 9580, section 4.2.1).
func appendPacket(b []byte, kind byte, body []byte) []byte {
	b = append(b, newFormatHeader|kind)
	switch n := len(body); {
	case n < 192:
		b = append(b, byte(n))
	case n < 8384:
		b = append(b, byte((n-192)>>8)+192, byte(n-192))
	default:
		b = binary.BigEndian.AppendUint32(append(b, 0xff), uint32(n))
	}
	return append(b, body...)
}

// appendMPI appends a big-endian number as a multiprecision integer, which
// has no leading zeros (RFC 9580, section 3.2).
func appendMPI(b, number []byte) []byte {
	number = bytes.TrimLeft(number, "\x00")
	length := 0
	if len(number) > 0 {
		length = 8*(len(number)-1) + bits.Len8(number[0])
	}
	b = binary.BigEndian.AppendUint16(b, uint16(length))
	return append(b, number...)
}
