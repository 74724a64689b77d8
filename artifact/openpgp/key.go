package openpgp

import (
	"bytes"
	"crypto"
	stdecdsa "crypto/ecdsa"
	stded25519 "crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/asn1"
	"encoding/binary"
	"fmt"
	"math"
	"math/big"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/ecdsa"
	"github.com/ProtonMail/go-crypto/openpgp/ed25519"
	"github.com/ProtonMail/go-crypto/openpgp/eddsa"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// Limits of RSA keys, in bits.
const (
	minRSABits = 2048
	maxRSABits = 4096
)

const packetTypePublicKey = 6

// Curve OIDs without their tag (RFC 9580, section 9.2), after a length octet.
var (
	oidP256    = []byte{8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07}
	oidP384    = []byte{5, 0x2b, 0x81, 0x04, 0x00, 0x22}
	oidP521    = []byte{5, 0x2b, 0x81, 0x04, 0x00, 0x23}
	oidEd25519 = []byte{9, 0x2b, 0x06, 0x01, 0x04, 0x01, 0xda, 0x47, 0x0f, 0x01}
)

// curves are the ones that ECDSA keys may have, with the hash each needs.
var curves = []struct {
	curve elliptic.Curve
	oid   []byte
	hash  crypto.Hash
}{
	{elliptic.P256(), oidP256, crypto.SHA256},
	{elliptic.P384(), oidP384, crypto.SHA384},
	{elliptic.P521(), oidP521, crypto.SHA512},
}

// newKeyPacket makes the version 4 public key packet of a key (RFC 9580,
// sections 5.5.2 and 5.5.5). The same key and time give the same fingerprint.
func newKeyPacket(public crypto.PublicKey, created time.Time) (*packet.PublicKey, error) {
	seconds := created.Unix()
	if seconds < 0 || seconds > math.MaxUint32 {
		return nil, fmt.Errorf("%w: OpenPGP has no time %s", ErrOptions, created.UTC().Format(time.RFC3339))
	}
	algorithm, material, err := keyMaterial(public)
	if err != nil {
		return nil, err
	}
	body := binary.BigEndian.AppendUint32([]byte{4}, uint32(seconds))
	body = append(append(body, byte(algorithm)), material...)
	parsed, err := packet.Read(bytes.NewReader(appendPacket(nil, packetTypePublicKey, body)))
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrUnsupported, err)
	}
	return parsed.(*packet.PublicKey), nil
}

func keyMaterial(public crypto.PublicKey) (packet.PublicKeyAlgorithm, []byte, error) {
	if err := checkPublic(public); err != nil {
		return 0, nil, err
	}
	switch key := public.(type) {
	case *rsa.PublicKey:
		material := appendMPI(nil, key.N.Bytes())
		return packet.PubKeyAlgoRSA, appendMPI(material, big.NewInt(int64(key.E)).Bytes()), nil
	case *stdecdsa.PublicKey:
		point, err := key.Bytes()
		if err != nil {
			return 0, nil, fmt.Errorf("%w: %v", ErrUnsupported, err)
		}
		for _, c := range curves {
			if c.curve == key.Curve {
				return packet.PubKeyAlgoECDSA, appendMPI(bytes.Clone(c.oid), point), nil
			}
		}
	case stded25519.PublicKey:
		point := append([]byte{0x40}, key...) // native point, RFC 9580, section 11.2
		return packet.PubKeyAlgoEdDSA, appendMPI(bytes.Clone(oidEd25519), point), nil
	}
	return 0, nil, fmt.Errorf("%w: key of type %T", ErrUnsupported, public)
}

// checkPublic says whether signatures of this key are worth making and checking.
func checkPublic(public crypto.PublicKey) error {
	switch key := public.(type) {
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < minRSABits || bits > maxRSABits {
			return fmt.Errorf("%w: RSA key of %d bits; use %d to %d", ErrUnsupported, bits, minRSABits, maxRSABits)
		}
		return nil
	case *stdecdsa.PublicKey:
		for _, c := range curves {
			if c.curve == key.Curve {
				return nil
			}
		}
		return fmt.Errorf("%w: ECDSA on %s; use P-256, P-384 or P-521", ErrUnsupported, key.Curve.Params().Name)
	case stded25519.PublicKey:
		if len(key) != stded25519.PublicKeySize {
			return fmt.Errorf("%w: Ed25519 key of %d bytes", ErrUnsupported, len(key))
		}
		return nil
	default:
		return fmt.Errorf("%w: OpenPGP keys are RSA, ECDSA or Ed25519 here", ErrUnsupported)
	}
}

// publicOf returns a key packet's key as the standard library has it.
func publicOf(key *packet.PublicKey) (crypto.PublicKey, error) {
	var public crypto.PublicKey
	switch k := key.PublicKey.(type) {
	case *rsa.PublicKey:
		public = k
	case *ecdsa.PublicKey:
		p, err := ecdsaPublic(k)
		if err != nil {
			return nil, err
		}
		public = p
	case *eddsa.PublicKey:
		if k.GetCurve().GetCurveName() != "ed25519" {
			return nil, fmt.Errorf("%w: EdDSA on %s", ErrUnsupported, k.GetCurve().GetCurveName())
		}
		public = stded25519.PublicKey(bytes.Clone(k.X))
	case *ed25519.PublicKey:
		public = stded25519.PublicKey(bytes.Clone(k.Point))
	default:
		return nil, fmt.Errorf("%w: public key algorithm %d", ErrUnsupported, key.PubKeyAlgo)
	}
	return public, checkPublic(public)
}

func ecdsaPublic(key *ecdsa.PublicKey) (*stdecdsa.PublicKey, error) {
	for _, c := range curves {
		if key.GetCurve().GetCurveName() != c.curve.Params().Name {
			continue
		}
		public, err := stdecdsa.ParseUncompressedPublicKey(c.curve, key.MarshalPoint())
		if err != nil {
			return nil, fmt.Errorf("%w: %v", ErrCertificate, err)
		}
		return public, nil
	}
	return nil, fmt.Errorf("%w: ECDSA on %s", ErrUnsupported, key.GetCurve().GetCurveName())
}

// chooseHash returns the hash to sign with, which is asked for or the default.
func chooseHash(public crypto.PublicKey, asked crypto.Hash) (crypto.Hash, error) {
	needed := crypto.SHA256
	if key, ok := public.(*stdecdsa.PublicKey); ok {
		for _, c := range curves {
			if c.curve == key.Curve {
				needed = c.hash
			}
		}
	}
	if asked == 0 {
		return needed, nil
	}
	if _, ok := hashIDs[asked]; !ok {
		return 0, fmt.Errorf("%w: hash %v; use SHA-256, SHA-384 or SHA-512", ErrOptions, asked)
	}
	if asked.Size() < needed.Size() {
		return 0, fmt.Errorf("%w: hash %v is weaker than the key; use %v", ErrOptions, asked, needed)
	}
	return asked, nil
}

func isEdDSA(key *packet.PublicKey) bool {
	return key.PubKeyAlgo == packet.PubKeyAlgoEdDSA || key.PubKeyAlgo == packet.PubKeyAlgoEd25519
}

// signatureMaterial encodes a raw signature for its packet (RFC 9580, section
// 5.2.3.1 and following).
func signatureMaterial(key *packet.PublicKey, raw []byte) ([]byte, error) {
	switch key.PubKeyAlgo {
	case packet.PubKeyAlgoRSA, packet.PubKeyAlgoRSASignOnly:
		if size := key.PublicKey.(*rsa.PublicKey).Size(); len(raw) != size {
			return nil, fmt.Errorf("%w: %d bytes where the RSA key makes %d", ErrSignature, len(raw), size)
		}
		return appendMPI(nil, raw), nil
	case packet.PubKeyAlgoECDSA:
		return ecdsaMaterial(raw)
	case packet.PubKeyAlgoEdDSA, packet.PubKeyAlgoEd25519:
		if len(raw) != stded25519.SignatureSize {
			return nil, fmt.Errorf("%w: %d bytes where Ed25519 makes %d", ErrSignature, len(raw), stded25519.SignatureSize)
		}
		if key.PubKeyAlgo == packet.PubKeyAlgoEd25519 {
			return raw, nil
		}
		return appendMPI(appendMPI(nil, raw[:32]), raw[32:]), nil
	default:
		return nil, fmt.Errorf("%w: public key algorithm %d", ErrUnsupported, key.PubKeyAlgo)
	}
}

func ecdsaMaterial(raw []byte) ([]byte, error) {
	var pair struct{ R, S *big.Int }
	rest, err := asn1.Unmarshal(raw, &pair)
	if err != nil || len(rest) > 0 || pair.R.Sign() <= 0 || pair.S.Sign() <= 0 {
		return nil, fmt.Errorf("%w: not a DER sequence of r and s", ErrSignature)
	}
	return appendMPI(appendMPI(nil, pair.R.Bytes()), pair.S.Bytes()), nil
}

// samePublic compares two public keys of the types that checkPublic takes.
func samePublic(a, b crypto.PublicKey) bool {
	key, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && key.Equal(b)
}

// fingerprintOf writes a fingerprint as upper-case hex without spaces.
func fingerprintOf(key *packet.PublicKey) string {
	return fmt.Sprintf("%X", key.Fingerprint)
}
