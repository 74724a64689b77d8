package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"chancery/internal/cli"
)

// document is an input that is being read.
type document struct {
	io.Reader
	close func()
}

// Close ends the reading.
func (d *document) Close() { d.close() }

// openInput opens a document or standard input. ctx ends the wait for it and each of its reads, also where it
// is a pipe or a terminal on which nothing comes.
func openInput(ctx context.Context, path string) (*document, error) {
	if path == stdio {
		return newDocument(ctx, os.Stdin, func() {}), nil
	}
	return openFile(ctx, path)
}

func openFile(ctx context.Context, path string) (*document, error) {
	file, err := cli.Within(ctx, func() (*os.File, error) { return os.Open(path) }) // a pipe waits for its writer
	if err != nil {
		return nil, inputError(path, err)
	}
	return newDocument(ctx, file, func() { _ = file.Close() }), nil
}

func newDocument(ctx context.Context, file *os.File, end func()) *document {
	d := &document{file, end}
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		d.stream(ctx)
	}
	return d
}

// stream has a goroutine of its own wait for what comes. It cannot be stopped while it does: when ctx ends
// or the document is closed before, it is left behind for the end of the program.
func (d *document) stream(ctx context.Context) {
	source, end := d.Reader, d.close
	reader, writer := io.Pipe()
	stop := context.AfterFunc(ctx, func() { _ = writer.CloseWithError(ctx.Err()) })
	go func() {
		_, err := io.Copy(writer, source)
		_ = writer.CloseWithError(err)
		end()
	}()
	d.Reader = reader
	d.close = func() {
		stop()
		_ = reader.Close()
	}
}

// readSmall reads a file that has no reason to be large.
func readSmall(ctx context.Context, path string, limit int64) ([]byte, error) {
	file, err := openFile(ctx, path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err != nil {
		return nil, inputError(path, err)
	}
	if int64(len(content)) > limit {
		return nil, cli.Failed("file_too_large", "%q is larger than %d bytes; is it the right file?", path, limit)
	}
	return content, nil
}

// inputError leaves what ended the reading on purpose as it is.
func inputError(path string, err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return &cli.Error{Exit: cli.ExitFailed, Code: "file_unreadable", Message: fmt.Sprintf("cannot read %q: %s", path, cause(err)), Cause: err}
}
