package token

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"math/big"
)

// fastBits is the largest modulus for which crypto/rsa has assembly for the public operation. Beyond, math/big takes a third
// of its time, and is as good here: what it raises to a power is no secret.
const fastBits = 2048

// verifiesPlain checks an RSA PKCS #1 v1.5 signature (RFC 8017, section 8.2.2): the signature, raised to the public
// exponent, has to be the one encoding that there is of this digest. Nothing of it is parsed.
func verifiesPlain(key *rsa.PublicKey, hash crypto.Hash, digest, signature []byte) bool {
	if key.N.BitLen() <= fastBits {
		return rsa.VerifyPKCS1v15(key, hash, digest, signature) == nil
	}
	want, ok := encodePlain(hash, digest, key.Size())
	if !ok || len(signature) != len(want) {
		return false
	}
	s := new(big.Int).SetBytes(signature)
	if s.Cmp(key.N) >= 0 {
		return false
	}
	s.Exp(s, big.NewInt(int64(key.E)), key.N)
	return bytes.Equal(s.FillBytes(make([]byte, len(want))), want)
}

// hashNumbers are the last arcs of the hashes' object identifiers below 2.16.840.1.101.3.4.2 (NIST's register).
var hashNumbers = map[crypto.Hash]byte{
	crypto.SHA256: 1, crypto.SHA384: 2, crypto.SHA512: 3, crypto.SHA3_256: 8, crypto.SHA3_512: 10,
}

// encodePlain is EMSA-PKCS1-v1_5 (RFC 8017, section 9.2) of a digest.
func encodePlain(hash crypto.Hash, digest []byte, size int) ([]byte, bool) {
	number, known := hashNumbers[hash]
	if !known || len(digest) != hash.Size() {
		return nil, false
	}
	n := byte(len(digest))
	info := append([]byte{0x30, 17 + n, 0x30, 13, 0x06, 9, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, number, 0x05, 0, 0x04, n}, digest...)
	padding := size - 3 - len(info)
	if padding < 8 {
		return nil, false
	}
	encoded := append([]byte{0, 1}, bytes.Repeat([]byte{0xff}, padding)...)
	return append(append(encoded, 0), info...), true
}
