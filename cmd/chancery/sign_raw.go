package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"chancery/artifact/raw"
	"chancery/client"
	"chancery/internal/cli"
)

// rawOptions say what a raw signature is made over, and how.
type rawOptions struct {
	hash   string // a name of package raw, or "" for the one that suits the key
	scheme string // pkcs1v15, pss, or "" for the key's own
}

func (o *rawOptions) addFlags(flags *pflag.FlagSet) {
	flags.StringVar(&o.hash, "hash", "", strings.Join(raw.Hashes(), ", ")+" (default: sha256, for P-384 sha384, for P-521 sha512)")
	flags.StringVar(&o.scheme, "scheme", "", "for an RSA key: pkcs1v15 (default) or pss")
}

// check refuses what no key could satisfy.
func (o *rawOptions) check() error {
	if o.hash != "" {
		if _, err := raw.ParseHash(o.hash); err != nil {
			return cli.Usage("--hash: %s", withoutPackage(err.Error()))
		}
	}
	switch o.scheme {
	case "", "pkcs1v15", "pss":
		return nil
	}
	return cli.Usage("--scheme %q: use pkcs1v15 or pss", o.scheme)
}

// forKey returns a digest without its sum, as this key is to sign it.
func (o *rawOptions) forKey(public crypto.PublicKey) (client.Digest, error) {
	_, isRSA := public.(*rsa.PublicKey)
	if o.scheme != "" && !isRSA {
		return client.Digest{}, cli.Usage("--scheme is for RSA keys")
	}
	if _, isEd25519 := public.(ed25519.PublicKey); isEd25519 {
		if o.hash != "" {
			return client.Digest{}, cli.Usage("--hash is not for Ed25519 keys, which sign the whole file; sign a file that holds the digest, or use 'sign openpgp'")
		}
		return client.Digest{}, nil
	}
	d := client.Digest{Hash: suitableHash(public), PSS: o.scheme == "pss"}
	if o.hash != "" {
		d.Hash, _ = raw.ParseHash(o.hash) // check has tried it
	}
	return d, nil
}

func suitableHash(public crypto.PublicKey) crypto.Hash {
	if key, ok := public.(*ecdsa.PublicKey); ok {
		switch key.Curve {
		case elliptic.P384():
			return crypto.SHA384
		case elliptic.P521():
			return crypto.SHA512
		}
	}
	return crypto.SHA256
}

// read fills in the sum of a document.
func sumOf(d client.Digest, document io.Reader) (client.Digest, error) {
	var err error
	if d.Hash == 0 {
		d.Sum, err = raw.Message(document, client.MaxMessage)
	} else {
		d.Sum, err = raw.Digest(document, d.Hash)
	}
	return d, err
}

func (a *app) signRawCommand() *cobra.Command {
	s := &signing{app: a}
	options := &rawOptions{}
	command := &cobra.Command{
		Use: "raw KEY FILE...", Short: "Make raw signatures, as 'openssl dgst -verify' reads them",
		Long: "raw writes the key's bare signature of each FILE to FILE.sig: over the file's digest with an RSA or ECDSA\n" +
			"key, over the whole file, of at most 512 KiB, with an Ed25519 key. RSA signatures are as long as the modulus,\n" +
			"ECDSA's are DER, Ed25519's have 64 bytes. FILE may be - for standard input,\n" +
			"if no passphrase comes from there.",
		Example: "  chancery sign raw release image.iso\n  openssl dgst -sha256 -verify release.pem -signature image.iso.sig image.iso",
		Args:    cli.Args(cobra.MinimumNArgs(2)),
		RunE: func(command *cobra.Command, args []string) error {
			ctx, cancel := a.context(command)
			defer cancel()
			if err := options.check(); err != nil {
				return err
			}
			jobs, err := s.rawJobs(args[1:])
			if err != nil {
				return err
			}
			return s.run(ctx, args[0], jobs, options.plan)
		},
	}
	s.addFlags(command)
	options.addFlags(command.Flags())
	command.Flags().StringVar(&s.suffix, "suffix", ".sig", "what to append to FILE's name for the signature's")
	return command
}

func (s *signing) rawJobs(files []string) ([]*job, error) {
	if s.suffix == "" || strings.ContainsAny(s.suffix, `/\`) {
		return nil, cli.Usage("--suffix %q: give what to append to the file's name, such as .sig", s.suffix)
	}
	jobs, err := s.jobs(files)
	if err != nil {
		return nil, err
	}
	for _, j := range jobs {
		if j.output == stdio {
			return jobs, refuseBinary()
		}
	}
	return jobs, nil
}

func (o *rawOptions) plan(_ context.Context, _ *session, key *client.KeyInfo) (prepare, error) {
	d, err := o.forKey(key.Public)
	if err != nil {
		return nil, err
	}
	return func(document io.Reader, _ io.Writer) (prepared, error) {
		summed, err := sumOf(d, document)
		// The client has verified the signature before it is finished.
		return prepared{summed, func(signature []byte) ([]byte, error) { return signature, nil }}, err
	}, nil
}
