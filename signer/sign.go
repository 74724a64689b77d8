package signer

import (
	"context"
	"crypto"
	"crypto/rsa"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"chancery/token"
	"chancery/tunnel/wire"
)

// job is one signature to be made: checked, so that only the token can fail it.
type job struct {
	input   []byte // digest, or the whole message for Ed25519
	options crypto.SignerOpts
	digest  wire.Digest // what the answer repeats; zero for a message
	scheme  wire.Scheme
}

func (t *session) sign(ctx context.Context, id uint64, request *wire.Sign) (wire.ResponseBody, error) {
	opened, err := t.authorise(request.Key, time.Now())
	if err != nil {
		return nil, err
	}
	j, err := newJob(opened.algorithm, request.Scheme, request.Digest, request.Message)
	if err != nil {
		return nil, err
	}
	if err := t.server.recordable(); err != nil {
		return nil, err
	}
	if err := opened.lease.take(1); err != nil {
		return nil, err
	}
	signature, err := t.perform(ctx, opened, j)
	if err != nil {
		return nil, err
	}
	if err := t.recordSigned(ctx, id, signed{request.Key, opened, request.Scheme, []job{j}, request.Terms}); err != nil {
		return nil, err
	}
	t.log.Debug("signed", "key", request.Key, "request", id)
	return &wire.SignReply{Signature: signature}, nil
}

// signAll checks every entry before the first is signed, and answers all or none. A batch
// takes its time, so that the grant is looked at again for each signature.
func (t *session) signAll(ctx context.Context, id uint64, request *wire.SignAll) (wire.ResponseBody, error) {
	opened, err := t.authorise(request.Key, time.Now())
	if err != nil {
		return nil, err
	}
	jobs, err := newJobs(opened.algorithm, request)
	if err != nil {
		return nil, err
	}
	if err := t.server.recordable(); err != nil {
		return nil, err
	}
	if err := opened.lease.take(len(jobs)); err != nil {
		return nil, err
	}
	signatures, err := t.performAll(ctx, request.Key, opened, jobs)
	if err != nil {
		return nil, err
	}
	if err := t.recordSigned(ctx, id, signed{request.Key, opened, request.Scheme, jobs, request.Terms}); err != nil {
		return nil, err
	}
	t.log.Debug("signed a batch", "key", request.Key, "request", id, "signatures", len(jobs))
	return &wire.SignAllReply{Signatures: signatures}, nil
}

// perform has the token sign. A token that lost its sessions is opened anew, so
// that the user's next unlock finds it in order.
func (t *session) perform(ctx context.Context, opened unlocked, j job) (wire.Signature, error) {
	if err := ctx.Err(); err != nil {
		return wire.Signature{}, err
	}
	signature, err := t.server.ask(ctx, opened, j)
	if err != nil {
		opened.home.failed(err)
		return wire.Signature{}, err
	}
	return wire.Signature{
		Tag: algorithms[opened.algorithm].Tag(), Bytes: signature,
		Digest: j.digest.Algorithm, Hash: j.digest.Hex,
	}, nil
}

// performAll makes the signatures of a batch, or none: the first failure stops the rest. A fixed
// set of goroutines takes the jobs in turn, since one for each would cost more than its turn.
// The grant is looked at before each signature: a batch does not outlive it.
func (t *session) performAll(ctx context.Context, key string, opened unlocked, jobs []job) ([]wire.Signature, error) {
	signatures := make([]wire.Signature, len(jobs))
	var taken atomic.Int64
	group, signing := errgroup.WithContext(ctx)
	next := func() error {
		for i := int(taken.Add(1)) - 1; i < len(jobs); i = int(taken.Add(1)) - 1 {
			if _, err := t.authorise(key, time.Now()); err != nil {
				return err
			}
			signature, err := t.perform(signing, opened, jobs[i])
			if err != nil {
				return err
			}
			signatures[i] = signature
		}
		return nil
	}
	for range min(t.server.cfg.BatchConcurrency, len(jobs)) {
		group.Go(func() error { return t.guard(next) })
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return signatures, nil
}

// ask calls the token, and is observed.
func (s *Server) ask(ctx context.Context, opened unlocked, j job) ([]byte, error) {
	s.signing.Add(1)
	defer s.signing.Add(-1)
	began := time.Now()
	signature, err := opened.key.Sign(ctx, j.input, j.options)
	s.cfg.Observer.Signed(opened.algorithm, j.scheme, time.Since(began), err)
	return signature, err
}

func newJobs(algorithm token.Algorithm, request *wire.SignAll) ([]job, error) {
	jobs := make([]job, max(len(request.Digests), len(request.Messages)))
	for i := range jobs {
		var (
			digest  wire.Digest
			message []byte
			err     error
		)
		if request.Messages != nil {
			message = request.Messages[i]
		} else {
			digest = request.Digests[i]
		}
		if jobs[i], err = newJob(algorithm, request.Scheme, digest, message); err != nil {
			return nil, err
		}
	}
	return jobs, nil
}

// newJob checks one signature's input against the key. Exactly one of digest
// and message is set.
func newJob(algorithm token.Algorithm, scheme wire.Scheme, digest wire.Digest, message []byte) (job, error) {
	if (message != nil) != (algorithm == token.Ed25519) {
		return job{}, mismatch("an %s key signs %s", algorithm, wanted(algorithm))
	}
	if message != nil {
		if scheme != wire.SchemeDefault {
			return job{}, mismatch("an %s key has no scheme %q", algorithm, scheme)
		}
		return job{input: message, options: crypto.Hash(0)}, nil
	}
	sum, err := digest.Bytes()
	if err != nil {
		return job{}, err
	}
	j := job{input: sum, options: digest.Algorithm.Hash(), digest: digest, scheme: scheme}
	if scheme == wire.SchemePSS {
		j.options = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: digest.Algorithm.Hash()}
	}
	if err := token.CheckDigest(algorithm, j.input, j.options); err != nil {
		return job{}, mismatch("an %s key does not sign %s digests with scheme %q", algorithm, digest.Algorithm, schemeName(scheme))
	}
	return j, nil
}

func wanted(algorithm token.Algorithm) string {
	if algorithm == token.Ed25519 {
		return "whole messages, not digests"
	}
	return "digests, not whole messages"
}

func schemeName(scheme wire.Scheme) string {
	if scheme == wire.SchemeDefault {
		return "default"
	}
	return string(scheme)
}

func mismatch(format string, args ...any) error {
	return fmt.Errorf("%w: %w", errAlgorithm, wire.Errorf(wire.CodeAlgorithmMismatch, format, args...))
}
