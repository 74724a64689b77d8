package pkcs11

import (
	p11 "github.com/miekg/pkcs11"

	"chancery/token"
)

// The two spellings of CKA_EC_PARAMS for Ed25519 (PKCS#11 v3.0 current
// mechanisms specification, section 2.3.5): the curve's name as a
// PrintableString, which SoftHSM takes, and its identifier (RFC 8410, section 3).
var (
	edwardsName       = append([]byte{0x13, 0x0c}, "edwards25519"...)
	edwardsIdentifier = []byte{0x06, 0x03, 0x2b, 0x65, 0x70}
)

// generateEdwards makes an Ed25519 key pair with whichever spelling of the
// curve the token understands.
func (s session) generateEdwards(spec token.KeySpec) error {
	err := s.generateEdwardsAs(spec, edwardsName)
	if hasCode(err, p11.CKR_DOMAIN_PARAMS_INVALID, p11.CKR_ATTRIBUTE_VALUE_INVALID,
		p11.CKR_TEMPLATE_INCONSISTENT, p11.CKR_CURVE_NOT_SUPPORTED) {
		return s.generateEdwardsAs(spec, edwardsIdentifier)
	}
	return err
}

func (s session) generateEdwardsAs(spec token.KeySpec, curve []byte) error {
	public := append(publicTemplate(spec),
		p11.NewAttribute(p11.CKA_KEY_TYPE, ckkECEdwards),
		p11.NewAttribute(p11.CKA_EC_PARAMS, curve))
	private := append(privateTemplate(spec),
		p11.NewAttribute(p11.CKA_KEY_TYPE, ckkECEdwards))
	mechanism := []*p11.Mechanism{p11.NewMechanism(ckmECEdwardsKeyPairGen, nil)}
	_, _, err := s.api.GenerateKeyPair(s.handle, mechanism, public, private)
	return err
}

// signEdwards signs a whole message with Ed25519 (RFC 8032): CKM_EDDSA without
// parameters is the pure variant.
func (s session) signEdwards(private p11.ObjectHandle, message []byte) ([]byte, error) {
	mechanism := []*p11.Mechanism{p11.NewMechanism(ckmEdDSA, nil)}
	if err := s.api.SignInit(s.handle, mechanism, private); err != nil {
		return nil, err
	}
	return s.api.Sign(s.handle, message)
}
