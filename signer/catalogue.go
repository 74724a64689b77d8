package signer

import (
	"sync"

	"chancery/tunnel/wire"
	"chancery/users"
)

// catalogue is what the wire says of all keys of one snapshot, put together when it is first asked for:
// many sessions list the same keys.
type catalogue struct {
	snapshot *users.Snapshot
	keys     func() map[int64]described // by key ID
}

// described is a key for the wire, and about how many bytes it takes there. Replies share it.
type described struct {
	key  wire.Key
	size int
}

func newCatalogue(snapshot *users.Snapshot) *catalogue {
	return &catalogue{snapshot: snapshot, keys: sync.OnceValue(func() map[int64]described {
		all := make(map[int64]described, len(snapshot.Keys()))
		for i := range snapshot.Keys() {
			key := &snapshot.Keys()[i]
			entry := described{key: describe(snapshot, key), size: keyOverhead}
			entry.size += len(entry.key.PublicKey)
			for _, certificate := range entry.key.Certificates {
				entry.size += keyOverhead + len(certificate.Text)
			}
			all[key.ID] = entry
		}
		return all
	})}
}

// keyOverhead is what a key or a certificate takes on the wire beside its PEM: names, in bytes.
const keyOverhead = 256

// listingSize is about how many bytes a list of all keys takes that are granted to a user.
func (c *catalogue) listingSize(userID int64) (size int) {
	keys := c.keys()
	for _, grant := range c.snapshot.GrantsOf(userID) {
		size += keys[grant.KeyID].size // none for a token manager's
	}
	return size
}

// signatureSize is about what each signature of a batch takes beside its text in the request, in bytes: the decoded input,
// its job, the signature and its record.
const signatureSize = 256

// workSize is about how many bytes a request has the server hold beside its frame, where that is much: a long reply, or
// the many signatures of a batch, whose text may be as short as three bytes each.
func (s *Server) workSize(userID int64, request *wire.Request) int {
	if request == nil {
		return 0
	}
	switch body := request.Body.(type) {
	case *wire.ListKeys:
		return s.catalogue.Load().listingSize(userID)
	case *wire.GetKey:
		c := s.catalogue.Load()
		if key, ok := c.snapshot.Key(body.Key); ok {
			if _, granted := c.snapshot.KeyGrant(userID, key.ID); granted {
				return c.keys()[key.ID].size
			}
		}
	case *wire.SignAll:
		return signatureSize * max(len(body.Digests), len(body.Messages))
	}
	return 0
}
