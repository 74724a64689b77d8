package client

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"chancery/tunnel/wire"
)

// requestOverhead is more than what surrounds the digests of a request, key name included, in bytes of JSON.
const requestOverhead = 1024

// MaxMessage is the longest message, in bytes, that an Ed25519 key signs for a
// client: base64 and its surroundings must fit one frame under chancery/1.
const MaxMessage = 512 << 10

// SignAll signs many digests with one key and returns the signatures in the
// same order, each verified: RSA in the modulus' size, ECDSA as DER, Ed25519 as
// 64 bytes. It splits the list into batches and keeps several on the way.
//
// With an error, the result still holds the signatures that were made before
// it, and nil where there is none. After ErrInterrupted the missing ones may be
// asked for again.
func (c *Client) SignAll(ctx context.Context, key string, digests []Digest) ([][]byte, error) {
	info, err := c.known(ctx, key)
	if err != nil {
		return nil, err
	}
	for _, d := range digests {
		if err := d.Check(info.Public); err != nil {
			return nil, told("sign", key, err)
		}
	}
	batches, err := c.split(ctx, digests)
	if err != nil {
		return nil, told("sign", key, err)
	}
	signatures := make([][]byte, len(digests))
	var failed atomic.Bool
	var group errgroup.Group
	group.SetLimit(c.cfg.InFlight)
	for _, b := range batches {
		group.Go(func() error {
			if failed.Load() {
				return nil // the error that is returned is another batch's
			}
			err := c.signBatch(ctx, info, digests[b.from:b.to], signatures[b.from:b.to])
			if err != nil {
				failed.Store(true)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return signatures, told("sign", key, err)
	}
	return signatures, nil
}

// errTooMany says that the token had no time for a batch of more than one.
var errTooMany = errors.New("client: too many signatures in one request for this token")

// batch is a range of digests that one request asks for.
type batch struct{ from, to int }

// split cuts the list where the frame is full, the batch is long enough, or the
// scheme changes. It connects, for the limits are the server's.
func (c *Client) split(ctx context.Context, digests []Digest) ([]batch, error) {
	limit, err := c.limits(ctx, digests)
	if err != nil {
		return nil, err
	}
	var batches []batch
	size := 0
	for i, d := range digests {
		own := encodedSize(d)
		if own+requestOverhead > limit {
			return nil, failure(CodeTooLarge, "a message of %d bytes does not fit into a request; sign its digest, or an OpenPGP signature over it", len(d.Sum))
		}
		last := len(batches) - 1
		if last < 0 || size+own+requestOverhead > limit || batches[last].to-batches[last].from >= min(c.cfg.BatchSize, wire.MaxBatch) || !together(digests[i-1], d) {
			batches, size = append(batches, batch{i, i}), 0
			last++
		}
		batches[last].to++
		size += own
	}
	return batches, nil
}

// limits returns the server's limit for a request, after checking that it can
// read these digests at all.
func (c *Client) limits(ctx context.Context, digests []Digest) (int, error) {
	var once sync.Once
	var limit int
	var extended bool
	_, err := c.repeat(ctx, func(ctx context.Context) (wire.ResponseBody, error) {
		conn, err := c.connection(ctx)
		if err == nil {
			once.Do(func() { limit, extended = conn.limit, conn.extended })
		}
		return nil, err
	})
	if err != nil || extended {
		return limit, err
	}
	for _, d := range digests {
		if name, err := wire.DigestAlgorithmOf(d.Hash); err != nil || !name.Version2() || d.PSS {
			return 0, failure(wire.CodeUnsupported, "this server signs with RSA PKCS #1 v1.5 or P-256, and SHA-256, SHA-512, SHA3-256 or SHA3-512 only")
		}
	}
	return limit, nil
}

// encodedSize is what a digest takes in a list, in bytes of JSON.
func encodedSize(d Digest) int {
	if d.Hash == 0 {
		return (len(d.Sum)+2)/3*4 + 3
	}
	return 2*len(d.Sum) + 20
}

func together(a, b Digest) bool {
	return a.PSS == b.PSS && (a.Hash == 0) == (b.Hash == 0)
}

// signBatch asks for some signatures in one request and fills in those that are
// valid. A batch that the token cannot make in the server's time is halved:
// repeated as it is, it would fail for ever.
func (c *Client) signBatch(ctx context.Context, key *KeyInfo, digests []Digest, signatures [][]byte) error {
	body, err := c.sign(ctx, key.Name, signRequest(key.Name, digests))
	if errors.Is(err, errTooMany) {
		half := len(digests) / 2
		c.cfg.Log.Debug("halving a batch", "key", key.Name, "size", len(digests))
		if err := c.signBatch(ctx, key, digests[:half], signatures[:half]); err != nil {
			return err
		}
		return c.signBatch(ctx, key, digests[half:], signatures[half:])
	}
	if err != nil {
		return err
	}
	for i, signature := range made(body) {
		if signature.Tag != key.Algorithm.Tag() {
			return failure(CodeBadReply, "the server answered with a %q signature for a key of kind %q", signature.Tag, key.Algorithm)
		}
		if err := digests[i].Verify(key.Public, signature.Bytes); err != nil {
			return err
		}
		signatures[i] = signature.Bytes
	}
	return nil
}

func signRequest(key string, digests []Digest) wire.RequestBody {
	scheme := digests[0].scheme()
	if digests[0].Hash == 0 {
		messages := make([][]byte, len(digests))
		for i, d := range digests {
			messages[i] = append([]byte{}, d.Sum...)
		}
		if len(messages) == 1 {
			return &wire.Sign{Key: key, Scheme: scheme, Message: messages[0]}
		}
		return &wire.SignAll{Key: key, Scheme: scheme, Messages: messages}
	}
	hashed := make([]wire.Digest, len(digests))
	for i, d := range digests {
		name, _ := wire.DigestAlgorithmOf(d.Hash) // Check has seen it
		hashed[i] = wire.NewDigest(name, d.Sum)
	}
	if len(hashed) == 1 {
		return &wire.Sign{Key: key, Scheme: scheme, Digest: hashed[0]}
	}
	return &wire.SignAll{Key: key, Scheme: scheme, Digests: hashed}
}

// made returns the signatures of a reply, which are as many as were asked for.
func made(reply wire.ResponseBody) []wire.Signature {
	if all, ok := reply.(*wire.SignAllReply); ok {
		return all.Signatures
	}
	return []wire.Signature{reply.(*wire.SignReply).Signature}
}
