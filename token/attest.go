package token

import (
	"context"
	"time"
)

// Attestation says where a private key lives and what proves it. It is kept with the key from its making on, as JSON.
type Attestation struct {
	Made   time.Time `json:"made"`
	Driver string    `json:"driver"`
	Serial string    `json:"serial"` // of the token that says so
	// Claims are what the token states of the key. Their names are those of the standard in lower case
	// without prefix: sensitive, always_sensitive, never_extractable, local and so on of PKCS#11 (v2.40 base
	// specification, section 4.9), fixed_tpm, fixed_parent, sensitive_data_origin and so on of TPMA_OBJECT
	// (TPM 2.0 library, part 2, section 8.3). What the token does not tell is left out.
	Claims map[string]bool `json:"claims"`
	// Evidence is signed by the token itself; nil where the token can only claim.
	Evidence *Evidence `json:"evidence,omitempty"`
}

// EvidenceTPM2Certify is the Format of what TPM2_Certify returns.
const EvidenceTPM2Certify = "tpm2-certify"

// Evidence is a statement about a key, signed by another key of the same token. Its driver verifies it.
type Evidence struct {
	Format    string `json:"format"`
	Public    []byte `json:"public"`    // the key, as the token describes it (TPMT_PUBLIC)
	Statement []byte `json:"statement"` // what was signed (TPMS_ATTEST)
	Signature []byte `json:"signature"` // TPMT_SIGNATURE
	Signer    []byte `json:"signer"`    // the attestation key's public half (TPMT_PUBLIC)
}

// Attester is a Token that can say where its keys live.
type Attester interface {
	// Attest describes the key and, where the token can, has it prove that. It needs a login where the token does
	// for that. Errors: ErrNoKey, ErrLoginRequired, ErrUnsupported.
	Attest(ctx context.Context, id []byte) (Attestation, error)
}
