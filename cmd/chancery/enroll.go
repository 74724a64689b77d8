package main

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"chancery/access"
	"chancery/internal/cli"
	"chancery/tunnel"
)

func (a *app) enrollCommand() *cobra.Command {
	var user string
	var generate bool
	secret := cli.Secret{What: "passphrase"}
	command := &cobra.Command{
		Use: "enroll", Short: "Choose a passphrase and print what a manager needs to grant you a key",
		Long: "enroll asks for a new passphrase and prints an enrolment string, from which a manager grants you a key\n" +
			"without learning the passphrase. The string is no secret, but whoever can replace it on its way gets the\n" +
			"grant: compare its fingerprint over another channel. Enroll once for each key, with a passphrase of its own.",
		Args: cli.Args(cobra.NoArgs),
		RunE: func(command *cobra.Command, _ []string) error {
			if err := atMostOne(command, "generate", "passphrase-file", "passphrase-credential", "passphrase-fd"); err != nil {
				return err
			}
			return a.enroll(user, generate, secret)
		},
	}
	command.Flags().StringVar(&user, "user", "", "user name (default: the common name in the configured certificate)")
	command.Flags().BoolVar(&generate, "generate", false, "make a strong passphrase and show it once, on standard error")
	secret.AddFlags(command.Flags(), "passphrase")
	return command
}

func (a *app) enroll(user string, generate bool, secret cli.Secret) error {
	c, _, err := a.read()
	if err != nil {
		return err
	}
	if user == "" {
		if user, err = certificateUser(c.TLS.Certificate); err != nil {
			return err
		}
	} else if err := tunnel.ValidName(user); err != nil {
		return cli.Usage("--user: %s", err)
	}
	passphrase, err := a.newPassphrase(generate, secret, c.Enroll.MinPassphrase)
	if err != nil {
		return err
	}
	defer clear(passphrase)
	key, err := access.DeriveKey(passphrase, access.NewParameters())
	if err != nil {
		return err
	}
	if generate {
		a.warn("passphrase, shown only this once: %s", passphrase)
	}
	return a.printEnrolment(access.Enrolment{User: user, Key: key.Public()})
}

func (a *app) newPassphrase(generate bool, secret cli.Secret, minimum int) ([]byte, error) {
	if generate {
		return access.GeneratePassphrase(), nil
	}
	passphrase, err := secret.ReadNew()
	if err != nil {
		return nil, err
	}
	if err := access.CheckPassphrase(passphrase, minimum); err != nil {
		clear(passphrase)
		return nil, &cli.Error{
			Exit: cli.ExitUsage, Code: "passphrase_unfit", Message: withoutPackage(err.Error()),
			Hint: "'enroll --generate' makes a strong one", Cause: err,
		}
	}
	return passphrase, nil
}

func (a *app) printEnrolment(e access.Enrolment) error {
	fingerprint := e.Key.Fingerprint()
	if a.json {
		return cli.JSON(a.stdout, map[string]string{"user": e.User, "enrolment": e.String(), "fingerprint": fingerprint})
	}
	if _, err := fmt.Fprintln(a.stdout, e); err != nil {
		return err
	}
	a.say("enrolment of user %q, fingerprint %s", e.User, fingerprint)
	a.say("hint: send the line to a manager of the key and tell them the fingerprint over another channel; they grant with 'chancery-server grant add'")
	return nil
}

// certificateUser reads the user's name out of the configured certificate.
func certificateUser(path string) (string, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return "", nameless(err)
	}
	block, _ := pem.Decode(content)
	if block == nil || block.Type != "CERTIFICATE" {
		return "", nameless(fmt.Errorf("%s does not begin with a certificate in PEM", quoted(path)))
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return "", nameless(fmt.Errorf("the certificate in %s is damaged: %w", quoted(path), err))
	}
	return tunnel.CertificateName(certificate)
}

func nameless(err error) error {
	return &cli.Error{
		Exit: cli.ExitUsage, Code: "certificate_unusable", Cause: err,
		Message: fmt.Sprintf("cannot read your name from the certificate: %s", err), Hint: "give the name with --user",
	}
}
