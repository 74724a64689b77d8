package token

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"math/big"
	"slices"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

func p256Private(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func p256Signature(t testing.TB, key *ecdsa.PrivateKey, digest []byte) []byte {
	t.Helper()
	signature, err := ecdsa.SignASN1(rand.Reader, key, digest)
	if err != nil {
		t.Fatal(err)
	}
	return signature
}

// encodeP256 writes any two numbers as a signature.
func encodeP256(r, s *big.Int) []byte {
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1BigInt(r)
		b.AddASN1BigInt(s)
	})
	return b.BytesOrPanic()
}

// TestPreparedKeysAgreeWithTheStandardLibrary signs with scalars that have every kind of digit, and damages what comes out.
func TestPreparedKeysAgreeWithTheStandardLibrary(t *testing.T) {
	for range 4 {
		key := p256Private(t)
		prepared := newP256Key(&key.PublicKey)
		for i := range 64 {
			digest := sha256.Sum256([]byte{byte(i)})
			signature := p256Signature(t, key, digest[:])
			if !prepared.verifies(digest[:], signature) {
				t.Fatalf("digest %x: %x is refused", digest, signature)
			}
			for j := range signature {
				bad := slices.Clone(signature)
				bad[j] ^= 1 << (i % 8)
				if prepared.verifies(digest[:], bad) {
					t.Fatalf("digest %x: %x is accepted", digest, bad)
				}
			}
			digest[i%32] ^= 1
			if prepared.verifies(digest[:], signature) {
				t.Fatal("another digest is accepted")
			}
		}
	}
}

// TestPreparedKeysTakeLongDigests takes the leftmost bits of them, as crypto/ecdsa does.
func TestPreparedKeysTakeLongDigests(t *testing.T) {
	key := p256Private(t)
	prepared := newP256Key(&key.PublicKey)
	for _, hash := range []crypto.Hash{crypto.SHA384, crypto.SHA512} {
		digest := make([]byte, hash.Size())
		rand.Read(digest)
		if !prepared.verifies(digest, p256Signature(t, key, digest)) {
			t.Errorf("%v is refused", hash)
		}
	}
	if prepared.verifies(make([]byte, 20), p256Signature(t, key, make([]byte, 20))) {
		t.Error("a digest of 20 bytes is accepted")
	}
}

// TestPreparedKeysWithEdgesOfTheirTables multiplies by numbers at which digits carry.
func TestPreparedKeysWithEdgesOfTheirTables(t *testing.T) {
	key := p256Private(t)
	order := elliptic.P256().Params().N
	prepared := newP256Key(&key.PublicKey)
	for _, scalar := range []*big.Int{
		big.NewInt(1), big.NewInt(511), big.NewInt(512), big.NewInt(513), big.NewInt(1023), big.NewInt(1024), big.NewInt(512<<10 + 512), big.NewInt(513<<10 + 513),
		new(big.Int).Sub(order, big.NewInt(1)), new(big.Int).Rsh(order, 1), new(big.Int).Lsh(big.NewInt(0x81), 240),
	} {
		// A signature of the digest e with r and s = r/u2 has R = (e/s)·G + u2·Q: choose u2, and e = 0 or so that e/s is a number of interest.
		for _, u1 := range []*big.Int{big.NewInt(0), big.NewInt(1), scalar, new(big.Int).Sub(order, scalar)} {
			r, s, digest := forgeable(t, key, u1, scalar)
			if r == nil {
				continue
			}
			signature := encodeP256(r, s)
			if got, want := prepared.verifies(digest, signature), ecdsa.VerifyASN1(&key.PublicKey, digest, signature); got != want {
				t.Errorf("u1 %v, u2 %v: %v, and crypto/ecdsa says %v", u1, scalar, got, want)
			}
		}
	}
}

// forgeable makes the signature for which a verifier computes u1·G + u2·Q: whoever may choose the digest can. Nil where that is no point.
func forgeable(t *testing.T, key *ecdsa.PrivateKey, u1, u2 *big.Int) (r, s *big.Int, digest []byte) {
	order := elliptic.P256().Params().N
	private, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	scalar := new(big.Int).Mul(u2, new(big.Int).SetBytes(private))
	scalar.Add(scalar, u1).Mod(scalar, order)
	point, err := ecdh.P256().NewPrivateKey(scalar.FillBytes(make([]byte, p256Size)))
	if err != nil {
		return nil, nil, nil // a scalar of 0
	}
	r = new(big.Int).SetBytes(point.PublicKey().Bytes()[1 : 1+p256Size])
	r.Mod(r, order)
	s = new(big.Int).ModInverse(u2, order)
	s.Mul(s, r).Mod(s, order)
	e := new(big.Int).Mul(u1, s)
	return r, s, e.Mod(e, order).FillBytes(make([]byte, 32))
}

// TestPreparedKeysWhoseTablesMeet have the generator's own small multiples, so that sums double and vanish on the way.
func TestPreparedKeysWhoseTablesMeet(t *testing.T) {
	order := elliptic.P256().Params().N
	negative := func(n int64) *big.Int { return new(big.Int).Sub(order, big.NewInt(n)) }
	scalars := []*big.Int{big.NewInt(1), big.NewInt(2), big.NewInt(512), big.NewInt(513), big.NewInt(1024), big.NewInt(1 << 20), negative(1), negative(2), negative(1024)}
	for _, private := range []*big.Int{big.NewInt(1), big.NewInt(2), big.NewInt(1024), negative(1), negative(2)} {
		key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), private.FillBytes(make([]byte, p256Size)))
		if err != nil {
			t.Fatal(err)
		}
		prepared := newP256Key(&key.PublicKey)
		for _, u1 := range scalars {
			for _, u2 := range scalars {
				r, s, digest := forgeable(t, key, u1, u2)
				if r == nil { // the sum vanishes, and no number is its x-coordinate
					r, s = big.NewInt(7), new(big.Int).Mul(big.NewInt(7), new(big.Int).ModInverse(u2, order))
					digest = new(big.Int).Mod(new(big.Int).Mul(u1, s.Mod(s, order)), order).FillBytes(make([]byte, p256Size))
				}
				signature := encodeP256(r, s)
				if got, want := prepared.verifies(digest, signature), ecdsa.VerifyASN1(&key.PublicKey, digest, signature); got != want {
					t.Errorf("key %v, u1 %v, u2 %v: %v, and crypto/ecdsa says %v", private, u1, u2, got, want)
				}
			}
		}
	}
}

func TestPreparedKeysRefuseWhatIsNoSignature(t *testing.T) {
	key := p256Private(t)
	prepared := newP256Key(&key.PublicKey)
	order := elliptic.P256().Params().N
	digest := sha256.Sum256(nil)
	good := p256Signature(t, key, digest[:])
	one, zero := big.NewInt(1), new(big.Int)
	for name, signature := range map[string][]byte{
		"nothing":         nil,
		"r of 0":          encodeP256(zero, one),
		"s of 0":          encodeP256(one, zero),
		"r of the order":  encodeP256(order, one),
		"s of the order":  encodeP256(one, order),
		"a negative r":    encodeP256(big.NewInt(-1), one),
		"a huge r":        encodeP256(new(big.Int).Lsh(one, 300), one),
		"bytes behind":    append(slices.Clone(good), 0),
		"a cut one":       good[:len(good)-1],
		"no sequence":     good[2:],
		"a long-form":     append([]byte{0x30, 0x81}, good[1:]...),
		"leading zeros":   {0x30, 7, 2, 2, 0, 1, 2, 1, 1},
		"three numbers":   {0x30, 9, 2, 1, 1, 2, 1, 1, 2, 1, 1},
		"a single number": {0x30, 3, 2, 1, 1},
	} {
		if prepared.verifies(digest[:], signature) {
			t.Errorf("%s is accepted", name)
		}
	}
	other, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if newP256Key(&other.PublicKey) != nil {
		t.Error("a key on another curve is prepared")
	}
}

// TestVerifierPreparesItself for a key that signs much, and accepts no more then than before.
func TestVerifierPreparesItself(t *testing.T) {
	key := p256Private(t)
	v, err := NewVerifier(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(nil)
	signature := p256Signature(t, key, digest[:])
	for range worthwhile {
		if err := v.Verify(digest[:], crypto.SHA256, signature); err != nil {
			t.Fatal(err)
		}
	}
	for patience := time.Now().Add(10 * time.Second); v.prepared.Load() == nil; time.Sleep(time.Millisecond) {
		if time.Now().After(patience) {
			t.Fatal("it is not prepared")
		}
	}
	if err := v.Verify(digest[:], crypto.SHA256, signature); err != nil {
		t.Error(err)
	}
	signature[10] ^= 1
	if err := v.Verify(digest[:], crypto.SHA256, signature); err == nil {
		t.Error("a damaged signature is accepted")
	}
}

// TestVerifiersArePreparedUpToABound and verify beyond it as before.
func TestVerifiersArePreparedUpToABound(t *testing.T) {
	preparing.Add(maxPrepared)
	defer preparing.Add(-maxPrepared)
	key := p256Private(t)
	v, err := NewVerifier(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	before := preparing.Load()
	v.prepare()
	if v.prepared.Load() != nil || preparing.Load() != before {
		t.Error("it is prepared all the same")
	}
	digest := sha256.Sum256(nil)
	if err := v.Verify(digest[:], crypto.SHA256, p256Signature(t, key, digest[:])); err != nil {
		t.Error(err)
	}
}

func FuzzP256(f *testing.F) {
	scalar := sha256.Sum256([]byte("the same key in all of the fuzzer's processes"))
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), scalar[:])
	if err != nil {
		f.Fatal(err)
	}
	prepared := newP256Key(&key.PublicKey)
	digest := sha256.Sum256(nil)
	f.Add(digest[:], p256Signature(f, key, digest[:]))
	f.Add(digest[:], encodeP256(big.NewInt(1), big.NewInt(1)))
	f.Fuzz(func(t *testing.T, digest, signature []byte) {
		if prepared.verifies(digest, signature) && !ecdsa.VerifyASN1(&key.PublicKey, digest, signature) {
			t.Errorf("crypto/ecdsa refuses %x for %x", signature, digest)
		}
	})
}

func BenchmarkVerifyP256(b *testing.B) {
	key := p256Private(b)
	digest := sha256.Sum256(nil)
	signature := p256Signature(b, key, digest[:])
	b.Run("crypto/ecdsa", func(b *testing.B) {
		for b.Loop() {
			ecdsa.VerifyASN1(&key.PublicKey, digest[:], signature)
		}
	})
	prepared := newP256Key(&key.PublicKey)
	b.Run("prepared", func(b *testing.B) {
		for b.Loop() {
			prepared.verifies(digest[:], signature)
		}
	})
	b.Run("preparing", func(b *testing.B) {
		for b.Loop() {
			newP256Key(&key.PublicKey)
		}
	})
}
