package sqlite

import (
	"context"
	"fmt"

	"chancery/users"
)

// AddKey registers a key with its certificates and its first manager.
func (s *Store) AddKey(ctx context.Context, k users.Key, manager users.Grant) (users.Key, error) {
	if err := users.CheckName(k.Name); err != nil {
		return users.Key{}, err
	}
	if err := checkKey(&k); err != nil {
		return users.Key{}, err
	}
	certificates := k.Certificates
	k.Certificates = nil
	err := s.change(ctx, func(c *change) error {
		if err := c.addKey(&k); err != nil {
			return err
		}
		for _, certificate := range certificates {
			certificate.KeyID = k.ID
			if err := c.addCertificate(&certificate); err != nil {
				return err
			}
			k.Certificates = append(k.Certificates, certificate)
		}
		manager.TokenID, manager.KeyID, manager.Role = k.TokenID, k.ID, users.RoleManager
		return c.addGrant(&manager)
	})
	if err != nil {
		return users.Key{}, err
	}
	sortCertificates(k.Certificates)
	return k, nil
}

func (c *change) addKey(k *users.Key) (err error) {
	k.Disabled, k.CreatedAt = false, fromUnix(c.now)
	k.ID, err = c.insert(fmt.Sprintf("key %q, or another name of the same key on its token", k.Name),
		`INSERT INTO keys (name, token_id, token_key_id, algorithm, public, handle, origin, created_at, attestation)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		k.Name, k.TokenID, k.TokenKeyID, string(k.Algorithm), k.Public, k.Handle, string(k.Origin), c.now, k.Attestation)
	return err
}

// SetKeyDisabled disables or enables a key.
func (s *Store) SetKeyDisabled(ctx context.Context, name string, disabled bool) error {
	return s.change(ctx, func(c *change) error {
		return c.exec(fmt.Sprintf("key %q", name), `UPDATE keys SET disabled = ? WHERE name = ?`, disabled, name)
	})
}

// DeleteKey forgets a key with its certificates and grants.
func (s *Store) DeleteKey(ctx context.Context, name string) error {
	return s.change(ctx, func(c *change) error {
		return c.exec(fmt.Sprintf("key %q", name), `DELETE FROM keys WHERE name = ?`, name)
	})
}

// AddCertificate adds a certificate to the key with certificate.KeyID.
func (s *Store) AddCertificate(ctx context.Context, certificate users.Certificate) (users.Certificate, error) {
	err := s.change(ctx, func(c *change) error { return c.addCertificate(&certificate) })
	if err != nil {
		return users.Certificate{}, err
	}
	return certificate, nil
}

func (c *change) addCertificate(certificate *users.Certificate) (err error) {
	certificate.CreatedAt = fromUnix(c.now)
	certificate.ID, err = c.insert(fmt.Sprintf("certificate %s", certificate.Fingerprint),
		`INSERT INTO certificates (key_id, kind, name, fingerprint, armored, created_at) VALUES (?, ?, ?, ?, ?, ?)`,
		certificate.KeyID, string(certificate.Kind), certificate.Name, certificate.Fingerprint, certificate.Armored, c.now)
	return err
}
