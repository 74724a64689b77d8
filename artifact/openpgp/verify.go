package openpgp

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// Limits of what Verify and VerifyCleartext read as signatures.
const (
	maxSignatureSize    = 256 << 10 // bytes, armoured or not
	maxSignaturePackets = 32
)

// clockTolerance is how far in the future a signature may be dated, as the
// clocks of two machines are never quite the same.
const clockTolerance = 5 * time.Minute

// acceptedHashes are the hashes that signatures may rest on. SHA-1 and MD5 are not.
var acceptedHashes = []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512, crypto.SHA3_256, crypto.SHA3_512}

// Verification says who signed a document and when.
type Verification struct {
	// Fingerprint is the certificate's: 40 upper-case hex digits.
	Fingerprint string
	// SigningKey is the fingerprint of the key that signed: the same, or a subkey's.
	SigningKey string
	// UserIDs are those of the certificate; foreign text.
	UserIDs []string
	// Time is the signature's creation time, as the signer claims.
	Time time.Time
	// Hash is what the signature rests on.
	Hash crypto.Hash
}

// Verify checks a detached signature, armoured or binary, of the document with
// this certificate. Signatures by others in the same file are passed over; if
// none is left the error is ErrOtherKey. Several by this certificate must all
// be right, and the first is returned. A wrong signature, one with a weak hash
// or one dated in the future is ErrSignature, an unreadable one ErrMalformed.
//
// When the signature itself is right, but it, or its key, has expired or was
// revoked since, the Verification is returned together with ErrExpired or
// ErrRevoked: a caller who wants to accept that can.
func Verify(cert *Certificate, signature []byte, document io.Reader) (*Verification, error) {
	signatures, err := parseSignatures(signature)
	if err != nil {
		return nil, err
	}
	own := cert.own(signatures)
	if len(own) == 0 {
		return nil, fmt.Errorf("no signature by certificate %s: %w", cert.Fingerprint(), ErrOtherKey)
	}
	states := make([]hash.Hash, len(own))
	writers := make([]io.Writer, len(own))
	for i, candidate := range own {
		if err := candidate.acceptable(packet.SigTypeBinary, packet.SigTypeText); err != nil {
			return nil, err
		}
		states[i] = candidate.signature.Hash.New()
		writers[i] = states[i]
		if candidate.signature.SigType == packet.SigTypeText {
			writers[i] = openpgp.NewCanonicalTextHash(states[i])
		}
	}
	if _, err := io.Copy(io.MultiWriter(writers...), document); err != nil {
		return nil, fmt.Errorf("openpgp: reading the document: %w", err)
	}
	return cert.conclude(own, func(i int) hash.Hash { return states[i] })
}

// candidate is a signature that claims to be by one of the certificate's keys.
type candidate struct {
	signature *packet.Signature
	key       openpgp.Key
}

// parseSignatures reads a file of one or more signature packets.
func parseSignatures(data []byte) ([]*packet.Signature, error) {
	if len(data) > maxSignatureSize {
		return nil, fmt.Errorf("%w: more than %d bytes", ErrMalformed, maxSignatureSize)
	}
	packets, err := packetsOf(signatureBlock, data)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrMalformed, err)
	}
	var signatures []*packet.Signature
	for r := packet.NewReader(bytes.NewReader(packets)); ; {
		p, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		signature, ok := p.(*packet.Signature)
		if err != nil || !ok || len(signatures) == maxSignaturePackets {
			return nil, fmt.Errorf("%w: damaged, not a detached signature, or more than %d signatures",
				ErrMalformed, maxSignaturePackets)
		}
		signatures = append(signatures, signature)
	}
	if len(signatures) == 0 {
		return nil, fmt.Errorf("%w: no signature that this program can read", ErrMalformed)
	}
	return signatures, nil
}

// own picks the signatures that name one of the certificate's keys.
func (c *Certificate) own(signatures []*packet.Signature) []candidate {
	keys := []openpgp.Key{{Entity: c.entity, PublicKey: c.entity.PrimaryKey, SelfSignature: c.self, Revocations: c.entity.Revocations}}
	for _, s := range c.entity.Subkeys {
		keys = append(keys, openpgp.Key{Entity: c.entity, PublicKey: s.PublicKey, SelfSignature: s.Sig, Revocations: s.Revocations})
	}
	var own []candidate
	for _, signature := range signatures {
		for _, key := range keys {
			if signature.CheckKeyIdOrFingerprint(key.PublicKey) {
				own = append(own, candidate{signature, key})
				break
			}
		}
	}
	return own
}

// acceptable checks all that can be known before the document is read.
func (c candidate) acceptable(kinds ...packet.SignatureType) error {
	s, flags := c.signature, c.key.SelfSignature
	switch {
	case s.Version != 4 || !slices.Contains(kinds, s.SigType):
		return fmt.Errorf("%w: version %d of type %#x does not sign such a document", ErrSignature, s.Version, byte(s.SigType))
	case !slices.Contains(acceptedHashes, s.Hash):
		return fmt.Errorf("%w: it rests on %v, which can be forged", ErrSignature, s.Hash)
	case hasCriticalNotation(s):
		return fmt.Errorf("%w: it has a critical notation that this program does not know", ErrSignature)
	case flags.FlagsValid && !flags.FlagSign, c.key.PublicKey.IsSubkey && !crossCertified(flags):
		return fmt.Errorf("%w: key %s is not meant for signing documents", ErrSignature, fingerprintOf(c.key.PublicKey))
	case s.CreationTime.Before(c.key.PublicKey.CreationTime):
		return fmt.Errorf("%w: it is dated before its key was made", ErrSignature)
	case s.CreationTime.After(time.Now().Add(clockTolerance)):
		return fmt.Errorf("%w: it is dated in the future; check this machine's clock", ErrSignature)
	}
	return nil
}

// crossCertified tells whether a subkey agreed to its binding (RFC 9580, section 5.2.1.8). Without that anybody
// could adopt another's signing key, and with it all that it signed. A binding that says that the
// subkey signs was accepted only with such a signature, which was verified.
func crossCertified(binding *packet.Signature) bool {
	return binding.FlagsValid && binding.FlagSign && binding.EmbeddedSignature != nil
}

// conclude verifies every candidate against the hash of what it signs.
func (c *Certificate) conclude(own []candidate, state func(i int) hash.Hash) (*Verification, error) {
	for i, candidate := range own {
		if err := candidate.key.PublicKey.VerifySignature(state(i), candidate.signature); err != nil {
			return nil, fmt.Errorf("%w: the document was changed, or the signature is of another one", ErrSignature)
		}
	}
	first := own[0]
	verification := &Verification{
		Fingerprint: c.Fingerprint(),
		SigningKey:  fingerprintOf(first.key.PublicKey),
		UserIDs:     c.UserIDs(),
		Time:        first.signature.CreationTime.UTC(),
		Hash:        first.signature.Hash,
	}
	for _, candidate := range own {
		if err := c.stillValid(candidate, time.Now()); err != nil {
			return verification, err
		}
	}
	return verification, nil
}

// stillValid checks expiry and revocation of the signature, its key and the certificate.
func (c *Certificate) stillValid(candidate candidate, now time.Time) error {
	lifetime := candidate.signature.SigLifetimeSecs
	expires := c.Expires()
	switch {
	case c.Revoked() || len(candidate.key.Revocations) > 0:
		return fmt.Errorf("certificate %s: %w", c.Fingerprint(), ErrRevoked)
	case !expires.IsZero() && !now.Before(expires):
		return fmt.Errorf("certificate %s: %w on %s", c.Fingerprint(), ErrExpired, expires.Format(time.DateOnly))
	case candidate.key.PublicKey.KeyExpired(candidate.key.SelfSignature, now):
		return fmt.Errorf("key %s: %w", fingerprintOf(candidate.key.PublicKey), ErrExpired)
	case lifetime != nil && *lifetime != 0 &&
		!now.Before(candidate.signature.CreationTime.Add(time.Duration(*lifetime)*time.Second)):
		return fmt.Errorf("the signature itself: %w", ErrExpired)
	}
	return nil
}

// hasCriticalNotation tells a condition that this package cannot judge (RFC
// 9580, section 5.2.3.24).
func hasCriticalNotation(s *packet.Signature) bool {
	return slices.ContainsFunc(s.Notations, func(n *packet.Notation) bool { return n.IsCritical })
}
