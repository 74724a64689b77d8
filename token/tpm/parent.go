package tpm

import (
	"bytes"
	"fmt"

	keyfile "github.com/foxboron/go-tpm-keyfiles"
	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"chancery/token"
)

const (
	sessionHash = tpm2.TPMAlgSHA256
	nonceSize   = 16  // bytes; what the TPM's nonces have at least (part 1, section 19.6.9)
	aesBits     = 128 // parameter encryption: AES-128-CFB (part 1, section 21)
)

// ParentTemplate is the storage key under which keys and seals are wrapped: the
// ECC P-256 template H-2 of the TCG EK Credential Profile (section B.4.5) with
// the attributes of a storage root key, which is what the TSS2 key file format
// demands for a parent named by its hierarchy. The same TPM makes the same key
// of it until its owner hierarchy is cleared.
func ParentTemplate() tpm2.TPMTPublic {
	return keyfile.ECCSRK_H2_Template
}

// Parent is a storage key in the TPM. Nobody needs to authorise its use; what
// it wraps has authorisations of its own.
type Parent struct {
	Handle    tpm2.TPMHandle
	Name      tpm2.TPM2BName
	Public    tpm2.TPMTPublic
	transient bool
}

// CreateParent makes the storage key of ParentTemplate in the owner hierarchy,
// whose password must be empty. It takes one of the TPM's three slots for
// transient objects until Flush.
func CreateParent(tpm transport.TPM) (*Parent, error) {
	rsp, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		InPublic:      tpm2.New2B(ParentTemplate()),
	}.Execute(tpm)
	if err != nil {
		return nil, fmt.Errorf("make the storage key: %w", err)
	}
	return newParent(rsp.ObjectHandle, rsp.OutPublic, true)
}

// PersistentParent takes a storage key that was made persistent, for TPMs whose owner
// hierarchy has a password.
func PersistentParent(tpm transport.TPM, handle tpm2.TPMHandle) (*Parent, error) {
	rsp, err := tpm2.ReadPublic{ObjectHandle: handle}.Execute(tpm)
	if err != nil {
		return nil, fmt.Errorf("read the storage key at %#x: %w", uint32(handle), err)
	}
	return newParent(handle, rsp.OutPublic, false)
}

// newParent computes the name itself and refuses what is no storage key: what
// came over the wire is nobody's word yet.
func newParent(handle tpm2.TPMHandle, out tpm2.TPM2BPublic, transient bool) (*Parent, error) {
	public, err := out.Contents()
	if err != nil {
		return nil, fmt.Errorf("the storage key cannot be read: %w", err)
	}
	if err := checkParent(public); err != nil {
		return nil, err
	}
	name, err := tpm2.ObjectName(public)
	if err != nil {
		return nil, fmt.Errorf("the storage key cannot be named: %w", err)
	}
	return &Parent{Handle: handle, Name: *name, Public: *public, transient: transient}, nil
}

func checkParent(public *tpm2.TPMTPublic) error {
	a := public.ObjectAttributes
	if !a.FixedTPM || !a.FixedParent || !a.SensitiveDataOrigin || !a.Restricted || !a.Decrypt || a.SignEncrypt {
		return fmt.Errorf("the parent is not a storage key that was made in this TPM: %w", token.ErrMismatch)
	}
	if _, err := tpm2.ImportEncapsulationKey(public); err != nil {
		return fmt.Errorf("the parent's public key cannot be used: %w", token.ErrMismatch)
	}
	return nil
}

// Is tells whether the key is the one that was kept as a marshalled TPMT_PUBLIC.
// Check that before anything secret goes to a TPM that was used before: sessions
// are salted to the public key, so whoever sits between could offer their own.
func (p *Parent) Is(public []byte) bool {
	return bytes.Equal(tpm2.Marshal(p.Public), public)
}

// Auth authorises commands under this key: with its empty password, which
// proves nothing and reveals nothing. Add a Session to such a command.
func (p *Parent) Auth() tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: p.Handle, Name: p.Name, Auth: tpm2.PasswordAuth(nil)}
}

// Session is an HMAC session for one command, salted to this key: only the TPM
// that has it can compute the answer's HMAC. Options add an authorisation and
// parameter encryption (Encrypted).
func (p *Parent) Session(options ...tpm2.AuthOption) tpm2.Session {
	return tpm2.HMAC(sessionHash, nonceSize, append(options, tpm2.Salted(p.Handle, p.Public))...)
}

// EncryptedIn has a session encrypt the command's first parameter.
func EncryptedIn() tpm2.AuthOption { return tpm2.AESEncryption(aesBits, tpm2.EncryptIn) }

// EncryptedOut has a session encrypt the response's first parameter.
func EncryptedOut() tpm2.AuthOption { return tpm2.AESEncryption(aesBits, tpm2.EncryptOut) }

// Flush gives the slot back; a persistent key stays.
func (p *Parent) Flush(tpm transport.TPM) error {
	if !p.transient {
		return nil
	}
	return flush(tpm, p.Handle)
}

func flush(tpm transport.TPM, handle tpm2.TPMHandle) error {
	_, err := tpm2.FlushContext{FlushHandle: handle}.Execute(tpm)
	return err
}
