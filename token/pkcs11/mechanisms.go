package pkcs11

import (
	"fmt"

	p11 "github.com/miekg/pkcs11"

	"chancery/token"
)

// Mechanisms and key type of PKCS#11 v3.0 (current mechanisms specification,
// section 2.3), which the bindings have no names for.
const (
	ckmECEdwardsKeyPairGen = 0x1055
	ckmEdDSA               = 0x1057
	ckkECEdwards           = 0x40
)

// mechanisms are those of a token that matter here.
type mechanisms map[uint]p11.MechanismInfo

func readMechanisms(api *p11.Ctx, slot uint) (mechanisms, error) {
	offered, err := api.GetMechanismList(slot)
	if err != nil {
		return nil, fmt.Errorf("list mechanisms: %w", err)
	}
	quirks, err := readQuirks(api)
	if err != nil {
		return nil, err
	}
	found := mechanisms{}
	for _, m := range offered {
		switch m.Mechanism {
		case p11.CKM_RSA_PKCS_KEY_PAIR_GEN, p11.CKM_RSA_PKCS, p11.CKM_RSA_PKCS_PSS,
			p11.CKM_EC_KEY_PAIR_GEN, p11.CKM_ECDSA, ckmECEdwardsKeyPairGen, ckmEdDSA:
			info, err := api.GetMechanismInfo(slot, []*p11.Mechanism{m})
			if err != nil {
				return nil, fmt.Errorf("mechanism %#x: %w", m.Mechanism, err)
			}
			found[m.Mechanism] = quirks.limit(m.Mechanism, info)
		}
	}
	return found, nil
}

// signs tells whether the token signs with this mechanism.
func (m mechanisms) signs(mechanism uint) bool {
	return m[mechanism].Flags&p11.CKF_SIGN != 0
}

// algorithms lists what the token both generates and signs with.
func (m mechanisms) algorithms() []token.Algorithm {
	var can []token.Algorithm
	for _, a := range token.Algorithms() {
		generate, sign, bits := needs(a)
		if m[generate].Flags&p11.CKF_GENERATE_KEY_PAIR != 0 && m.signs(sign) &&
			fits(m[generate], bits) && fits(m[sign], bits) {
			can = append(can, a)
		}
	}
	return can
}

// needs names the mechanisms behind an algorithm and its key size, in bits as
// for CK_MECHANISM_INFO.
func needs(a token.Algorithm) (generate, sign, bits uint) {
	if a == token.Ed25519 {
		return ckmECEdwardsKeyPairGen, ckmEdDSA, 256
	}
	if curve := a.Curve(); curve != nil {
		return p11.CKM_EC_KEY_PAIR_GEN, p11.CKM_ECDSA, uint(curve.Params().BitSize)
	}
	return p11.CKM_RSA_PKCS_KEY_PAIR_GEN, p11.CKM_RSA_PKCS, uint(a.RSABits())
}

// fits compares with the key sizes of a mechanism; zero as the upper one means
// that the token states none. Ed25519 is 255 bits to some and 256 to others.
func fits(info p11.MechanismInfo, bits uint) bool {
	if info.MaxKeySize == 0 {
		return true
	}
	if bits == 256 && info.MaxKeySize == 255 {
		return true
	}
	return info.MinKeySize <= bits && bits <= info.MaxKeySize
}
