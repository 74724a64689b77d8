// Package openpgp makes and checks OpenPGP signatures (RFC 9580, version 4
// keys and signatures) whose raw signature comes from somewhere else: a token
// behind a server, or any crypto.Signer.
//
// # Which call to use
//
// Sign does everything for one document and one crypto.Signer. To sign many
// documents in one request, work in two phases: New starts a document, its
// bytes are written to the Pending, Digest says what the key has to sign, and
// Finish turns the raw signature into the file to write.
//
// Verify checks a detached signature and VerifyCleartext a cleartext one.
// NewCertificate makes the certificate (the "public key block") of a key, and
// ParseCertificate reads one.
//
// # Keys
//
// RSA of 2048 to 4096 bits, ECDSA on P-256, P-384 and P-521, and Ed25519. An
// Ed25519 key becomes algorithm 22 (EdDSALegacy), which every GnuPG since 2.1
// reads; certificates with algorithm 27 are understood too. New signs with the
// certificate's primary key; Verify accepts its signing subkeys as well.
//
// # Compatibility
//
// Signatures are laid out as GnuPG's are: issuer fingerprint and creation time
// are hashed, the issuer's key ID is not, and no armour header names a program.
// The armour carries its checksum, because older RPM wants it. Nothing is
// random except what the key itself adds, so that an RSA or Ed25519 key makes
// the same file twice from the same document and time.
package openpgp

import "errors"

// Errors of this package, wrapped with what they are about. None goes away by
// trying again with the same input.
var (
	// ErrCertificate says that something is not one usable OpenPGP certificate.
	ErrCertificate = errors.New("openpgp: certificate not usable")
	// ErrUnsupported says that a key, hash or format is outside what this package does.
	ErrUnsupported = errors.New("openpgp: not supported")
	// ErrOptions says that the caller's options contradict each other or the key.
	ErrOptions = errors.New("openpgp: options not usable")
	// ErrText says that a document cannot be signed in cleartext; a detached signature can.
	ErrText = errors.New("openpgp: not suited to a cleartext signature; sign it detached")
	// ErrMalformed says that a signature or signed message cannot be read.
	ErrMalformed = errors.New("openpgp: malformed signature")
	// ErrSignature says that a signature does not fit its document and key.
	ErrSignature = errors.New("openpgp: bad signature")
	// ErrOtherKey says that a signature or a signer belongs to another key than the certificate's.
	ErrOtherKey = errors.New("openpgp: made by another key")
	// ErrExpired says that a signature is right, but it or its key has expired.
	ErrExpired = errors.New("openpgp: expired")
	// ErrRevoked says that a signature is right, but its key has been revoked.
	ErrRevoked = errors.New("openpgp: key revoked")
)
