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
	public, userIDs, err := surveyCertificate(packets)
	if err != nil {
		return nil, err
	}
	entity, err := openpgp.ReadEntity(packet.NewReader(bytes.NewReader(packets)))
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrCertificate, err)
	}
	self, _ := entity.PrimarySelfSignature()
	if err := checkBindings(entity, self); err != nil {
		return nil, err
	}
	userIDs = slices.DeleteFunc(userIDs, func(id string) bool { return !bound(entity, id) })
	return &Certificate{entity: entity, self: self, public: public, userIDs: userIDs}, nil
}

// surveyCertificate checks which packets there are, and returns the primary
// key and the user IDs in their order.
func surveyCertificate(packets []byte) (public crypto.PublicKey, userIDs []string, err error) {
	r := packet.NewReader(bytes.NewReader(packets))
	subkeys := 0
	for n := 0; ; n++ {
		p, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil || n == maxCertificatePackets {
			return nil, nil, fmt.Errorf("%w: damaged, or more than %d packets", ErrCertificate, maxCertificatePackets)
		}
		switch p := p.(type) {
		case *packet.PublicKey:
			if p.IsSubkey {
				subkeys++
			} else if public != nil {
				return nil, nil, fmt.Errorf("%w: more than one primary key; export only the one that is meant", ErrCertificate)
			}
			key, err := surveyKey(p)
			if err != nil {
				return nil, nil, err
			}
			if !p.IsSubkey {
				public = key
			}
		case *packet.UserId:
			userIDs = append(userIDs, p.Id)
		case *packet.Signature, *packet.UserAttribute:
		case *packet.PrivateKey:
			return nil, nil, fmt.Errorf("%w: it holds a private key; export the public one", ErrCertificate)
		default:
			return nil, nil, fmt.Errorf("%w: it holds packets that are no part of one", ErrCertificate)
		}
	}
	if public == nil || subkeys > maxCertificateSubkeys {
		return nil, nil, fmt.Errorf("%w: no primary key that this program can use, or more than %d subkeys",
			ErrCertificate, maxCertificateSubkeys)
	}
	return public, userIDs, nil
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
func checkBindings(entity *openpgp.Entity, self *packet.Signature) error {
	if self == nil {
		return fmt.Errorf("%w: no user ID with a self-signature", ErrCertificate)
	}
	signatures := []*packet.Signature{self}
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

// Expires returns when the primary key expires, or the zero time if it never does.
func (c *Certificate) Expires() time.Time {
	if c.self.KeyLifetimeSecs == nil || *c.self.KeyLifetimeSecs == 0 {
		return time.Time{}
	}
	return c.Created().Add(time.Duration(*c.self.KeyLifetimeSecs) * time.Second)
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
