package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/pflag"
	"golang.org/x/term"

	"chancery/internal/cli"
)

// stdio is the name of standard input and output on the command line.
const stdio = "-"

// maxTemporaryBase is how much of an output's name goes into that of its temporary file, in bytes: no more than
// what a name of 255 bytes, the usual limit, has room for.
const maxTemporaryBase = 200

// sink is an output that comes into being as a whole or not at all. What is
// written goes to a temporary file, for a path beside it.
type sink struct {
	path      string // or stdio
	force     bool   // replace what is there
	temporary *os.File
}

// newSink begins an output. A path that exists is refused unless force is set.
func newSink(path string, force bool) (*sink, error) {
	s := &sink{path: path, force: force}
	var err error
	if path == stdio {
		s.temporary, err = os.CreateTemp("", program+"-*")
	} else {
		if err := s.vacant(); err != nil {
			return nil, err
		}
		s.temporary, err = createBeside(path)
	}
	if err != nil {
		return nil, outputError(path, err)
	}
	return s, nil
}

func (s *sink) Write(b []byte) (int, error) {
	n, err := s.temporary.Write(b)
	if err != nil {
		return n, outputError(s.path, err)
	}
	return n, nil
}

// vacant refuses a path where something is, unless it is a file or a link and to be replaced.
func (s *sink) vacant() error {
	info, err := os.Lstat(s.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return outputError(s.path, err)
	case info.IsDir():
		return cli.Failed("file_exists", "%q is a directory", s.path)
	case !info.Mode().IsRegular() && info.Mode()&fs.ModeSymlink == 0:
		// A file in its place would reach nobody who reads from there, and take the device from all others.
		e := cli.Failed("file_exists", "%q is a pipe, a device or a socket, which no file may replace", s.path)
		e.Hint = "write to standard output with --output -, or elsewhere"
		return e
	case !s.force:
		return existsError(s.path)
	}
	return nil
}

func existsError(path string) error {
	e := cli.Failed("file_exists", "%q exists already", path)
	e.Hint = "replace it with --force, or write elsewhere with --output"
	return e
}

// createBeside makes a temporary file in the directory of path, with the
// permissions that the umask leaves of 0644.
func createBeside(path string) (*os.File, error) {
	base := filepath.Base(path)
	base = strings.ToValidUTF8(base[:min(len(base), maxTemporaryBase)], "") // not with half a character at its end
	name := fmt.Sprintf(".%s.%s.tmp", base, rand.Text()[:10])
	return os.OpenFile(filepath.Join(filepath.Dir(path), name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
}

// commit makes the output appear. After an error nothing has.
func (s *sink) commit() error {
	defer s.discard()
	if s.path == stdio {
		return s.print()
	}
	if err := s.temporary.Sync(); err != nil {
		return outputError(s.path, err)
	}
	if err := s.temporary.Close(); err != nil {
		return outputError(s.path, err)
	}
	if err := s.place(); err != nil {
		return outputError(s.path, err)
	}
	syncDirectory(filepath.Dir(s.path))
	return nil
}

// place gives the temporary file its name. A link, unlike a rename, fails when
// somebody else has taken the name meanwhile; not every file system has links.
func (s *sink) place() error {
	if s.force {
		return os.Rename(s.temporary.Name(), s.path)
	}
	err := os.Link(s.temporary.Name(), s.path)
	if err == nil || errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := s.vacant(); err != nil {
		return err
	}
	return os.Rename(s.temporary.Name(), s.path)
}

// print copies to standard output.
func (s *sink) print() error {
	if _, err := s.temporary.Seek(0, io.SeekStart); err != nil {
		return outputError(s.path, err)
	}
	if _, err := io.Copy(os.Stdout, s.temporary); err != nil {
		return outputError(s.path, err)
	}
	return nil
}

// discard removes the temporary file. It may be called more than once.
func (s *sink) discard() {
	_ = s.temporary.Close()
	_ = os.Remove(s.temporary.Name()) // it is gone already where it was renamed
}

// syncDirectory makes a new name durable, where the system can.
func syncDirectory(path string) {
	if runtime.GOOS == "windows" {
		return
	}
	directory, err := os.Open(path)
	if err != nil {
		return
	}
	defer directory.Close()
	_ = directory.Sync()
}

func outputError(path string, err error) error {
	if path == stdio {
		path = "standard output"
	}
	var known *cli.Error
	if errors.As(err, &known) {
		return err
	}
	if errors.Is(err, fs.ErrExist) {
		return existsError(path)
	}
	return &cli.Error{Exit: cli.ExitFailed, Code: "output_failed", Message: fmt.Sprintf("cannot write %q: %s", path, cause(err)), Cause: err}
}

// cause is an error without the path that the message around it names already.
func cause(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	var link *os.LinkError
	if errors.As(err, &link) {
		return link.Err
	}
	return err
}

// destination is where a command's single result goes.
type destination struct {
	path  string
	force bool
}

func (d *destination) addFlags(flags *pflag.FlagSet, what string) {
	flags.StringVarP(&d.path, "output", "o", stdio, "write "+what+" to this file; - is standard output")
	flags.BoolVar(&d.force, "force", false, "replace an output file that exists")
}

// check refuses early what write would refuse.
func (d *destination) check() error {
	if d.path == stdio {
		return nil
	}
	return (&sink{path: d.path, force: d.force}).vacant()
}

func (d *destination) write(content []byte) error {
	s, err := newSink(d.path, d.force)
	if err != nil {
		return err
	}
	defer s.discard()
	if _, err := s.Write(content); err != nil {
		return err
	}
	return s.commit()
}

// refuseBinary keeps bytes that are no text off a terminal.
func refuseBinary() error {
	if !term.IsTerminal(int(os.Stdout.Fd())) {
		return nil
	}
	return cli.Usage("a binary signature would go to the terminal; write it to a file with --output")
}
