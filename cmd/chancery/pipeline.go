package main

import (
	"context"
	"errors"
	"io"
	"runtime"
	"sync"

	"chancery/client"
)

const (
	batchSize      = 16 // signatures in one request
	batchesInWay   = 4  // requests at once
	maxHashers     = 8
	signAgainTimes = 3 // how often a batch is signed again after the connection to a version 2 server broke
)

// job is one document on its way to its signature.
type job struct {
	input, output string // paths, or stdio
	sink          *sink
	prepared
	err error
}

// prepared is a document that has been read.
type prepared struct {
	digest client.Digest
	// finish turns the raw signature into what is written at the output's end.
	finish func(signature []byte) ([]byte, error)
}

// prepare reads a document and writes to out what the output begins with.
type prepare func(document io.Reader, out io.Writer) (prepared, error)

// pipeline signs documents: some are hashed while others are signed, all on one connection.
type pipeline struct {
	app      *app
	session  *session
	key      string
	prepare  prepare
	force    bool
	progress progress

	printing sync.Mutex
}

// run signs all jobs and notes in each how it ended. What one document causes
// stops that one only; what the server refuses stops all.
func (p *pipeline) run(ctx context.Context, jobs []*job) error {
	p.progress = p.app.newProgress(jobs)
	defer p.progress.close()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	ready := p.hash(ctx, jobs)
	var signing sync.WaitGroup
	for range batchesInWay {
		signing.Go(func() {
			for first := range ready {
				if err := p.sign(ctx, gather(first, ready)); err != nil {
					stop(err)
				}
			}
		})
	}
	signing.Wait()
	return overall(context.Cause(ctx), jobs)
}

// overall is what ended the run. That its time ran out is not all of it when signatures may have been made.
func overall(cause error, jobs []*job) error {
	if !errors.Is(cause, context.DeadlineExceeded) {
		return cause
	}
	for _, j := range jobs {
		if errors.Is(j.err, client.ErrInterrupted) {
			return j.err
		}
	}
	return cause
}

// hash prepares the jobs in some goroutines, which run ahead of the signing by
// one batch. The channel is closed after the last job.
func (p *pipeline) hash(ctx context.Context, jobs []*job) <-chan *job {
	waiting := make(chan *job)
	ready := make(chan *job, batchSize)
	go func() {
		defer close(waiting)
		for _, j := range jobs {
			waiting <- j
		}
	}()
	var hashing sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), maxHashers, len(jobs)) {
		hashing.Go(func() {
			for j := range waiting {
				if err := p.read(ctx, j); err != nil {
					p.done(j, err)
					continue
				}
				ready <- j
			}
		})
	}
	go func() {
		hashing.Wait()
		close(ready)
	}()
	return ready
}

// read hashes one document. Its output is begun before, so that a signature is
// not made for nothing.
func (p *pipeline) read(ctx context.Context, j *job) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	document, err := openInput(ctx, j.input)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return err
	}
	defer document.Close()
	if j.sink, err = newSink(j.output, p.force); err != nil {
		return err
	}
	j.prepared, err = p.prepare(&reader{ctx: ctx, path: j.input, source: document, progress: p.progress}, j.sink)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// gather adds to a first job what else is ready, up to one batch.
func gather(first *job, ready <-chan *job) []*job {
	batch := []*job{first}
	for len(batch) < batchSize {
		select {
		case next, ok := <-ready:
			if !ok {
				return batch
			}
			batch = append(batch, next)
		default:
			return batch
		}
	}
	return batch
}

// sign gets a batch's signatures and writes them. Only an error that the other
// batches would meet as well is returned. A server of chancery/1 knows what the
// client library repeats; with one of version 2, signing again is told, since it
// may have signed already.
func (p *pipeline) sign(ctx context.Context, batch []*job) error {
	var err error
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	for again := 0; err == nil && len(batch) > 0; again++ {
		var signatures [][]byte
		signatures, err = p.session.SignAll(ctx, p.key, digestsOf(batch))
		batch = p.write(batch, signatures)
		if err != nil && ctx.Err() != nil && !errors.Is(err, client.ErrInterrupted) {
			err = context.Cause(ctx) // what stopped the run, not that it stopped
		}
		if errors.Is(err, client.ErrInterrupted) && ctx.Err() == nil && !p.session.Extended() && again < signAgainTimes {
			p.warn("%s; signing %d again (%d of %d)", told(err).Message, len(batch), again+1, signAgainTimes)
			err = nil
		}
	}
	for _, j := range batch {
		p.done(j, err)
	}
	return err
}

func digestsOf(batch []*job) []client.Digest {
	digests := make([]client.Digest, len(batch))
	for i, j := range batch {
		digests[i] = j.digest
	}
	return digests
}

// write finishes the jobs that have a signature and returns the others.
func (p *pipeline) write(batch []*job, signatures [][]byte) (unsigned []*job) {
	for i, j := range batch {
		if i >= len(signatures) || signatures[i] == nil {
			unsigned = append(unsigned, j)
			continue
		}
		p.done(j, j.complete(signatures[i]))
	}
	return unsigned
}

func (j *job) complete(signature []byte) error {
	last, err := j.finish(signature)
	if err != nil {
		return err
	}
	if _, err := j.sink.Write(last); err != nil {
		return err
	}
	return j.sink.commit()
}

// done notes how a job ended, tells it, and leaves nothing behind.
func (p *pipeline) done(j *job, err error) {
	j.err = err
	if j.sink != nil {
		j.sink.discard()
	}
	if err == nil && j.output != stdio {
		p.say("wrote %s", printable(j.output))
	}
}

func (p *pipeline) say(format string, args ...any) {
	p.printing.Lock()
	defer p.printing.Unlock()
	p.progress.above(func() { p.app.say(format, args...) })
}

func (p *pipeline) warn(format string, args ...any) {
	p.printing.Lock()
	defer p.printing.Unlock()
	p.progress.above(func() { p.app.warn(format, args...) })
}
