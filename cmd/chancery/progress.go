package main

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// largeInput is from how many bytes on hashing takes long enough to show progress.
const largeInput = 256 << 20

// progress shows how much has been hashed. Its zero value shows nothing.
type progress struct{ bar *progressbar.ProgressBar }

// newProgress returns one that shows itself if there is much to hash and
// somebody watches.
func (a *app) newProgress(jobs []*job) progress {
	if a.quiet || a.json || !term.IsTerminal(int(os.Stderr.Fd())) {
		return progress{}
	}
	var total int64
	for _, j := range jobs {
		if info, err := os.Stat(j.input); err == nil && info.Mode().IsRegular() {
			total += info.Size()
		}
	}
	if total < largeInput {
		return progress{}
	}
	return progress{progressbar.NewOptions64(total,
		progressbar.OptionSetWriter(os.Stderr),
		progressbar.OptionSetDescription("hashing"),
		progressbar.OptionShowBytes(true),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionSetWidth(30),
		progressbar.OptionClearOnFinish(),
	)}
}

// above runs print with the bar out of the way.
func (p progress) above(print func()) {
	if p.bar != nil {
		_ = p.bar.Clear()
	}
	print()
}

func (p progress) close() {
	if p.bar != nil && !p.bar.IsFinished() {
		_ = p.bar.Clear()
		_ = p.bar.Exit()
	}
}

// reader is a document on its way into a hash: it counts, and ends with ctx.
type reader struct {
	ctx      context.Context
	path     string
	source   io.Reader
	progress progress
}

func (r *reader) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err // of a regular file, whose reads take no time, nothing else says so
	}
	n, err := r.source.Read(b)
	if r.progress.bar != nil {
		_ = r.progress.bar.Add(n)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return n, inputError(r.path, err)
	}
	return n, err
}
