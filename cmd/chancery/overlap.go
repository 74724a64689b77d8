package main

import (
	"io/fs"
	"os"
	"path/filepath"

	"chancery/internal/cli"
)

// fileSet finds files by whatever name they have: another spelling of the path, a link, or "-".
type fileSet struct {
	paths  map[string]bool
	bySize map[int64][]fs.FileInfo // not one list, which many files would make slow to search
}

func newFileSet(paths []string) *fileSet {
	set := &fileSet{paths: make(map[string]bool), bySize: make(map[int64][]fs.FileInfo)}
	for _, path := range paths {
		if path != stdio {
			set.paths[filepath.Clean(path)] = true
		}
		if info, err := stat(path); err == nil {
			set.bySize[info.Size()] = append(set.bySize[info.Size()], info)
		}
	}
	return set
}

// stat describes an input. An error means that there is none, which reading it will tell.
func stat(path string) (fs.FileInfo, error) {
	if path == stdio {
		return os.Stdin.Stat()
	}
	return os.Stat(path)
}

// holds tells whether the file of this path is one of the set, or would be if it came into being.
func (s *fileSet) holds(path string) bool {
	if s.paths[filepath.Clean(path)] {
		return true
	}
	info, err := os.Stat(path)
	if err != nil {
		return false
	}
	for _, other := range s.bySize[info.Size()] {
		if os.SameFile(info, other) {
			return true
		}
	}
	return false
}

// keepInputs refuses outputs that are inputs as well, with or without --force: what replaces an input destroys
// what was to be signed, and another signature may already be over it.
func keepInputs(jobs []*job) error {
	inputs := make([]string, len(jobs))
	for i, j := range jobs {
		inputs[i] = j.input
	}
	set := newFileSet(inputs)
	for _, j := range jobs {
		if j.output != stdio && set.holds(j.output) {
			return cli.Usage("%q, where the signature of %q would go, is itself among the files to sign", j.output, j.input)
		}
	}
	return nil
}

// keepSecrets refuses documents that are read from where a secret is read: of a pipe, nothing is left to sign,
// and a file with a passphrase is no document.
func keepSecrets(jobs []*job, secrets ...cli.Secret) error {
	for _, j := range jobs {
		info, err := stat(j.input)
		if err != nil {
			continue
		}
		for _, secret := range secrets {
			if secret.ReadsFrom(info) {
				return cli.Usage("%q would be read both as the document and as the %s; give them apart", j.input, secret.What)
			}
		}
	}
	return nil
}
