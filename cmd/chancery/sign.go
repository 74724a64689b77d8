package main

import (
	"context"
	"errors"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"chancery/client"
	"chancery/internal/cli"
)

// signing is what the commands below sign share.
type signing struct {
	app        *app
	output     string
	suffix     string
	force      bool
	passphrase cli.Secret
}

func (a *app) signCommand() *cobra.Command {
	parent := &cobra.Command{
		Use: "sign", Short: "Sign files",
		Args: subcommand, RunE: help,
		Long: "sign signs files with a key of the server. Files are hashed here; only digests travel, except that a raw\n" +
			"Ed25519 signature is over the whole file. Many files in one call share one connection. No signature replaces a\n" +
			"file that the same call signs, even with --force.",
	}
	parent.AddCommand(a.signRawCommand(), a.signOpenPGPCommand())
	return parent
}

func (s *signing) addFlags(command *cobra.Command) {
	flags := command.Flags()
	flags.StringVarP(&s.output, "output", "o", "", "write the signature to this file; - is standard output (one FILE only)")
	flags.BoolVar(&s.force, "force", false, "replace output files that exist")
	s.passphrase.What = "key's passphrase"
	s.passphrase.AddFlags(flags, "passphrase")
	command.ValidArgsFunction = s.app.completeKeys
}

// jobs says which file goes where. No output is an input.
func (s *signing) jobs(files []string) ([]*job, error) {
	if s.output != "" && len(files) > 1 {
		return nil, cli.Usage("--output is for one file; %d were given", len(files))
	}
	jobs := make([]*job, 0, len(files))
	outputs := make(map[string]bool)
	for _, file := range files {
		j := &job{input: file, output: file + s.suffix}
		switch {
		case s.output != "":
			j.output = s.output
		case file == stdio:
			j.output = stdio
		}
		place := j.output
		if place != stdio {
			place = filepath.Clean(place)
		}
		if outputs[place] {
			return nil, cli.Usage("%q was given twice", file)
		}
		outputs[place] = true
		jobs = append(jobs, j)
	}
	if outputs[stdio] && s.app.json {
		return nil, cli.Usage("--json and a signature cannot both go to standard output; write the signature to a file with --output")
	}
	return jobs, keepInputs(jobs)
}

// run connects, unlocks the key and signs the jobs. plan says how, given the key.
func (s *signing) run(ctx context.Context, key string, jobs []*job, plan func(context.Context, *session, *client.KeyInfo) (prepare, error)) error {
	c, err := s.app.load()
	if err != nil {
		return err
	}
	passphrase := c.passphrase(key, s.passphrase)
	if err := keepSecrets(jobs, passphrase, c.identityPassphrase()); err != nil {
		return err
	}
	connected, err := s.app.connectAs(ctx, c)
	if err != nil {
		return err
	}
	defer connected.Close()
	signer, err := connected.Key(ctx, key)
	if err != nil {
		return err
	}
	prepare, err := plan(ctx, connected, signer.Info())
	if err != nil {
		return err
	}
	if err := connected.unlock(ctx, s.app, key, passphrase); err != nil {
		return err
	}
	p := &pipeline{app: s.app, session: connected, key: key, prepare: prepare, force: s.force}
	err = p.run(ctx, jobs)
	return s.report(signer.Info(), jobs, err)
}

// signedView is one document as --json shows it.
type signedView struct {
	File      string     `json:"file"`
	Signature string     `json:"signature,omitempty"` // the output's path
	Error     *errorView `json:"error,omitempty"`
}

type errorView struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// report tells the results and turns them into the command's error: all is
// what stopped the whole run.
func (s *signing) report(key *client.KeyInfo, jobs []*job, all error) error {
	if s.app.json {
		if err := s.printJSON(key, jobs); err != nil {
			return err
		}
	}
	failed := slices.DeleteFunc(slices.Clone(jobs), func(j *job) bool { return j.err == nil })
	if len(failed) == 0 {
		return nil
	}
	if all == nil && len(jobs) == 1 {
		return failed[0].err
	}
	for _, j := range failed {
		if e := told(j.err); !s.app.json && (all == nil || !errors.Is(j.err, all)) {
			s.app.warn("%s: %s [%s]", printable(j.input), e.Message, e.Code)
		}
	}
	if all != nil {
		e := *told(all)
		if done := len(jobs) - len(failed); done > 0 {
			e.Hint = "signed before this: " + count(done, len(jobs)) + "; 'wrote' names them"
		}
		return &e
	}
	e := cli.Failed("partly_failed", "%s not signed", count(len(failed), len(jobs)))
	return e
}

func (s *signing) printJSON(key *client.KeyInfo, jobs []*job) error {
	files := make([]signedView, len(jobs))
	for i, j := range jobs {
		files[i] = signedView{File: j.input, Signature: j.output}
		if j.err != nil {
			e := told(j.err)
			files[i] = signedView{File: j.input, Error: &errorView{e.Code, e.Message}}
		}
	}
	return cli.JSON(s.app.stdout, map[string]any{"key": key.Name, "handle": key.Handle, "files": files})
}
