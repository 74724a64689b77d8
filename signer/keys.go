package signer

import (
	"encoding/pem"
	"time"

	"chancery/token"
	"chancery/tunnel/wire"
	"chancery/users"
)

// algorithms are the names of package token on the wire.
var algorithms = map[token.Algorithm]wire.KeyAlgorithm{
	token.RSA2048: wire.RSA2K,
	token.RSA3072: wire.RSA3K,
	token.RSA4096: wire.RSA4K,
	token.P256:    wire.P256,
	token.P384:    wire.P384,
	token.P521:    wire.P521,
	token.Ed25519: wire.Ed25519,
}

var certificateTypes = map[users.CertificateKind]wire.CertificateType{
	users.CertificateX509:    wire.CertificateX509,
	users.CertificateOpenPGP: wire.CertificatePGP,
}

// granted is what the session's user may do with one key, by one snapshot.
type granted struct {
	snapshot *users.Snapshot
	key      *users.Key
	grant    *users.Grant
}

// find authorises the user for a key by its name: the user is enabled, the key is
// one that the peer's protocol can name, granted, enabled, and the grant has not expired.
func (t *session) find(name string, now time.Time) (granted, error) {
	snapshot := t.server.snapshot.Load()
	if closed := snapshot.Closed(); closed != nil {
		return granted{}, closed
	}
	user, ok := snapshot.UserByID(t.userID)
	if !ok || user.Disabled {
		return granted{}, errUserGone
	}
	key, ok := snapshot.Key(name)
	if !ok {
		return granted{}, errUnknownKey
	}
	if !t.canName(key) {
		return granted{}, errVersion2
	}
	grant, ok := snapshot.KeyGrant(t.userID, key.ID)
	if !ok {
		return granted{}, errNotGranted
	}
	if key.Disabled {
		return granted{}, errKeyDisabled
	}
	if grant.Expired(now) {
		return granted{}, errExpired
	}
	return granted{snapshot, key, grant}, nil
}

// canName tells whether the peer's protocol has a name for the key's algorithm.
func (t *session) canName(key *users.Key) bool {
	algorithm, known := algorithms[key.Algorithm]
	return known && (t.extended || algorithm.Version2())
}

// listKeys lists what find would find, by ascending key ID.
func (t *session) listKeys(now time.Time) (wire.ResponseBody, error) {
	catalogue := t.server.catalogue.Load()
	snapshot, described := catalogue.snapshot, catalogue.keys()
	if closed := snapshot.Closed(); closed != nil {
		return nil, closed
	}
	list := &wire.ListKeysReply{Keys: []wire.Key{}}
	for i := range snapshot.Keys() {
		key := &snapshot.Keys()[i]
		if _, usable := snapshot.Usable(t.userID, key.ID, now); usable && t.canName(key) {
			list.Keys = append(list.Keys, described[key.ID].key)
		}
	}
	return list, nil
}

func (t *session) getKey(name string, now time.Time) (wire.ResponseBody, error) {
	found, err := t.find(name, now)
	if err != nil {
		return nil, err
	}
	return &wire.GetKeyReply{Key: describe(found.snapshot, found.key)}, nil
}

// describe is what the wire says of a key.
func describe(snapshot *users.Snapshot, key *users.Key) wire.Key {
	public := wire.Key{
		Name:         key.Name,
		Algorithm:    algorithms[key.Algorithm],
		Handle:       key.Handle,
		PublicKey:    string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: key.Public})),
		Certificates: make([]wire.Certificate, 0, len(key.Certificates)),
	}
	if home, ok := snapshot.TokenByID(key.TokenID); ok {
		public.Hardware = &home.Hardware
	}
	for _, certificate := range key.Certificates {
		kind, known := certificateTypes[certificate.Kind]
		if !known {
			continue
		}
		public.Certificates = append(public.Certificates, wire.Certificate{
			Text: certificate.Armored, Type: kind,
			Fingerprint: certificate.Fingerprint, Name: certificate.Name,
		})
	}
	return public
}
