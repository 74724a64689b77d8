package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"chancery/access"
	"chancery/admin"
	"chancery/internal/cli"
)

const maxEnrolment = 8 << 10 // bytes

// secretFlags gives a command --NAME-file, --NAME-credential and --NAME-fd; without them the terminal is asked.
func secretFlags(command *cobra.Command, name, what string) *cli.Secret {
	secret := &cli.Secret{What: what, Descriptor: -1}
	secret.AddFlags(command.Flags(), name)
	return secret
}

// actorFlags say who acts, and where their passphrase comes from.
type actorFlags struct {
	by         string
	passphrase *cli.Secret
}

func (a *app) addActor(command *cobra.Command, role string) *actorFlags {
	flags := &actorFlags{passphrase: secretFlags(command, "passphrase", "passphrase of the acting "+role)}
	command.Flags().StringVar(&flags.by, "by", "", "the acting "+role+" (default: the only one)")
	a.completeFlag(command, "by", userNames)
	return flags
}

// choose decides who acts: who was named, or the only one who can.
func (f *actorFlags) choose(role string, candidates []string, target admin.Target) (string, error) {
	switch {
	case f.by != "":
		return f.by, nil
	case len(candidates) == 1:
		return candidates[0], nil
	case len(candidates) == 0:
		return "", &cli.Error{Exit: cli.ExitDenied, Code: "not_allowed", Message: fmt.Sprintf("nobody is a %s of %s", role, target), Hint: "'grant list' shows who holds what and until when; 'user enable' lets a disabled user act again"}
	}
	return "", cli.Usage("say with --by who acts: %s", strings.Join(candidates, ", "))
}

// read asks the chosen user for the passphrase that opens their grant on target.
func (f *actorFlags) read(role, user string, target admin.Target) (admin.Actor, error) {
	f.passphrase.What = fmt.Sprintf("passphrase of %s %q for %s", role, user, target)
	passphrase, err := f.passphrase.Read()
	return admin.Actor{User: user, Passphrase: passphrase}, err
}

// granteeFlags say how somebody will open a new grant.
type granteeFlags struct {
	passphrase *cli.Secret
	enrolment  string
	generate   bool
}

func addGrantee(command *cobra.Command, flag, what string) *granteeFlags {
	flags := &granteeFlags{passphrase: secretFlags(command, flag, what)}
	command.Flags().StringVar(&flags.enrolment, "enrolment", "", "file with the user's enrolment string from 'chancery enroll' (-: standard input)")
	command.Flags().BoolVar(&flags.generate, "generate", false, "make a strong passphrase and print it once")
	command.MarkFlagsMutuallyExclusive("enrolment", "generate")
	return flags
}

func (f *granteeFlags) given() bool {
	return f.enrolment != "" || f.generate || f.passphrase.Given()
}

// read returns the grantee with an enrolment or a new passphrase.
func (f *granteeFlags) read(a *app, command *cobra.Command, user string, target admin.Target) (admin.Grantee, error) {
	grantee := admin.Grantee{User: user}
	if (f.generate || f.enrolment != "") && f.passphrase.Given() {
		return grantee, cli.Usage("give either a passphrase, --enrolment or --generate")
	}
	switch {
	case f.enrolment != "":
		enrolment, err := readEnrolment(command.InOrStdin(), f.enrolment)
		if err != nil {
			return grantee, err
		}
		a.tell(command, "the enrolment of %q has the fingerprint %s: compare it with what their 'chancery enroll' showed", enrolment.User, enrolment.Key.Fingerprint())
		grantee.Enrolment = &enrolment
		return grantee, nil
	case f.generate:
		grantee.Passphrase = access.GeneratePassphrase()
		return grantee, nil
	}
	f.passphrase.What = fmt.Sprintf("passphrase of user %q for %s", user, target)
	passphrase, err := f.passphrase.ReadNew()
	if err != nil {
		return grantee, err
	}
	if err := access.CheckPassphrase(passphrase, a.config.Passphrases.MinimumLength); err != nil {
		clear(passphrase)
		return grantee, &cli.Error{Exit: cli.ExitUsage, Code: "passphrase_unfit", Message: forPeople(err), Hint: "--generate makes a strong one", Cause: err}
	}
	grantee.Passphrase = passphrase
	return grantee, nil
}

// reveal prints a generated passphrase, once, after the act has succeeded.
func (f *granteeFlags) reveal(a *app, command *cobra.Command, grantee admin.Grantee) (string, error) {
	if !f.generate {
		return "", nil
	}
	passphrase := string(grantee.Passphrase)
	if a.json {
		return passphrase, nil
	}
	a.tell(command, "this is the passphrase of user %q; it is stored nowhere and not shown again:", grantee.User)
	_, err := fmt.Fprintln(command.OutOrStdout(), passphrase)
	return "", err
}

func readEnrolment(stdin io.Reader, path string) (access.Enrolment, error) {
	if path == "-" {
		text, err := cli.Await(func() ([]byte, error) { return io.ReadAll(io.LimitReader(stdin, maxEnrolment)) })
		if err != nil {
			return access.Enrolment{}, err
		}
		return access.ParseEnrolment(string(text))
	}
	text, err := readLimited(path, maxEnrolment)
	if err != nil {
		return access.Enrolment{}, err
	}
	return access.ParseEnrolment(string(text))
}
