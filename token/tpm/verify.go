package tpm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"chancery/token"
)

// VerifyAttestation checks what Token.Attest returned, without a TPM: that the
// evidence is about public; that it was signed, as a statement made by a TPM, by
// a restricted signing key which its TPM made; and that the attributes say that
// the key was made inside that TPM and cannot leave it. An imported key and
// anything altered is token.ErrMismatch; an attestation without a TPM's evidence
// is token.ErrUnsupported.
//
// Which TPM it was is told only by Evidence.Signer: anybody can make up an
// attestation by a key of their own.
func VerifyAttestation(a token.Attestation, public crypto.PublicKey) error {
	if a.Evidence == nil || a.Evidence.Format != token.EvidenceTPM2Certify {
		return fmt.Errorf("tpm: verify attestation: it has no evidence by a TPM: %w", token.ErrUnsupported)
	}
	if err := verifyEvidence(a, public); err != nil {
		return fmt.Errorf("tpm: verify attestation: %w: %w", token.ErrMismatch, err)
	}
	return nil
}

func verifyEvidence(a token.Attestation, public crypto.PublicKey) error {
	subject, err := parsePublic(a.Evidence.Public)
	if err != nil {
		return err
	}
	key, _, err := publicKey(subject)
	if err != nil {
		return err
	}
	if !equal(key, public) {
		return errors.New("it is about another key")
	}
	if err := verifyCertificate(a.Evidence); err != nil {
		return err
	}
	return verifyClaims(a.Claims, subject.ObjectAttributes)
}

// verifyCertificate checks that a TPM said that it has the key, whatever the key's attributes are.
func verifyCertificate(e *token.Evidence) error {
	subject, err := parsePublic(e.Public)
	if err != nil {
		return err
	}
	signer, err := parsePublic(e.Signer)
	if err != nil {
		return err
	}
	if err := verifyStatement(e, subject, signer); err != nil {
		return err
	}
	return verifySignature(e, signer)
}

// verifyStatement checks the TPMS_ATTEST (part 2, section 10.12.12).
func verifyStatement(e *token.Evidence, subject, signer *tpm2.TPMTPublic) error {
	statement, err := tpm2.Unmarshal[tpm2.TPMSAttest](e.Statement)
	if err != nil || !bytes.Equal(tpm2.Marshal(*statement), e.Statement) {
		return errors.New("the statement cannot be read")
	}
	if statement.Magic != tpm2.TPMGeneratedValue || statement.Type != tpm2.TPMSTAttestCertify {
		return errors.New("the statement is not one by a TPM about a key")
	}
	about, err := statement.Attested.Certify()
	if err != nil {
		return errors.New("the statement is not about a key")
	}
	name, err := tpm2.ObjectName(subject)
	if err != nil || !bytes.Equal(about.Name.Buffer, name.Buffer) {
		return errors.New("the statement is about another key")
	}
	qualified, err := qualifiedName(signer)
	if err != nil || !bytes.Equal(statement.QualifiedSigner.Buffer, qualified) {
		return errors.New("the statement names another signer")
	}
	return nil
}

// qualifiedName is that of a primary key in the owner hierarchy (part 1, section 16.4):
// the hash's identifier, and the hash over the hierarchy and the key's name.
func qualifiedName(primary *tpm2.TPMTPublic) ([]byte, error) {
	name, err := tpm2.ObjectName(primary)
	if err != nil || primary.NameAlg != tpm2.TPMAlgSHA256 {
		return nil, errors.New("the signer cannot be named")
	}
	h := sha256.Sum256(append(tpm2.PrimaryHandleName(tpm2.TPMRHOwner), name.Buffer...))
	return append(binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMAlgSHA256)), h[:]...), nil
}

// verifySignature wants the very template of Attest as the signer: restricted
// keys sign nothing that begins like a TPM's own statements unless it is one.
func verifySignature(e *token.Evidence, signer *tpm2.TPMTPublic) error {
	template := *signer
	template.Unique = attestationTemplate().Unique
	if signer.Type != tpm2.TPMAlgECC || !bytes.Equal(tpm2.Marshal(template), tpm2.Marshal(attestationTemplate())) {
		return errors.New("the signer is not an attestation key")
	}
	key, err := tpm2.Pub(*signer)
	if err != nil {
		return errors.New("the signer cannot be read")
	}
	signature, err := tpm2.Unmarshal[tpm2.TPMTSignature](e.Signature)
	if err != nil || signature.SigAlg != tpm2.TPMAlgECDSA {
		return errors.New("the signature cannot be read")
	}
	numbers, err := signature.Signature.ECDSA()
	if err != nil || numbers.Hash != tpm2.TPMAlgSHA256 {
		return errors.New("the signature is of another kind")
	}
	der, err := encodeECDSA(numbers)
	if err != nil {
		return errors.New("the signature cannot be read")
	}
	digest := sha256.Sum256(e.Statement)
	if !ecdsa.VerifyASN1(key.(*ecdsa.PublicKey), digest[:], der) {
		return errors.New("the signature is wrong")
	}
	return nil
}

// verifyClaims wants a key made in the TPM and bound to it, and claims that say no more than that.
func verifyClaims(stated map[string]bool, a tpm2.TPMAObject) error {
	if !a.FixedTPM || !a.FixedParent || !a.SensitiveDataOrigin {
		return errors.New("the key was not made inside the TPM or may leave it")
	}
	proven := claims(a)
	for claim, value := range stated {
		if proof, ok := proven[claim]; !ok || proof != value {
			return fmt.Errorf("claim %q is not proven", claim)
		}
	}
	return nil
}
