package token

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"sync"

	"github.com/consensys/gnark-crypto/ecc/secp256r1"
	"github.com/consensys/gnark-crypto/ecc/secp256r1/fp"
	"github.com/consensys/gnark-crypto/ecc/secp256r1/fr"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// p256Size is the bytes of a scalar and of a coordinate.
const p256Size = 32

// How multiples take a scalar apart: into digits from -511 to 512, the least significant first.
const (
	window       = 10                             // bits
	windows      = (8*p256Size + window) / window // with one bit more, for the carry
	largestDigit = 1 << (window - 1)
)

// multiples of one point of P-256: at [i][j] it stands (j+1)·1024^i times. A product with the point is then a sum of 26 of them,
// without doublings. They take 850 KB, and some ten milliseconds to make. Nothing here takes the same time for all scalars:
// those of a verification are no secret.
type multiples [windows][largestDigit]secp256r1.G1Affine

func newMultiples(point secp256r1.G1Affine) *multiples {
	m := new(multiples)
	var base secp256r1.G1Jac
	base.FromAffine(&point)
	row := make([]secp256r1.G1Jac, largestDigit)
	for i := range m {
		row[0] = base
		for j := 1; j < len(row); j++ {
			row[j] = row[j-1]
			row[j].AddAssign(&base)
		}
		copy(m[i][:], secp256r1.BatchJacobianToAffineG1(row))
		base = row[len(row)-1]
		base.DoubleAssign()
	}
	return m
}

// add adds a product with the point to sum.
func (m *multiples) add(sum *secp256r1.G1Jac, scalar *fr.Element) {
	bits := scalar.Bits()
	carry := 0
	for i := range m {
		digit := windowOf(&bits, i) + carry
		carry = 0
		if digit > largestDigit {
			digit, carry = digit-2*largestDigit, 1
		}
		switch {
		case digit > 0:
			sum.AddMixed(&m[i][digit-1])
		case digit < 0:
			var negative secp256r1.G1Affine
			negative.Neg(&m[i][-digit-1])
			sum.AddMixed(&negative)
		}
	}
}

// windowOf returns ten bits of a scalar whose words begin with the least significant one.
func windowOf(words *[4]uint64, i int) int {
	word, shift := i*window/64, i*window%64
	bits := words[word] >> shift
	if shift > 64-window && word+1 < len(words) {
		bits |= words[word+1] << (64 - shift)
	}
	return int(bits & (2*largestDigit - 1))
}

// generatorMultiples are the same for all keys.
var generatorMultiples = sync.OnceValue(func() *multiples {
	_, generator := secp256r1.Generators()
	return newMultiples(generator)
})

// p256Key verifies signatures of one key in a third of the time that crypto/ecdsa takes, which knows multiples of the
// generator only.
type p256Key struct{ generator, public *multiples }

// newP256Key returns nil for a key on another curve, or on none.
func newP256Key(key *ecdsa.PublicKey) *p256Key {
	if key.Curve != elliptic.P256() {
		return nil
	}
	encoded, err := key.Bytes() // uncompressed (SEC 1, section 2.3.3), checked to be on the curve
	if err != nil {
		return nil
	}
	var point secp256r1.G1Affine
	point.X.SetBytes(encoded[1 : 1+p256Size])
	point.Y.SetBytes(encoded[1+p256Size:])
	return &p256Key{generator: generatorMultiples(), public: newMultiples(point)}
}

// verifies tells whether a signature is good (FIPS 186-5, section 6.4.2) for a digest of at least 32 bytes. It may be good all the
// same where this says no: one in 2^128 has an x-coordinate above the curve's order.
func (k *p256Key) verifies(digest, signature []byte) bool {
	r, s, ok := parseP256(signature)
	if !ok || len(digest) < p256Size {
		return false
	}
	var e, inverse, u1, u2 fr.Element
	e.SetBytes(digest[:p256Size])
	inverse.Inverse(&s)
	u1.Mul(&e, &inverse)
	u2.Mul(&r, &inverse)
	var sum secp256r1.G1Jac
	sum.X.SetOne()
	sum.Y.SetOne()
	k.generator.add(&sum, &u1)
	k.public.add(&sum, &u2)
	if sum.Z.IsZero() {
		return false
	}
	// The x-coordinate is X/Z²: one product instead of a division.
	var x, zz fp.Element
	bytes := r.Bytes()
	x.SetBytes(bytes[:])
	zz.Square(&sum.Z)
	x.Mul(&x, &zz)
	return x.Equal(&sum.X)
}

// parseP256 takes an Ecdsa-Sig-Value (RFC 3279, section 2.2.3) apart, in DER and with both numbers between 0 and the curve's order.
func parseP256(signature []byte) (r, s fr.Element, ok bool) {
	var inner cryptobyte.String
	input := cryptobyte.String(signature)
	if !input.ReadASN1(&inner, asn1.SEQUENCE) || !input.Empty() {
		return r, s, false
	}
	ok = readScalar(&inner, &r) && readScalar(&inner, &s) && inner.Empty()
	return r, s, ok
}

func readScalar(from *cryptobyte.String, to *fr.Element) bool {
	var number []byte // non-negative, without leading zeros
	if !from.ReadASN1Integer(&number) || len(number) > p256Size {
		return false
	}
	var padded [p256Size]byte
	copy(padded[p256Size-len(number):], number)
	return to.SetBytesCanonical(padded[:]) == nil && !to.IsZero()
}
