package tpm_test

import (
	"crypto/sha256"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"chancery/swtpm"
	"chancery/token/tokentest"
	"chancery/token/tpm"
)

func BenchmarkSign(b *testing.B) { tokentest.BenchmarkSign(b, driver) }

// BenchmarkRawSign is what the TPM does at most: a loaded key, authorised by an
// empty password in the clear, and nothing around it.
func BenchmarkRawSign(b *testing.B) {
	for name, c := range map[string]struct {
		template tpm2.TPMTPublic
		scheme   tpm2.TPMAlgID
	}{
		"p256":    {rawTemplate(tpm2.ECCSRKTemplate), tpm2.TPMAlgECDSA},
		"rsa2048": {rawTemplate(tpm2.RSASRKTemplate), tpm2.TPMAlgRSASSA},
	} {
		b.Run(name, func(b *testing.B) {
			connection, err := tpm.OpenTransport(swtpm.Start(b).Device(), tpm.Timeouts{})
			if err != nil {
				b.Fatal(err)
			}
			defer connection.Close()
			key, err := tpm2.CreatePrimary{
				PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
				InPublic:      tpm2.New2B(c.template),
			}.Execute(connection)
			if err != nil {
				b.Fatal(err)
			}
			digest := sha256.Sum256([]byte("benchmark"))
			for b.Loop() {
				_, err := tpm2.Sign{
					KeyHandle: tpm2.AuthHandle{Handle: key.ObjectHandle, Name: key.Name, Auth: tpm2.PasswordAuth(nil)},
					Digest:    tpm2.TPM2BDigest{Buffer: digest[:]},
					InScheme: tpm2.TPMTSigScheme{
						Scheme:  c.scheme,
						Details: tpm2.NewTPMUSigScheme(c.scheme, &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256}),
					},
					Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
				}.Execute(connection)
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// rawTemplate turns a storage key's template into a signing key's.
func rawTemplate(template tpm2.TPMTPublic) tpm2.TPMTPublic {
	template.ObjectAttributes.Restricted, template.ObjectAttributes.Decrypt = false, false
	template.ObjectAttributes.SignEncrypt = true
	none := tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgNull}
	if template.Type == tpm2.TPMAlgRSA {
		template.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{Symmetric: none, KeyBits: 2048})
		return template
	}
	template.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{Symmetric: none, CurveID: tpm2.TPMECCNistP256})
	return template
}
