package main

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"github.com/youmark/pkcs8"

	"chancery/admin"
	"chancery/internal/cli"
	"chancery/token"
	"chancery/users"
)

const maxKeyFile = 64 << 10 // bytes

// newKeyFlags are what the three ways to register a key have in common.
type newKeyFlags struct {
	token   string
	manager string
	actor   *actorFlags
	grantee *granteeFlags
}

func (a *app) addNewKey(command *cobra.Command) *newKeyFlags {
	flags := &newKeyFlags{actor: a.addActor(command, "token manager")}
	command.Flags().StringVar(&flags.token, "token", "", "the token")
	command.Flags().StringVar(&flags.manager, "manager", "", "the key's first manager (default: the acting token manager, with the same passphrase)")
	flags.grantee = addGrantee(command, "manager-passphrase", "first manager's passphrase for the new key")
	must(command.MarkFlagRequired("token"))
	a.completeFlag(command, "token", tokenNames)
	a.completeFlag(command, "manager", userNames)
	return flags
}

// newKey is one registration under way.
type newKey struct {
	app     *app
	command *cobra.Command
	office  *admin.Office
	flags   *newKeyFlags
	actor   admin.Actor
	spec    admin.KeySpec
}

// prepareKey checks names, and asks for the passphrases.
func (a *app) prepareKey(ctx context.Context, command *cobra.Command, office *admin.Office, name string, flags *newKeyFlags) (*newKey, error) {
	s, err := office.Store.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	if err := users.CheckName(name); err != nil {
		return nil, err
	}
	if _, found := s.Key(name); found {
		return nil, fmt.Errorf("key %q: %w", name, users.ErrExists)
	}
	if flags.manager != "" {
		if _, err := findUser(s, flags.manager); err != nil {
			return nil, err
		}
	}
	actor, err := a.tokenManager(ctx, office, flags.token, flags.actor)
	if err != nil {
		return nil, err
	}
	n := &newKey{app: a, command: command, office: office, flags: flags, actor: actor}
	n.spec = admin.KeySpec{Name: name, Token: flags.token, Manager: admin.Grantee{User: actor.User}}
	if flags.manager == "" || flags.manager == actor.User && !flags.grantee.given() {
		if flags.grantee.given() {
			n.clear()
			return nil, cli.Usage("--generate, --enrolment and --manager-passphrase-… go with --manager")
		}
		return n, nil
	}
	n.spec.Manager, err = flags.grantee.read(a, command, flags.manager, admin.Target{Key: name})
	if err != nil {
		n.clear()
		return nil, err
	}
	return n, nil
}

func (n *newKey) clear() {
	n.actor.Clear()
	n.spec.Manager.Clear()
}

// manager is the new key's manager as the one who acts; false if only an enrolment of theirs is known.
func (n *newKey) manager() (admin.Actor, bool) {
	switch {
	case n.spec.Manager.Enrolment != nil:
		return admin.Actor{}, false
	case n.spec.Manager.Passphrase != nil:
		return admin.Actor{User: n.spec.Manager.User, Passphrase: n.spec.Manager.Passphrase}, true
	}
	return n.actor, true
}

// register makes or takes the key by how, and records it.
func (n *newKey) register(ctx context.Context, verb string, how func() (users.Key, error)) (key users.Key, err error) {
	about := act{name: "key." + verb, user: n.actor.User, key: n.spec.Name, details: map[string]string{"token": n.spec.Token, "manager": n.spec.Manager.User}}
	err = n.app.recorded(ctx, about, func() (err error) {
		key, err = how()
		about.details["handle"], about.details["algorithm"] = key.Handle, string(key.Algorithm)
		return err
	})
	return key, err
}

// finish says what came of it.
func (n *newKey) finish(ctx context.Context, key users.Key) error {
	a := n.app
	passphrase, err := n.flags.grantee.reveal(a, n.command, n.spec.Manager)
	if err != nil {
		return err
	}
	s, err := n.office.Store.Snapshot(ctx)
	if err != nil {
		return err
	}
	stored, err := findKey(s, key.Name)
	if err != nil {
		return err
	}
	view := viewKey(s, stored)
	a.tell(n.command, "key %q (%s, hardware: %s) is %s on token %q; its manager is %q", view.Name, view.Algorithm, yesNo(view.Hardware), view.Origin, view.Token, n.spec.Manager.User)
	for _, c := range view.Certificates {
		a.tell(n.command, "%s certificate %s", c.Kind, c.Fingerprint)
	}
	a.next(n.command, "'grant add %s USER' lets others sign with it", view.Name)
	return a.result(n.command, struct {
		keyView
		Passphrase string `json:"passphrase,omitempty"`
	}{view, passphrase})
}

func (a *app) keyCreateCommand() *cobra.Command {
	var algorithm string
	command := &cobra.Command{
		Use: "create NAME", Short: "Make a key inside a token",
		Long: "Make a key inside a token, which never gives its private half away.",
		Args: cli.Args(cobra.ExactArgs(1)), ValidArgsFunction: cobra.NoFileCompletions,
	}
	flags := a.addNewKey(command)
	certificates := &certifyFlags{}
	command.Flags().StringVar(&algorithm, "algorithm", "", fmt.Sprintf("one of %v", token.Algorithms()))
	command.Flags().StringVar(&certificates.openpgp, "openpgp", "", `make an OpenPGP certificate for this user ID ("Name <mail>")`)
	command.Flags().StringVar(&certificates.x509, "x509", "", `make a self-signed X.509 certificate for this subject ("CN=…,O=…")`)
	must(command.MarkFlagRequired("algorithm"))
	completeWords(command, "algorithm", algorithmNames()...)
	command.RunE = func(command *cobra.Command, args []string) error {
		parsed, err := token.ParseAlgorithm(algorithm)
		if err != nil {
			return cli.Usage("--algorithm %q: one of %v", algorithm, token.Algorithms())
		}
		return a.withOffice(command, func(ctx context.Context, office *admin.Office) error {
			return a.createKey(ctx, command, office, args[0], parsed, flags, certificates)
		})
	}
	return command
}

func (a *app) createKey(ctx context.Context, command *cobra.Command, office *admin.Office, name string, algorithm token.Algorithm, flags *newKeyFlags, certificates *certifyFlags) error {
	if certificates.any() && flags.grantee.enrolment != "" {
		return cli.Usage("a certificate takes the first manager's passphrase, and only their enrolment is given: make it later with 'key certify'")
	}
	if err := certificates.check(); err != nil {
		return err
	}
	n, err := a.prepareKey(ctx, command, office, name, flags)
	if err != nil {
		return err
	}
	defer n.clear()
	key, err := n.register(ctx, "create", func() (users.Key, error) { return office.CreateKey(ctx, n.actor, n.spec, algorithm) })
	if err != nil {
		return err
	}
	if manager, ok := n.manager(); ok && certificates.any() {
		if _, err := a.certify(ctx, office, manager, &key, certificates); err != nil {
			_, revealErr := n.flags.grantee.reveal(a, command, n.spec.Manager)
			return fmt.Errorf("key %q is made, but lacks a certificate; 'key show %s' lists what it has, and 'key certify %s' makes one: %w", name, name, name, errors.Join(err, revealErr))
		}
	}
	return n.finish(ctx, key)
}

func (a *app) keyAdoptCommand() *cobra.Command {
	var id, label string
	command := &cobra.Command{
		Use: "adopt NAME", Short: "Register a key that is in a token already",
		Long: "Register a key that is in a token already, after it has signed a test message. 'token show TOKEN --keys' lists what a token holds.",
		Args: cli.Args(cobra.ExactArgs(1)), ValidArgsFunction: cobra.NoFileCompletions,
	}
	flags := a.addNewKey(command)
	command.Flags().StringVar(&id, "id", "", "the key's identifier on the token (CKA_ID), hexadecimal")
	command.Flags().StringVar(&label, "label", "", "the key's label on the token (CKA_LABEL)")
	command.MarkFlagsOneRequired("id", "label")
	command.MarkFlagsMutuallyExclusive("id", "label")
	command.RunE = func(command *cobra.Command, args []string) error {
		identifier, err := parseHex("id", id)
		if err != nil {
			return err
		}
		return a.withOffice(command, func(ctx context.Context, office *admin.Office) error {
			n, err := a.prepareKey(ctx, command, office, args[0], flags)
			if err != nil {
				return err
			}
			defer n.clear()
			key, err := n.register(ctx, "adopt", func() (users.Key, error) {
				return office.AdoptKey(ctx, n.actor, admin.AdoptSpec{KeySpec: n.spec, ID: identifier, Label: label})
			})
			if err != nil {
				return err
			}
			return n.finish(ctx, key)
		})
	}
	return command
}

func (a *app) keyImportCommand() *cobra.Command {
	command := &cobra.Command{
		Use: "import NAME FILE", Short: "Put an existing private key into a token",
		Long: "Put an existing private key into a token: a PEM file with a PKCS#8 key, plain or protected by a passphrase, or with an older\n" +
			"SEC 1 or PKCS#1 key. A key that was outside a token may have copies: prefer 'key create'.",
		Args: cli.Args(cobra.ExactArgs(2)),
	}
	flags := a.addNewKey(command)
	filePassphrase := secretFlags(command, "import-passphrase", "passphrase of the file's key")
	command.RunE = func(command *cobra.Command, args []string) error {
		return a.withOffice(command, func(ctx context.Context, office *admin.Office) error {
			private, err := readPrivateKey(args[1], filePassphrase)
			if err != nil {
				return err
			}
			n, err := a.prepareKey(ctx, command, office, args[0], flags)
			if err != nil {
				return err
			}
			defer n.clear()
			key, err := n.register(ctx, "import", func() (users.Key, error) { return office.ImportKey(ctx, n.actor, n.spec, private) })
			if err != nil {
				return err
			}
			warnReadable(command, args[1])
			if err := n.finish(ctx, key); err != nil {
				return err
			}
			a.next(command, "destroy %s and its copies, or lock them away", args[1])
			return nil
		})
	}
	return command
}

// readPrivateKey reads the first private key of a PEM file. Its errors quote nothing of the file.
func readPrivateKey(path string, passphrase *cli.Secret) (crypto.PrivateKey, error) {
	content, err := readLimited(path, maxKeyFile)
	if err != nil {
		return nil, err
	}
	defer clear(content)
	for rest := content; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return nil, cli.Failed("key_file_invalid", "%s holds no private key in PEM (BEGIN PRIVATE KEY)", path)
		}
		defer clear(block.Bytes)
		switch block.Type {
		case "PRIVATE KEY":
			key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			return key, unreadableKey(path, err)
		case "ENCRYPTED PRIVATE KEY":
			return decryptedKey(path, block.Bytes, passphrase)
		case "EC PRIVATE KEY":
			key, err := x509.ParseECPrivateKey(block.Bytes)
			return key, unreadableKey(path, err)
		case "RSA PRIVATE KEY":
			key, err := x509.ParsePKCS1PrivateKey(block.Bytes)
			return key, unreadableKey(path, err)
		}
	}
}

// unreadableKey leaves the cause out: it would quote bytes of the key's encoding.
func unreadableKey(path string, err error) error {
	if err == nil {
		return nil
	}
	return cli.Failed("key_file_invalid", "the private key in %s cannot be read: is it damaged, or of a kind that is not supported?", path)
}

func decryptedKey(path string, der []byte, passphrase *cli.Secret) (crypto.PrivateKey, error) {
	passphrase.What = "passphrase of the key in " + path
	secret, err := passphrase.Read()
	if err != nil {
		return nil, err
	}
	defer clear(secret)
	key, _, err := pkcs8.ParsePrivateKey(der, secret)
	if err != nil {
		return nil, &cli.Error{Exit: cli.ExitDenied, Code: "wrong_passphrase", Message: fmt.Sprintf("the passphrase does not open the key in %s", path)}
	}
	return key, nil
}

// warnReadable warns about a file with a secret that other users may have read.
func warnReadable(command *cobra.Command, path string) {
	if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o077 != 0 {
		warn(command, "%s has mode %04o: other users of this machine may have read it", path, info.Mode().Perm())
	}
}
