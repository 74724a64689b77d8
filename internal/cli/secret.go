package cli

import (
	"bytes"
	"context"
	"crypto/subtle"
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

	"chancery/internal/credential"
)

// maxSecretSize bounds what is read as a secret, in bytes.
const maxSecretSize = 4096

// Secret says where one secret comes from: a file, a systemd credential, a file
// descriptor, or else a prompt on the terminal. It never comes from an argument,
// the environment or the configuration's text.
type Secret struct {
	What       string // "passphrase for key \"release\"": completes prompts and errors
	File       string
	Credential string // a name below $CREDENTIALS_DIRECTORY
	Descriptor int    // -1: none
}

// AddFlags registers --NAME-file, --NAME-credential and --NAME-fd.
func (s *Secret) AddFlags(flags *pflag.FlagSet, name string) {
	flags.StringVar(&s.File, name+"-file", "", "read the "+s.What+" from this file")
	flags.StringVar(&s.Credential, name+"-credential", "", "read the "+s.What+" from this systemd credential")
	flags.IntVar(&s.Descriptor, name+"-fd", -1, "read the "+s.What+" from this file descriptor")
}

// Given tells whether the secret comes from elsewhere than a prompt.
func (s *Secret) Given() bool {
	return s.File != "" || s.Credential != "" || s.Descriptor >= 0
}

// Read returns the secret; the caller clears it after use. One line end at its end is dropped.
func (s *Secret) Read() ([]byte, error) {
	secret, given, err := s.readGiven()
	if err != nil || given {
		return secret, err
	}
	return prompt(s.What)
}

// ReadNew is Read for a secret that is being chosen: a prompt asks twice.
func (s *Secret) ReadNew() ([]byte, error) {
	secret, given, err := s.readGiven()
	if err != nil || given {
		return secret, err
	}
	if secret, err = prompt("new " + s.What); err != nil {
		return nil, err
	}
	again, err := prompt("new " + s.What + " again")
	if err != nil {
		return nil, err
	}
	defer clear(again)
	if subtle.ConstantTimeCompare(secret, again) != 1 {
		clear(secret)
		return nil, Usage("the two entries of the %s differ; nothing was changed", s.What)
	}
	return secret, nil
}

func (s *Secret) readGiven() (secret []byte, given bool, err error) {
	sources := 0
	for _, set := range []bool{s.File != "", s.Credential != "", s.Descriptor >= 0} {
		if set {
			sources++
		}
	}
	if sources > 1 {
		return nil, false, Usage("give the %s in one way only: file, credential or descriptor", s.What)
	}
	switch {
	case s.File != "":
		secret, err = Await(func() ([]byte, error) { return s.readFile(s.File) }) // it may be a pipe
	case s.Credential != "":
		secret, err = s.readCredential()
	case s.Descriptor >= 0:
		secret, err = Await(s.readDescriptor)
	}
	return secret, sources == 1, err
}

func (s *Secret) readCredential() ([]byte, error) {
	directory := os.Getenv("CREDENTIALS_DIRECTORY")
	if directory == "" {
		return nil, Usage("the %s should come from credential %q, but $CREDENTIALS_DIRECTORY is not set: start this from a systemd unit with LoadCredential=", s.What, s.Credential)
	}
	if filepath.Base(s.Credential) != s.Credential {
		return nil, Usage("credential %q is not a plain file name", s.Credential)
	}
	return s.readFile(filepath.Join(directory, s.Credential))
}

func (s *Secret) readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, &Error{Exit: ExitUsage, Code: "secret_unreadable", Message: fmt.Sprintf("cannot read the %s: %s", s.What, err), Cause: err}
	}
	defer f.Close()
	warnReadable(os.Stderr, f, s.What)
	return s.readAll(f)
}

// readDescriptor closes the descriptor, which was opened for this, unless it is a standard one: the
// next file to be opened would get its number and be taken for standard input or output.
func (s *Secret) readDescriptor() ([]byte, error) {
	if f := standardFile(s.Descriptor); f != nil {
		return s.readAll(f)
	}
	f := os.NewFile(uintptr(s.Descriptor), "descriptor")
	defer f.Close()
	return s.readAll(f)
}

func standardFile(descriptor int) *os.File {
	for i, f := range []*os.File{os.Stdin, os.Stdout, os.Stderr} {
		if i == descriptor {
			return f
		}
	}
	return nil
}

// ReadsFrom tells whether the secret would be read from the file, pipe or device that info describes.
func (s *Secret) ReadsFrom(info fs.FileInfo) bool {
	own, err := s.stat()
	return err == nil && os.SameFile(own, info)
}

// stat describes where the secret would be read from. An error means that nothing is there, which Read
// tells, or that the system has no names for descriptors.
func (s *Secret) stat() (fs.FileInfo, error) {
	if s.File != "" {
		return os.Stat(s.File)
	}
	if f := standardFile(s.Descriptor); f != nil {
		return f.Stat()
	}
	if s.Descriptor >= 0 {
		return os.Stat(fmt.Sprintf("/dev/fd/%d", s.Descriptor))
	}
	return nil, fs.ErrNotExist
}

// warnReadable warns about a file whose secret other users may have read. A pipe, and a descriptor
// under its name in /dev, is no file that stays.
func warnReadable(w io.Writer, f *os.File, what string) {
	info, err := f.Stat()
	switch {
	case err != nil, runtime.GOOS == "windows": // where permission bits say nothing
		return
	case !info.Mode().IsRegular(), info.Mode().Perm()&0o077 == 0:
		return
	case strings.HasPrefix(f.Name(), "/dev/"), strings.HasPrefix(f.Name(), "/proc/"), credential.Is(f.Name()):
		return
	}
	fmt.Fprintf(w, "%s: warning: %s with the %s has mode %04o, so that other users of this machine may have read it; run: chmod 600 %s\n",
		filepath.Base(os.Args[0]), Visible(f.Name()), Visible(what), info.Mode().Perm(), Visible(f.Name()))
}

func (s *Secret) readAll(f *os.File) ([]byte, error) {
	buffer := make([]byte, maxSecretSize+1)
	n, err := io.ReadFull(f, buffer)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		clear(buffer)
		return nil, &Error{Exit: ExitUsage, Code: "secret_unreadable", Message: fmt.Sprintf("cannot read the %s: %s", s.What, err), Cause: err}
	}
	if n > maxSecretSize {
		clear(buffer)
		return nil, Usage("the %s is longer than %d bytes", s.What, maxSecretSize)
	}
	secret := bytes.TrimSuffix(bytes.TrimSuffix(buffer[:n], []byte("\n")), []byte("\r"))
	if len(secret) == 0 {
		return nil, Usage("the %s is empty", s.What)
	}
	return secret, nil
}

// prompt asks on the terminal itself, so that it works while standard input is a pipe.
func prompt(what string) ([]byte, error) {
	tty, err := openTerminal()
	if err != nil {
		return nil, Usage("no terminal to ask for the %s: give it by file, credential or descriptor", what)
	}
	defer tty.Close()
	fd := int(tty.Fd())
	state, err := term.GetState(fd)
	if err != nil {
		return nil, Usage("nothing can be entered for the %s: %s", what, err)
	}
	secret, err := Await(func() ([]byte, error) {
		fmt.Fprintf(tty, "%s: ", what)
		return term.ReadPassword(fd)
	})
	if errors.Is(err, context.Canceled) {
		_ = term.Restore(fd, state) // the read, which would do it, is still waiting
	}
	fmt.Fprintln(tty)
	if errors.Is(err, context.Canceled) {
		return nil, err
	}
	if err != nil {
		return nil, Usage("nothing was entered for the %s", what)
	}
	if len(secret) == 0 || len(secret) > maxSecretSize {
		return nil, Usage("the %s must have 1 to %d bytes", what, maxSecretSize)
	}
	return secret, nil
}
