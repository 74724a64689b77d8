package main

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"unicode"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"

	"chancery/artifact/openpgp"
	"chancery/client"
	"chancery/internal/cli"
	"chancery/tunnel/wire"
)

func (a *app) keyExportCommand() *cobra.Command {
	var format string
	var to destination
	command := &cobra.Command{
		Use: "export KEY", Short: "Write a key's public half, or its certificate",
		Args:              cli.Args(cobra.ExactArgs(1)),
		ValidArgsFunction: a.completeKeys,
		RunE: func(command *cobra.Command, args []string) error {
			ctx, cancel := a.context(command)
			defer cancel()
			if err := to.check(); err != nil {
				return err
			}
			key, err := a.askKey(ctx, args[0])
			if err != nil {
				return err
			}
			content, err := export(key, format)
			if err != nil {
				return err
			}
			if err := to.write(content); err != nil {
				return err
			}
			if to.path != stdio {
				a.say("wrote %s", printable(to.path))
			}
			return nil
		},
	}
	command.Flags().StringVar(&format, "format", "pem", "pem (SubjectPublicKeyInfo), openpgp, x509 or ssh")
	to.addFlags(command.Flags(), "the key")
	_ = command.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{"pem", "openpgp", "x509", "ssh"}, cobra.ShellCompDirectiveNoFileComp))
	return command
}

// export returns the text of a key in one format.
func export(key *client.KeyInfo, format string) ([]byte, error) {
	switch format {
	case "pem":
		return []byte(strings.TrimSpace(key.PublicPEM) + "\n"), nil
	case "openpgp":
		return certificates(key, wire.CertificatePGP, "an OpenPGP")
	case "x509":
		return certificates(key, wire.CertificateX509, "an X.509")
	case "ssh":
		public, err := ssh.NewPublicKey(key.Public)
		if err != nil {
			return nil, cli.Failed("not_supported", "key %q has no form for SSH: its kind is %s", key.Name, called(string(key.Algorithm)))
		}
		line := bytes.TrimSpace(ssh.MarshalAuthorizedKey(public))
		return fmt.Appendf(nil, "%s %s\n", line, printable(key.Name)), nil
	}
	return nil, cli.Usage("--format %q: use pem, openpgp, x509 or ssh", format)
}

func certificates(key *client.KeyInfo, kind wire.CertificateType, name string) ([]byte, error) {
	var found []byte
	for _, c := range key.Certificates {
		if c.Type != kind {
			continue
		}
		text, err := certificateOf(key, c)
		if err != nil {
			return nil, err
		}
		found = append(found, text...)
	}
	if found == nil {
		return nil, &cli.Error{
			Exit: cli.ExitFailed, Code: "no_certificate",
			Message: fmt.Sprintf("key %q has no certificate of this kind: %s one must be made first", key.Name, name),
			Hint:    "a manager of the key makes one on the server with 'chancery-server key certify'",
		}
	}
	return found, nil
}

// certificateOf returns the text of a key's certificate and nothing else that the server may have
// sent with it, after checking that it is over this key: whoever exports one trusts it from then on.
func certificateOf(key *client.KeyInfo, c wire.Certificate) ([]byte, error) {
	text, public, err := openpgpText(c.Text)
	if c.Type == wire.CertificateX509 {
		text, public, err = x509Text(c.Text)
	}
	if err != nil {
		return nil, &cli.Error{
			Exit: cli.ExitFailed, Code: string(client.CodeBadReply), Cause: err,
			Message: fmt.Sprintf("a certificate that the server sent for key %q cannot be read", key.Name),
		}
	}
	if half, ok := public.(interface{ Equal(crypto.PublicKey) bool }); !ok || !half.Equal(key.Public) {
		return nil, &cli.Error{
			Exit: cli.ExitFailed, Code: "other_key",
			Message: fmt.Sprintf("a certificate that the server sent for key %q is over another key, so nothing was written", key.Name),
			Hint:    "tell the server's operator",
		}
	}
	return text, nil
}

func x509Text(text string) ([]byte, crypto.PublicKey, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, nil, errors.New("not a certificate in PEM")
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes}), certificate.PublicKey, nil
}

func openpgpText(text string) ([]byte, crypto.PublicKey, error) {
	const begin, end = "-----BEGIN PGP PUBLIC KEY BLOCK-----", "-----END PGP PUBLIC KEY BLOCK-----"
	_, text, found := strings.Cut(text, begin)
	text, _, ended := strings.Cut(text, end)
	if !found || !ended || strings.ContainsFunc(text, func(r rune) bool { return r != '\n' && r != '\r' && !unicode.IsPrint(r) }) {
		return nil, nil, errors.New("not an armoured OpenPGP certificate")
	}
	armored := []byte(begin + text + end + "\n")
	certificate, err := openpgp.ParseCertificate(armored)
	if err != nil {
		return nil, nil, err
	}
	return armored, certificate.Public(), nil
}
