package wire

import "github.com/google/uuid"

// Response is the answer to one request.
type Response struct {
	Session uuid.UUID
	ID      uint64 // the request's
	Body    ResponseBody
}

// ResponseBody is one of *WhoAmIReply, *ListKeysReply, *GetKeyReply,
// *UnlockReply, *SignReply, *SignAllReply, *UnsupportedReply and *Error.
type ResponseBody interface {
	appendReply(dst []byte, extended bool) []byte
}

// WhoAmIReply names the user.
type WhoAmIReply struct{ User string }

// ListKeysReply has the user's keys in a stable order: PKCS#11 slot numbers are
// positions in it.
type ListKeysReply struct{ Keys []Key }

// GetKeyReply has one key.
type GetKeyReply struct{ Key Key }

// UnlockReply says that the key is open for this connection.
type UnlockReply struct{}

// SignReply has one signature.
type SignReply struct{ Signature Signature }

// SignAllReply has the signatures in the order of the request.
type SignAllReply struct{ Signatures []Signature }

// UnsupportedReply answers a request that the server does not know.
type UnsupportedReply struct{}

// Key is the public description of a key.
type Key struct {
	Name         string
	Algorithm    KeyAlgorithm
	Handle       string // upper-case hex SHA-256 of the DER SubjectPublicKeyInfo
	PublicKey    string // SubjectPublicKeyInfo as PEM
	Certificates []Certificate
	// Hardware says whether the private half is kept in hardware: nil when the
	// server does not tell. Sent under chancery/1 only.
	Hardware *bool
}

// CertificateType is the kind of a certificate.
type CertificateType string

// The kinds of certificates.
const (
	CertificatePGP  CertificateType = "Pgp"
	CertificateX509 CertificateType = "X509"
)

// Certificate binds a key to a name. Lists have all X509 ones first.
type Certificate struct {
	Text        string // PEM, or an armoured OpenPGP certificate
	Type        CertificateType
	Fingerprint string // upper-case hex: SHA-256 of the DER, or the OpenPGP fingerprint
	Name        string
}

// Signature is one signature and what it was made over.
type Signature struct {
	Tag   SignatureTag
	Bytes []byte
	// Digest and Hash repeat the request's digest. Both are empty, and left out
	// on the wire, for a signature over a whole message.
	Digest DigestAlgorithm
	Hash   string
}
