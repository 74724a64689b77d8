package pkcs11

import (
	"fmt"
	"strings"

	p11 "github.com/miekg/pkcs11"
)

// quirks are ways in which single modules differ from the standard, where no attempt could find that out: a key that was
// made in vain stays in a TPM until it is flushed.
type quirks struct {
	// rsaDecrypts says that RSA keys sign only when they may decrypt as well.
	rsaDecrypts bool
	// maxCurveBits bounds the curves whose points come out whole; 0: all.
	maxCurveBits uint
}

// knownQuirks are the quirks by manufacturer of the module (C_GetInfo, PKCS#11 v2.40 base specification, section 5.4).
var knownQuirks = map[string]quirks{
	// tpm2-pkcs11 1.9 derives CKA_VERIFY from the TPM's decrypt bit, and gives CKA_EC_POINT of P-521 a length that is
	// no DER.
	"tpm2-software.github.io": {rsaDecrypts: true, maxCurveBits: 384},
}

// computesHere tells whether a token computes on this machine's processors, whatever its slot says. Its calls beyond their number
// only take them from each other.
func computesHere(manufacturer string) bool { return strings.HasPrefix(manufacturer, "SoftHSM") }

// waitingCalls of a token that computes here are ready when a processor becomes free.
const waitingCalls = 1

func readQuirks(api *p11.Ctx) (quirks, error) {
	info, err := api.GetInfo()
	if err != nil {
		return quirks{}, fmt.Errorf("describe module: %w", err)
	}
	return knownQuirks[info.ManufacturerID], nil
}

// limit takes out of a mechanism what a quirk makes useless.
func (q quirks) limit(mechanism uint, info p11.MechanismInfo) p11.MechanismInfo {
	curves := mechanism == p11.CKM_EC_KEY_PAIR_GEN || mechanism == p11.CKM_ECDSA
	if curves && q.maxCurveBits != 0 {
		info.MaxKeySize = min(info.MaxKeySize, q.maxCurveBits)
	}
	return info
}
