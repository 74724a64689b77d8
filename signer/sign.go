package signer

import (
	"cmp"
	"context"
	"crypto"
	"crypto/rsa"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"chancery/signer/queue"
	"chancery/token"
	"chancery/token/worker"
	"chancery/tunnel/wire"
)

// job is one signature to be made: checked, so that only the token can fail it.
type job struct {
	input   []byte // digest, or the whole message for Ed25519
	options crypto.SignerOpts
	digest  wire.Digest // what the answer repeats; zero for a message
	scheme  wire.Scheme
}

func (t *session) sign(ctx context.Context, id uint64, request *wire.Sign, m *member) (wire.ResponseBody, error) {
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
	made := signed{request.Key, opened, request.Scheme, []job{j}, request.Terms}
	signature, err := t.signOne(ctx, id, made, m)
	if err != nil {
		return nil, err
	}
	t.log.Debug("signed", "key", request.Key, "request", id)
	return &wire.SignReply{Signature: signature}, nil
}

// signOne makes and records one signature, together with those of the request's group where it has one.
func (t *session) signOne(ctx context.Context, id uint64, made signed, m *member) (wire.Signature, error) {
	if made.opened.lease.limited {
		m.leave() // so that nobody's failure uses up another's signatures
	}
	if m.isOpen() {
		return m.sign(ctx, work{made.key, made.opened, made.jobs[0], t.signedRecords(id, made)})
	}
	var signatures [1]wire.Signature
	if err := t.perform(ctx, made.key, made.opened, made.jobs, signatures[:]); err != nil {
		return wire.Signature{}, err
	}
	return signatures[0], t.recordSigned(ctx, id, made)
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

// perform waits for a turn at the token and has it make some signatures of one request. The grant is looked at when the
// turn has come. A token that failed is opened anew, so that the user's next unlock finds it in order. What of the lease was
// taken for the signatures is given back where the token is not asked for them.
func (t *session) perform(ctx context.Context, key string, opened unlocked, jobs []job, signatures []wire.Signature) error {
	turn, err := opened.home.slot.queue.Acquire(ctx, queue.Ticket{User: t.userID, Priority: opened.priority, Cost: int64(len(jobs))})
	if err != nil {
		opened.lease.giveBack(len(jobs))
		return queued(err)
	}
	defer turn.Release()
	if _, err := t.authorise(key, time.Now()); err != nil {
		opened.lease.giveBack(len(jobs))
		return err
	}
	made, err := t.server.ask(ctx, t.order(opened, jobs), opened, jobs[0].scheme)
	if errors.Is(err, worker.ErrCapability) { // revoked meanwhile: say why
		_, why := t.authorise(key, time.Now())
		return cmp.Or(why, err)
	}
	if err != nil {
		opened.home.failed(err)
		return &callError{err}
	}
	tag := algorithms[opened.algorithm].Tag()
	for i, signature := range made {
		digest := jobs[i].digest
		signatures[i] = wire.Signature{Tag: tag, Bytes: signature, Digest: digest.Algorithm, Hash: digest.Hex}
	}
	return nil
}

// callError says that it was the token that failed.
type callError struct{ error }

func (e *callError) Unwrap() error { return e.error }

// queued has a client that finds the queue full told when to come back.
func queued(err error) error {
	var full *queue.FullError
	if errors.As(err, &full) {
		return fmt.Errorf("%w: %w", err, busy(full.RetryAfter, "too many requests wait for the token that holds this key; try again"))
	}
	return err
}

func (t *session) order(opened unlocked, jobs []job) worker.Order {
	order := worker.Order{
		Holder:     worker.Holder{Session: t.id, User: t.userID},
		Capability: opened.capability, KeyID: opened.tokenKeyID,
		Inputs: make([][]byte, len(jobs)), Options: jobs[0].options,
	}
	for i := range jobs {
		order.Inputs[i] = jobs[i].input
	}
	return order
}

// performAll makes the signatures of a batch, or none: the first failure stops the rest. It is cut into
// pieces that queue by themselves, so that others' requests get their turns in between.
func (t *session) performAll(ctx context.Context, key string, opened unlocked, jobs []job) ([]wire.Signature, error) {
	signatures := make([]wire.Signature, len(jobs))
	cutter := &cutter{opened: opened, jobs: jobs}
	group, signing := errgroup.WithContext(ctx)
	next := func() error {
		for p, ok := cutter.next(); ok; p, ok = cutter.next() {
			if err := t.perform(signing, key, opened, jobs[p.from:p.to], signatures[p.from:p.to]); err != nil {
				return err
			}
		}
		return nil
	}
	for range min(t.server.cfg.BatchConcurrency, len(jobs)) {
		group.Go(func() error { return t.guard(next) })
	}
	if err := group.Wait(); err != nil {
		opened.lease.giveBack(cutter.left())
		return nil, err
	}
	return signatures, nil
}

// piece is a part of a batch that goes to the token in one call.
type piece struct{ from, to int }

// cutter cuts a batch into pieces that share their options, as large as the token's pace wants them at the time.
type cutter struct {
	opened unlocked
	jobs   []job

	mu  sync.Mutex
	cut int // jobs
}

func (c *cutter) next() (piece, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	left := c.jobs[c.cut:]
	if len(left) == 0 {
		return piece{}, false
	}
	size, n := c.opened.pieceSize(len(left)), 1
	for n < min(size, len(left)) && left[n].hash() == left[0].hash() {
		n++
	}
	p := piece{c.cut, c.cut + n}
	c.cut = p.to
	return p, true
}

// left is how many jobs are in no piece.
func (c *cutter) left() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.jobs) - c.cut
}

const (
	// maxPiece bounds what goes to the token in one call, in signatures.
	maxPiece = 16
	// pieceTime bounds for how long a call keeps a place at the token: others' turns must come soon.
	pieceTime = 100 * time.Millisecond
)

// pieceSize is how many of a session's signatures with the key go to the token in one call.
func (u *unlocked) pieceSize(signatures int) int {
	slot := u.home.slot
	return pieceSize(slot.pace.of(u.algorithm), slot.queue.Slots(), signatures)
}

// pieceSize has signatures fill all the calls that the token takes at once before two of them share one. While nobody knows how long
// each takes, none do.
func pieceSize(each time.Duration, slots, signatures int) int {
	if each <= 0 {
		return 1
	}
	return max(1, min(signatures/slots, int(pieceTime/each), maxPiece))
}

// hash is the only part of a batch's options that may differ from job to job.
func (j job) hash() crypto.Hash { return j.options.HashFunc() }

// ask calls the token, and is observed for each signature.
func (s *Server) ask(ctx context.Context, order worker.Order, opened unlocked, scheme wire.Scheme) ([][]byte, error) {
	n := len(order.Inputs)
	s.signing.Add(int64(n))
	defer s.signing.Add(int64(-n))
	began := time.Now()
	signatures, err := opened.home.Sign(ctx, order)
	took := time.Since(began) / time.Duration(n)
	if err == nil {
		opened.home.slot.pace.measured(opened.algorithm, took)
	}
	for range n {
		s.cfg.Observer.Signed(opened.algorithm, scheme, took, err)
	}
	return signatures, err
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
