package main

import (
	"context"
	"crypto"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"chancery/artifact/openpgp"
	"chancery/artifact/raw"
	"chancery/client"
	"chancery/internal/cli"
	"chancery/tunnel/wire"
)

// maxCertificate bounds what is read as an OpenPGP certificate or a signature file, in bytes.
const maxCertificate = 1 << 20

type openpgpOptions struct {
	armor, binary, cleartext bool
	hash                     string
	certificate              string
}

func (a *app) signOpenPGPCommand() *cobra.Command {
	s := &signing{app: a}
	options := &openpgpOptions{}
	command := &cobra.Command{
		Use: "openpgp KEY FILE...", Short: "Make OpenPGP signatures",
		Long: "openpgp writes a detached signature of each FILE to FILE.asc, or with --binary to FILE.sig. With --cleartext,\n" +
			"FILE.asc holds the text itself and its signature. The key needs an OpenPGP certificate: the one that the server\n" +
			"keeps, the one that the configuration names for the key, or --certificate. FILE may be - for standard input,\n" +
			"if no passphrase comes from there.",
		Example: "  chancery sign openpgp release image.iso\n  gpg --verify image.iso.asc image.iso",
		Args:    cli.Args(cobra.MinimumNArgs(2)),
		RunE: func(command *cobra.Command, args []string) error {
			ctx, cancel := a.context(command)
			defer cancel()
			if err := atMostOne(command, "armor", "binary", "cleartext"); err != nil {
				return err
			}
			jobs, err := s.openpgpJobs(options, args[1:])
			if err != nil {
				return err
			}
			return s.run(ctx, args[0], jobs, options.plan)
		},
	}
	s.addFlags(command)
	flags := command.Flags()
	flags.BoolVar(&options.armor, "armor", false, "a detached signature in ASCII armour (default)")
	flags.BoolVar(&options.binary, "binary", false, "a detached binary signature")
	flags.BoolVar(&options.cleartext, "cleartext", false, "the text with its signature")
	flags.StringVar(&options.hash, "hash", "", "sha256, sha384 or sha512 (default: what suits the key)")
	flags.StringVar(&options.certificate, "certificate", "", "file with the key's OpenPGP certificate")
	return command
}

func (s *signing) openpgpJobs(o *openpgpOptions, files []string) ([]*job, error) {
	if o.hash != "" {
		if _, err := raw.ParseHash(o.hash); err != nil {
			return nil, cli.Usage("--hash: %s", withoutPackage(err.Error()))
		}
	}
	s.suffix = ".asc"
	if o.binary {
		s.suffix = ".sig"
	}
	jobs, err := s.jobs(files)
	if err != nil || !o.binary {
		return jobs, err
	}
	for _, j := range jobs {
		if j.output == stdio {
			return jobs, refuseBinary()
		}
	}
	return jobs, nil
}

func (o *openpgpOptions) format() openpgp.Format {
	switch {
	case o.binary:
		return openpgp.Binary
	case o.cleartext:
		return openpgp.Cleartext
	}
	return openpgp.Armored
}

// plan finds the certificate, and tries that it can sign at all before anything is unlocked.
func (o *openpgpOptions) plan(ctx context.Context, s *session, key *client.KeyInfo) (prepare, error) {
	certificate, err := openpgpCertificate(ctx, s.config, key, o.certificate)
	if err != nil {
		return nil, err
	}
	begin := func(out io.Writer) (*openpgp.Pending, error) {
		options := openpgp.Options{Format: o.format()}
		if o.hash != "" {
			options.Hash, _ = raw.ParseHash(o.hash)
		}
		if options.Format == openpgp.Cleartext {
			options.Text = out
		}
		return openpgp.New(certificate, options)
	}
	if _, err := begin(io.Discard); err != nil {
		return nil, err
	}
	return func(document io.Reader, out io.Writer) (prepared, error) {
		pending, err := begin(out)
		if err != nil {
			return prepared{}, err
		}
		if _, err := io.Copy(pending, document); err != nil {
			return prepared{}, err
		}
		hash, sum := pending.Digest()
		return prepared{client.Digest{Hash: hash, Sum: sum}, pending.Finish}, nil
	}, nil
}

// openpgpCertificate returns the certificate of a key: out of the named file,
// the file that the configuration names, or as the server has it. It must be for
// that key.
func openpgpCertificate(ctx context.Context, c *config, key *client.KeyInfo, file string) (*openpgp.Certificate, error) {
	if file == "" {
		file = c.key(key.Name).Certificate
	}
	var certificate *openpgp.Certificate
	var err error
	if file != "" {
		certificate, err = readCertificate(ctx, file)
	} else {
		certificate, err = serverCertificate(key)
	}
	if err != nil {
		return nil, err
	}
	public, ok := certificate.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(key.Public) {
		return nil, &cli.Error{
			Exit: cli.ExitFailed, Code: "other_key",
			Message: fmt.Sprintf("the OpenPGP certificate %s is not for key %q", certificate.Fingerprint(), key.Name),
			Hint:    "'key export --format openpgp' writes the right one",
		}
	}
	return certificate, nil
}

// serverCertificate takes the last of a key's certificates: a renewed one comes after the one it replaces.
func serverCertificate(key *client.KeyInfo) (*openpgp.Certificate, error) {
	text := ""
	for _, c := range key.Certificates {
		if c.Type == wire.CertificatePGP {
			text = c.Text
		}
	}
	if text == "" {
		_, err := certificates(key, wire.CertificatePGP, "an OpenPGP")
		return nil, err
	}
	return openpgp.ParseCertificate([]byte(text))
}

func readCertificate(ctx context.Context, path string) (*openpgp.Certificate, error) {
	content, err := readSmall(ctx, path, maxCertificate)
	if err != nil {
		return nil, err
	}
	certificate, err := openpgp.ParseCertificate(content)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", printable(path), err)
	}
	return certificate, nil
}
