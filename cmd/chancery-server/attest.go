package main

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"chancery/internal/cli"
	"chancery/token"
	"chancery/token/tpm"
	"chancery/users"
)

// The proofs of where a key lives.
const (
	proofNone     = "none: the token only says so"
	proofImported = "none: the key was made elsewhere and imported, as the TPM itself says"
	proofTPM      = "signed by the TPM's attestation key (TPM2_Certify), and verified: the key was made inside of it and cannot leave it; that it is your TPM, tells evidence.signer (--json)"
	proofFailed   = "NOT VERIFIED: do not rely on it"
)

// attestationView is what a key's token said of it.
type attestationView struct {
	Key      string `json:"key"`
	Proof    string `json:"proof"`
	Verified bool   `json:"verified"`
	Problem  string `json:"problem,omitempty"` // why a proof was not verified
	token.Attestation
}

// viewAttestation verifies what was kept with the key against its public half.
func viewAttestation(k *users.Key) (attestationView, error) {
	if k.Attestation == "" {
		return attestationView{}, &cli.Error{
			Exit: cli.ExitFailed, Code: "no_attestation", Message: fmt.Sprintf("nothing is kept of where key %q lives: its token had no way to say that when the key was registered", k.Name),
			Hint: "only keys that are registered from now on have one; a new key can be made with 'key create'",
		}
	}
	v := attestationView{Key: k.Name}
	if err := json.Unmarshal([]byte(k.Attestation), &v.Attestation); err != nil {
		return v, fmt.Errorf("the attestation kept of key %q: %w", k.Name, err)
	}
	public, err := x509.ParsePKIXPublicKey(k.Public)
	if err != nil {
		return v, fmt.Errorf("the public half of key %q: %w", k.Name, err)
	}
	switch err := tpm.VerifyAttestation(v.Attestation, public); {
	case v.Evidence == nil, errors.Is(err, token.ErrUnsupported) && !errors.Is(err, token.ErrMismatch):
		v.Proof = proofNone
	case err != nil && k.Origin == users.OriginImported && !v.Claims["sensitive_data_origin"]:
		v.Proof = proofImported
	case err != nil:
		v.Proof, v.Problem = proofFailed, err.Error()
	default:
		v.Proof, v.Verified = proofTPM, true
	}
	return v, nil
}

func (v *attestationView) fields() []field {
	fields := []field{
		{"key", v.Key}, {"driver", v.Driver}, {"token's serial", v.Serial}, {"stated", moment(v.Made)},
	}
	for _, claim := range slices.Sorted(maps.Keys(v.Claims)) {
		fields = append(fields, field{claim, yesNo(v.Claims[claim])})
	}
	fields = append(fields, field{"proof", v.Proof})
	if v.Problem != "" {
		fields = append(fields, field{"problem", v.Problem})
	}
	return fields
}
