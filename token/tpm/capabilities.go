package tpm

import (
	"errors"
	"fmt"
	"strings"

	"github.com/google/go-tpm/tpm2"

	"chancery/token"
)

// candidates are the keys that this driver makes where the TPM has them.
var candidates = []token.Algorithm{token.RSA2048, token.RSA3072, token.P256, token.P384}

// capabilities is what the TPM can do. It does not change while it runs.
type capabilities struct {
	algorithms   []token.Algorithm
	primitives   map[tpm2.TPMAlgID]bool // what TPM2_GetCapability lists
	manufacturer string
	model        string
	longSalt     bool // its PSS signatures have been seen to have another salt length than the hash's
}

// learn asks the TPM once what it can do.
func (l *link) learn() (*capabilities, error) {
	if l.offers != nil {
		return l.offers, nil
	}
	var c capabilities
	var err error
	if c.primitives, err = l.primitives(); err != nil {
		return nil, err
	}
	for _, a := range candidates {
		has, err := l.makes(a)
		if err != nil {
			return nil, err
		}
		if has {
			c.algorithms = append(c.algorithms, a)
		}
	}
	if c.manufacturer, err = l.text(tpm2.TPMPTManufacturer, 1); err != nil {
		return nil, err
	}
	if c.model, err = l.text(tpm2.TPMPTVendorString1, 4); err != nil {
		return nil, err
	}
	l.offers = &c
	return l.offers, nil
}

// makes has the TPM test the parameters of a key.
func (l *link) makes(a token.Algorithm) (bool, error) {
	template, err := keyTemplate(a, nil)
	if err != nil {
		return false, err
	}
	parameters := tpm2.TPMTPublicParms{Type: template.Type, Parameters: template.Parameters}
	_, err = tpm2.TestParms{Parameters: parameters}.Execute(l.transport)
	var code tpm2.TPMRC
	if errors.As(err, &code) && !code.IsWarning() {
		return false, nil
	}
	return err == nil, err
}

func (l *link) primitives() (map[tpm2.TPMAlgID]bool, error) {
	const first, most = 1, 256
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapAlgs, Property: first, PropertyCount: most}.Execute(l.transport)
	if err != nil {
		return nil, err
	}
	list, err := rsp.CapabilityData.Data.Algorithms()
	if err != nil {
		return nil, fmt.Errorf("list of algorithms: %w", err)
	}
	has := map[tpm2.TPMAlgID]bool{}
	for _, p := range list.AlgProperties {
		has[p.Alg] = true
	}
	return has, nil
}

func (l *link) property(property tpm2.TPMPT) (uint32, error) {
	rsp, err := tpm2.GetCapability{
		Capability:    tpm2.TPMCapTPMProperties,
		Property:      uint32(property),
		PropertyCount: 1,
	}.Execute(l.transport)
	if err != nil {
		return 0, err
	}
	list, err := rsp.CapabilityData.Data.TPMProperties()
	if err != nil || len(list.TPMProperty) != 1 || list.TPMProperty[0].Property != property {
		return 0, fmt.Errorf("the TPM does not tell its property %#x", uint32(property))
	}
	return list.TPMProperty[0].Value, nil
}

// text reads properties that hold four characters each.
func (l *link) text(first tpm2.TPMPT, count int) (string, error) {
	var b strings.Builder
	for i := range count {
		value, err := l.property(first + tpm2.TPMPT(i))
		if err != nil {
			return "", err
		}
		for shift := 24; shift >= 0; shift -= 8 {
			if c := byte(value >> shift); c >= ' ' && c <= '~' {
				b.WriteByte(c)
			}
		}
	}
	return strings.TrimSpace(b.String()), nil
}

// emulated tells a TPM in software by the vendor's name, as swtpm has it ("SW   TPM").
func (c *capabilities) emulated() bool {
	return strings.HasPrefix(c.model, "SW ")
}
