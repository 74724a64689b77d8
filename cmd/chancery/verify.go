package main

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"chancery/artifact/openpgp"
	"chancery/artifact/raw"
	"chancery/client"
	"chancery/internal/cli"
	"chancery/tunnel/wire"
)

// maxSignature bounds what is read as a raw signature, in bytes.
const maxSignature = 64 << 10

// verifiedView is a good signature as --json shows it.
type verifiedView struct {
	Valid       bool     `json:"valid"`
	Handle      string   `json:"handle,omitempty"`
	Hash        string   `json:"hash,omitempty"`
	Fingerprint string   `json:"fingerprint,omitempty"`
	SigningKey  string   `json:"signing_key,omitempty"`
	UserIDs     []string `json:"user_ids,omitempty"`
	Time        string   `json:"time,omitempty"`
}

func (a *app) verifyCommand() *cobra.Command {
	parent := &cobra.Command{
		Use: "verify", Short: "Verify signatures",
		Args: subcommand, RunE: help,
		Long: "verify checks a signature with a public key or certificate in a file, without any connection, or with a key of\n" +
			"the server. It exits with 0 only for a good signature.",
	}
	parent.AddCommand(a.verifyRawCommand(), a.verifyOpenPGPCommand())
	return parent
}

func (a *app) verifyRawCommand() *cobra.Command {
	var keyFile, keyName string
	options := &rawOptions{}
	command := &cobra.Command{
		Use: "raw FILE SIGNATURE", Short: "Verify a raw signature",
		Args: cli.Args(cobra.ExactArgs(2)),
		RunE: func(command *cobra.Command, args []string) error {
			ctx, cancel := a.context(command)
			defer cancel()
			if err := oneOf(command, "key-file", "key"); err != nil {
				return err
			}
			if err := options.check(); err != nil {
				return err
			}
			public, err := a.publicKey(ctx, keyFile, keyName)
			if err != nil {
				return err
			}
			return a.verifyRaw(ctx, options, public, args[0], args[1])
		},
	}
	options.addFlags(command.Flags())
	command.Flags().StringVar(&keyFile, "key-file", "", "file with the public key or an X.509 certificate, PEM")
	a.addKeyFlag(command, &keyName)
	return command
}

func (a *app) addKeyFlag(command *cobra.Command, name *string) {
	command.Flags().StringVar(name, "key", "", "ask the server for the key of this name")
	_ = command.RegisterFlagCompletionFunc("key", func(command *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		return a.completeKeys(command, nil, typed)
	})
}

func (a *app) publicKey(ctx context.Context, file, name string) (crypto.PublicKey, error) {
	if file != "" {
		return readPublicKey(ctx, file)
	}
	key, err := a.askKey(ctx, name)
	if err != nil {
		return nil, err
	}
	if key.Public == nil {
		return nil, cli.Failed("not_supported", "this program does not know keys of kind %s", called(string(key.Algorithm)))
	}
	return key.Public, nil
}

// readPublicKey reads a SubjectPublicKeyInfo or an X.509 certificate.
func readPublicKey(ctx context.Context, path string) (crypto.PublicKey, error) {
	content, err := readSmall(ctx, path, maxCertificate)
	if err != nil {
		return nil, err
	}
	unusable := cli.Failed("key_file_invalid", "%q holds neither a public key nor an X.509 certificate in PEM", path)
	block, _ := pem.Decode(content)
	if block == nil {
		return nil, unusable
	}
	switch block.Type {
	case "PUBLIC KEY":
		if public, err := x509.ParsePKIXPublicKey(block.Bytes); err == nil {
			return public, nil
		}
	case "CERTIFICATE":
		if certificate, err := x509.ParseCertificate(block.Bytes); err == nil {
			return certificate.PublicKey, nil
		}
	}
	return nil, unusable
}

func (a *app) verifyRaw(ctx context.Context, options *rawOptions, public crypto.PublicKey, file, signatureFile string) error {
	signature, err := readSmall(ctx, signatureFile, maxSignature)
	if err != nil {
		return err
	}
	d, err := options.forKey(public)
	if err != nil {
		return err
	}
	document, err := openInput(ctx, file)
	if err != nil {
		return err
	}
	defer document.Close()
	if d, err = sumOf(d, &reader{ctx: ctx, path: file, source: document}); err != nil {
		return err
	}
	if err := d.Verify(public, signature); err != nil {
		if errors.Is(err, client.ErrBadSignature) {
			return badSignature(signatureFile, file)
		}
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return cli.Failed("not_supported", "the key has no form that can be named: %w", err)
	}
	handle := wire.Handle(der)
	return a.good(verifiedView{Valid: true, Handle: handle, Hash: raw.HashName(d.Hash)}, "made by the key with handle %s", handle)
}

func badSignature(signature, file string) error {
	return &cli.Error{
		Exit: cli.ExitFailed, Code: string(client.CodeBadSignature),
		Message: fmt.Sprintf("%q is not a signature of %q by this key", signature, file),
		Hint:    "a file that was changed, another key, another hash or another scheme all look like this",
	}
}

func (a *app) verifyOpenPGPCommand() *cobra.Command {
	var certificateFile, keyName string
	var text destination
	command := &cobra.Command{
		Use: "openpgp FILE [SIGNATURE]", Short: "Verify an OpenPGP signature",
		Long: "openpgp verifies a detached signature of FILE; without SIGNATURE, FILE holds a text with a cleartext signature,\n" +
			"and --output writes the text that was signed.",
		Args: cli.Args(cobra.RangeArgs(1, 2)),
		RunE: func(command *cobra.Command, args []string) error {
			ctx, cancel := a.context(command)
			defer cancel()
			if err := oneOf(command, "certificate", "key"); err != nil {
				return err
			}
			if a.json && text.path == stdio {
				return cli.Usage("--json and the text cannot both go to standard output")
			}
			certificate, err := a.certificate(ctx, certificateFile, keyName)
			if err != nil {
				return err
			}
			if len(args) == 1 {
				return a.verifyCleartext(ctx, certificate, args[0], text)
			}
			if text.path != "" {
				return cli.Usage("--output is for cleartext signatures")
			}
			return a.verifyDetached(ctx, certificate, args[0], args[1])
		},
	}
	command.Flags().StringVar(&certificateFile, "certificate", "", "file with the OpenPGP certificate")
	a.addKeyFlag(command, &keyName)
	command.Flags().StringVarP(&text.path, "output", "o", "", "write the signed text of a cleartext signature to this file; - is standard output")
	command.Flags().BoolVar(&text.force, "force", false, "replace an output file that exists")
	return command
}

func (a *app) certificate(ctx context.Context, file, name string) (*openpgp.Certificate, error) {
	if file != "" {
		return readCertificate(ctx, file)
	}
	key, err := a.askKey(ctx, name)
	if err != nil {
		return nil, err
	}
	c, err := a.load()
	if err != nil {
		return nil, err
	}
	return openpgpCertificate(ctx, c, key, "")
}

func (a *app) verifyDetached(ctx context.Context, certificate *openpgp.Certificate, file, signatureFile string) error {
	signature, err := readSmall(ctx, signatureFile, maxCertificate)
	if err != nil {
		return err
	}
	document, err := openInput(ctx, file)
	if err != nil {
		return err
	}
	defer document.Close()
	v, err := openpgp.Verify(certificate, signature, &reader{ctx: ctx, path: file, source: document})
	if err != nil {
		return err
	}
	return a.goodOpenPGP(v)
}

// verifyCleartext lets nothing of the text out before its signature is known to be good.
func (a *app) verifyCleartext(ctx context.Context, certificate *openpgp.Certificate, file string, text destination) error {
	message, err := openInput(ctx, file)
	if err != nil {
		return err
	}
	defer message.Close()
	if text.path != "" && text.path != stdio && newFileSet([]string{file}).holds(text.path) {
		return cli.Usage("--output %q is the file to verify; write the text elsewhere", text.path)
	}
	source := &reader{ctx: ctx, path: file, source: message}
	if text.path == "" {
		v, err := openpgp.VerifyCleartext(certificate, source, nil)
		if err != nil {
			return err
		}
		return a.goodOpenPGP(v)
	}
	out, err := newSink(text.path, text.force)
	if err != nil {
		return err
	}
	defer out.discard()
	v, err := openpgp.VerifyCleartext(certificate, source, out)
	if err != nil {
		return err
	}
	if err := out.commit(); err != nil {
		return err
	}
	return a.goodOpenPGP(v)
}

func (a *app) goodOpenPGP(v *openpgp.Verification) error {
	made := v.Time.UTC().Format(time.RFC3339)
	user := ""
	if len(v.UserIDs) > 0 {
		user = " (" + printable(v.UserIDs[0]) + ")"
	}
	return a.good(verifiedView{
		Valid: true, Hash: raw.HashName(v.Hash), Fingerprint: v.Fingerprint, SigningKey: v.SigningKey, UserIDs: v.UserIDs, Time: made,
	}, "made by %s%s at %s", v.Fingerprint, user, made)
}

func (a *app) good(v verifiedView, format string, args ...any) error {
	if a.json {
		return cli.JSON(a.stdout, v)
	}
	a.say("good signature, "+format, args...)
	return nil
}
