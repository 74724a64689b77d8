package openpgp

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// Limits of what ParseCertificate reads. A certificate with hundreds of
// certifications by others fits.
const (
	maxCertificateSize    = 1 << 20 // bytes, armoured or not
	maxCertificatePackets = 2000
	maxCertificateSubkeys = 20
)

// Certificate is an OpenPGP certificate, also called a public key block, whose
// self-signatures are valid. It does not change and may be shared by goroutines.
type Certificate struct {
	entity  *openpgp.Entity
	self    *packet.Signature // of the primary user ID
	direct  *packet.Signature // the newest one over the primary key by itself, or nil
	public  crypto.PublicKey
	userIDs []string
}

// ParseCertificate reads one certificate, armoured or binary, of at most 1 MiB.
// It refuses private keys, more than one primary key, versions other than 4,
// keys that this package cannot use, and self-signatures that are wrong or rest
// on SHA-1; the error is ErrCertificate or ErrUnsupported. An expired or
// revoked certificate can be read, but New and Verify refuse it.
func ParseCertificate(data []byte) (*Certificate, error) {
	if len(data) > maxCertificateSize {
		return nil, fmt.Errorf("%w: more than %d bytes", ErrCertificate, maxCertificateSize)
	}
	packets, err := packetsOf(publicKeyBlock, data)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrCertificate, err)
	}
	// Sizes and kinds are checked before any signature is verified, so that a
	// huge key cannot make the verification slow.
	found, err := surveyCertificate(packets)
	if err != nil {
		return nil, err
	}
	entity, err := openpgp.ReadEntity(packet.NewReader(bytes.NewReader(packets)))
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrCertificate, err)
	}
	self, _ := entity.PrimarySelfSignature()
	direct := newestDirect(entity.PrimaryKey, found.direct)
	if err := checkBindings(entity, self, direct); err != nil {
		return nil, err
	}
	userIDs := slices.DeleteFunc(found.userIDs, func(id string) bool { return !bound(entity, id) })
	return &Certificate{entity: entity, self: self, direct: direct, public: found.public, userIDs: userIDs}, nil
}

// newestDirect returns the newest signature that the primary key made over itself and that has not expired, or nil.
func newestDirect(primary *packet.PublicKey, signatures []*packet.Signature) *packet.Signature {
	slices.SortStableFunc(signatures, func(a, b *packet.Signature) int { return b.CreationTime.Compare(a.CreationTime) })
	for _, s := range signatures {
		if s.CheckKeyIdOrFingerprint(primary) && !s.SigExpired(time.Now()) && primary.VerifyDirectKeySignature(s) == nil {
			return s
		}
	}
	return nil
}

// survey is what a certificate is made of, before any signature is verified.
type survey struct {
	public  crypto.PublicKey    // the primary key
	userIDs []string            // in their order
	direct  []*packet.Signature // those that may be over the primary key by itself
}

// surveyCertificate checks which packets there are.
func surveyCertificate(packets []byte) (*survey, error) {
	found := &survey{}
	r := packet.NewReader(bytes.NewReader(packets))
	subkeys := 0
	for n := 0; ; n++ {
		p, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil || n == maxCertificatePackets {
			return nil, fmt.Errorf("%w: damaged, or more than %d packets", ErrCertificate, maxCertificatePackets)
		}
		switch p := p.(type) {
		case *packet.PublicKey:
			if p.IsSubkey {
				subkeys++
			} else if found.public != nil {
				return nil, fmt.Errorf("%w: more than one primary key; export only the one that is meant", ErrCertificate)
			}
			key, err := surveyKey(p)
			if err != nil {
				return nil, err
			}
			if !p.IsSubkey {
				found.public = key
			}
		case *packet.UserId:
			found.userIDs = append(found.userIDs, p.Id)
		case *packet.Signature:
			if p.SigType == packet.SigTypeDirectSignature {
				found.direct = append(found.direct, p)
			}
		case *packet.UserAttribute:
		case *packet.PrivateKey:
			return nil, fmt.Errorf("%w: it holds a private key; export the public one", ErrCertificate)
		default:
			return nil, fmt.Errorf("%w: it holds packets that are no part of one", ErrCertificate)
		}
	}
	if found.public == nil || subkeys > maxCertificateSubkeys {
		return nil, fmt.Errorf("%w: no primary key that this program can use, or more than %d subkeys",
			ErrCertificate, maxCertificateSubkeys)
	}
	return found, nil
}

// surveyKey checks a key's version and size. Encryption subkeys may be of any
// kind, as nothing is done with them.
func surveyKey(key *packet.PublicKey) (crypto.PublicKey, error) {
	if key.Version != 4 {
		return nil, fmt.Errorf("%w: key of version %d; only version 4", ErrUnsupported, key.Version)
	}
	if key.IsSubkey && !key.PubKeyAlgo.CanSign() {
		return nil, nil
	}
	return publicOf(key)
}

// checkBindings refuses certificates whose own signatures are missing or weak.
func checkBindings(entity *openpgp.Entity, self, direct *packet.Signature) error {
	if self == nil {
		return fmt.Errorf("%w: no user ID with a self-signature", ErrCertificate)
	}
	signatures := []*packet.Signature{self}
	if direct != nil {
		signatures = append(signatures, direct)
	}
	for _, subkey := range entity.Subkeys {
		signatures = append(signatures, subkey.Sig)
		if subkey.Sig.EmbeddedSignature != nil {
			signatures = append(signatures, subkey.Sig.EmbeddedSignature)
		}
	}
	for _, s := range signatures {
		if !slices.Contains(acceptedHashes, s.Hash) {
			return fmt.Errorf("%w: a self-signature uses %v; renew it with SHA-256 or longer", ErrCertificate, s.Hash)
		}
		if hasCriticalNotation(s) {
			return fmt.Errorf("%w: a self-signature has a critical notation", ErrCertificate)
		}
	}
	return nil
}

// bound says whether the user ID has a valid self-signature and is not revoked.
func bound(entity *openpgp.Entity, userID string) bool {
	identity, ok := entity.Identities[userID]
	return ok && identity.SelfSignature != nil && len(identity.Revocations) == 0
}

// Fingerprint returns the primary key's fingerprint: 40 upper-case hex digits.
func (c *Certificate) Fingerprint() string { return fingerprintOf(c.entity.PrimaryKey) }

// KeyID returns the primary key's key ID: 16 upper-case hex digits.
func (c *Certificate) KeyID() string { return c.entity.PrimaryKey.KeyIdString() }

// Public returns the primary key: *rsa.PublicKey, *ecdsa.PublicKey or
// ed25519.PublicKey of the standard library.
func (c *Certificate) Public() crypto.PublicKey { return c.public }

// UserIDs returns the user IDs that are bound by the key and not revoked, in
// the certificate's order. They are the key owner's claim about themselves,
// and foreign text: quote them before printing.
func (c *Certificate) UserIDs() []string { return slices.Clone(c.userIDs) }

// Created returns when the primary key was made.
func (c *Certificate) Created() time.Time { return c.entity.PrimaryKey.CreationTime.UTC() }

// Expires returns when the primary key expires, or the zero time if it never does: the earlier of what the primary
// user ID's self-signature says and the newest signature directly on the key (RFC 9580, section 5.2.3.13).
func (c *Certificate) Expires() time.Time {
	var expires time.Time
	for _, s := range []*packet.Signature{c.self, c.direct} {
		if s == nil || s.KeyLifetimeSecs == nil || *s.KeyLifetimeSecs == 0 {
			continue
		}
		end := c.Created().Add(time.Duration(*s.KeyLifetimeSecs) * time.Second)
		if expires.IsZero() || end.Before(expires) {
			expires = end
		}
	}
	return expires
}

// Revoked says whether the certificate carries a revocation of its primary key,
// of whatever date: a revoked key is never used again.
func (c *Certificate) Revoked() bool { return len(c.entity.Revocations) > 0 }

// maySignAt says whether the primary key may make signatures dated so.
func (c *Certificate) maySignAt(at time.Time) error {
	switch expires := c.Expires(); {
	case c.Revoked():
		return fmt.Errorf("certificate %s: %w", c.Fingerprint(), ErrRevoked)
	case !expires.IsZero() && !at.Before(expires):
		return fmt.Errorf("certificate %s: %w on %s", c.Fingerprint(), ErrExpired, expires.Format(time.DateOnly))
	case at.Unix() < c.Created().Unix():
		return fmt.Errorf("%w: certificate %s was made later than the signature's time; check the clock",
			ErrOptions, c.Fingerprint())
	case c.self.FlagsValid && !c.self.FlagSign:
		return fmt.Errorf("certificate %s: its primary key is not meant for signing documents: %w", c.Fingerprint(), ErrUnsupported)
	}
	return nil
}
