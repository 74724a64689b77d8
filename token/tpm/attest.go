package tpm

import (
	"context"
	"fmt"
	"time"

	"github.com/google/go-tpm/tpm2"

	"chancery/token"
)

// Attest has the TPM certify the key (TPM2_Certify) by an attestation key: a
// restricted signing key, which signs nothing but what the TPM itself says. The
// TPM makes the same one again and again from the owner hierarchy's seed, so
// there is no file of it and no secret to it. VerifyAttestation checks the
// result. It proves where the key lives to whoever knows the attestation key's
// public half to be this TPM's: compare Evidence.Signer with the one kept from before.
func (t *Token) Attest(ctx context.Context, id []byte) (token.Attestation, error) {
	var attestation token.Attestation
	err := t.use(ctx, fmt.Sprintf("attest key %x", id), func(l *link) error {
		k, err := t.open(l, id)
		if err != nil {
			return err
		}
		if err := k.ready(l); err != nil {
			return err
		}
		evidence, err := k.certify(l)
		if err != nil {
			return err
		}
		contents, err := parsePublic(k.file.public)
		if err != nil {
			return err
		}
		attestation = token.Attestation{
			Made:     time.Now().UTC(),
			Driver:   "tpm",
			Serial:   t.serial,
			Claims:   claims(contents.ObjectAttributes),
			Evidence: evidence,
		}
		return nil
	})
	if err != nil {
		return token.Attestation{}, err
	}
	return attestation, nil
}

// claims are the attributes that say where a key can be (part 2, section 8.3).
func claims(a tpm2.TPMAObject) map[string]bool {
	return map[string]bool{
		"fixed_tpm":             a.FixedTPM,
		"fixed_parent":          a.FixedParent,
		"sensitive_data_origin": a.SensitiveDataOrigin,
		"user_with_auth":        a.UserWithAuth,
		"no_da":                 a.NoDA,
		"restricted":            a.Restricted,
		"decrypt":               a.Decrypt,
		"sign":                  a.SignEncrypt,
	}
}

// attestationTemplate is a P-256 key for ECDSA with SHA-256. Its use needs no
// authorisation: it only ever signs the truth.
func attestationTemplate() tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgECC,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true,
			UserWithAuth: true, NoDA: true, Restricted: true, SignEncrypt: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Symmetric: tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgNull},
			Scheme: tpm2.TPMTECCScheme{
				Scheme:  tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
			CurveID: tpm2.TPMECCNistP256,
			KDF:     tpm2.TPMTKDFScheme{Scheme: tpm2.TPMAlgNull},
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{}),
	}
}

func (k *key) certify(l *link) (*token.Evidence, error) {
	l.evict(0)
	made, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		InPublic:      tpm2.New2B(attestationTemplate()),
	}.Execute(l.transport)
	if isRejected(err) {
		return nil, fmt.Errorf("the owner hierarchy has a password, so there is no attestation key: %w: %w", token.ErrUnsupported, err)
	}
	if err != nil {
		return nil, err
	}
	evidence, err := k.certifyWith(l, made)
	if flushErr := l.flushAfter(err, made.ObjectHandle); err == nil {
		err = flushErr
	}
	return evidence, err
}

func (k *key) certifyWith(l *link, signer *tpm2.CreatePrimaryResponse) (*token.Evidence, error) {
	loaded, err := l.loadOnce(k.file.object)
	if err != nil {
		return nil, err
	}
	rsp, err := k.certifyLoaded(l, signer, loaded)
	if flushErr := l.flushAfter(err, loaded.Handle); err == nil {
		err = flushErr
	}
	if err != nil {
		return nil, err
	}
	evidence := &token.Evidence{
		Format:    token.EvidenceTPM2Certify,
		Public:    k.file.public,
		Statement: rsp.CertifyInfo.Bytes(),
		Signature: tpm2.Marshal(rsp.Signature),
		Signer:    signer.OutPublic.Bytes(),
	}
	if err := verifyCertificate(evidence); err != nil {
		return nil, err // of no use to anybody later
	}
	return evidence, nil
}

func (k *key) certifyLoaded(l *link, signer *tpm2.CreatePrimaryResponse, loaded tpm2.NamedHandle) (rsp *tpm2.CertifyResponse, err error) {
	err = k.authorise(l, loaded, func(handle tpm2.AuthHandle) (err error) {
		rsp, err = tpm2.Certify{
			ObjectHandle: handle,
			SignHandle:   tpm2.AuthHandle{Handle: signer.ObjectHandle, Name: signer.Name, Auth: tpm2.PasswordAuth(nil)},
			InScheme:     tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
		}.Execute(l.transport)
		return err
	})
	return rsp, err
}
