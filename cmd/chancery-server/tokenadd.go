package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"chancery/admin"
	"chancery/internal/cli"
	"chancery/token/pkcs11"
	"chancery/token/soft"
	"chancery/token/tpm"
	"chancery/users"
)

// tokenFlags are what `token add` was told.
type tokenFlags struct {
	driver, module, directory string
	serial, label, manager    string
	primary, by               string // of a replica
	maxSessions               int
	parent                    uint32
	create                    bool
	pin                       *cli.Secret
	grantee                   *granteeFlags
}

func (a *app) tokenAddCommand() *cobra.Command {
	flags := &tokenFlags{}
	command := &cobra.Command{
		Use: "add NAME", Short: "Register a token and its first manager",
		Long: `Register a token and its first manager, who may make keys on it and change its PIN.

The PIN is asked for once, checked by one login, and stored only wrapped to the
manager's access key. Keep it in a safe as well: when no manager knows their passphrase
any more, only who has the PIN can add the token and adopt its keys anew.
'token probe' lists what a module offers.

With --replica-of, register a further token that holds the same keys under the same PIN,
such as a clone of an HSM. Every registered key signs there once. From then on each signature
goes to one that is in order; a manager of the first token acts.`,
		Args: cli.Args(cobra.ExactArgs(1)), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(command *cobra.Command, args []string) error {
			return a.withOffice(command, func(ctx context.Context, office *admin.Office) error {
				if flags.primary != "" {
					return a.addReplica(ctx, command, office, args[0], flags)
				}
				return a.addToken(ctx, command, office, args[0], flags)
			})
		},
	}
	f := command.Flags()
	f.StringVar(&flags.driver, "driver", "", "pkcs11, tpm or soft")
	f.StringVar(&flags.module, "module", "", "pkcs11: path of the module")
	f.StringVar(&flags.serial, "serial", "", "pkcs11: the token's serial number")
	f.StringVar(&flags.label, "label", "", "pkcs11: the token's label; with --create: its label (default NAME)")
	f.StringVar(&flags.directory, "directory", "", "soft and tpm: the token's directory (default: tokens/NAME in the state directory)")
	f.BoolVar(&flags.create, "create", false, "soft and tpm: make a new token there, with a new PIN")
	f.Uint32Var(&flags.parent, "parent", 0, "tpm with --create: handle of a persistent storage key such as 0x81000001, for a TPM whose owner hierarchy has a password (0: made as it is needed)")
	f.IntVar(&flags.maxSessions, "max-sessions", 0, "sessions that the daemon opens at most (0: the driver's default)")
	f.StringVar(&flags.manager, "manager", "", "the token's first manager, a registered user")
	f.StringVar(&flags.primary, "replica-of", "", "the registered token whose keys this one holds, too")
	f.StringVar(&flags.by, "by", "", "with --replica-of: the acting token manager (default: the only one)")
	flags.pin = secretFlags(command, "pin", "token's PIN")
	flags.grantee = addGrantee(command, "passphrase", "manager's passphrase for this token")
	must(command.MarkFlagRequired("driver"))
	command.MarkFlagsOneRequired("manager", "replica-of")
	command.MarkFlagsMutuallyExclusive("manager", "replica-of")
	command.MarkFlagsMutuallyExclusive("manager", "by")
	a.completeFlag(command, "replica-of", tokenNames)
	a.completeFlag(command, "by", userNames)
	completeWords(command, "driver", driverPKCS11, driverTPM, driverSoft)
	a.completeFlag(command, "manager", userNames)
	return command
}

func (a *app) addToken(ctx context.Context, command *cobra.Command, office *admin.Office, name string, flags *tokenFlags) error {
	spec, err := flags.spec(a.config, name)
	if err != nil {
		return err
	}
	s, err := office.Store.Snapshot(ctx)
	if err != nil {
		return err
	}
	if err := checkNewToken(s, name, flags.manager); err != nil {
		return err
	}
	pin, err := flags.readPIN(name)
	if err != nil {
		return err
	}
	defer clear(pin)
	manager, err := flags.grantee.read(a, command, flags.manager, admin.Target{Token: name})
	if err != nil {
		return err
	}
	defer manager.Clear()
	var added users.Token
	about := act{name: "token.add", details: map[string]string{"token": name, "driver": spec.Driver, "location": spec.Location, "manager": flags.manager}}
	err = a.recorded(ctx, about, func() (err error) {
		added, err = a.registerToken(ctx, office, spec, pin, manager, flags)
		about.details["serial"] = added.Serial
		return err
	})
	if err != nil {
		return err
	}
	return a.tellToken(ctx, command, office, &added, flags, manager)
}

// registerToken makes the token first where that is wanted.
func (a *app) registerToken(ctx context.Context, office *admin.Office, spec admin.TokenSpec, pin []byte, manager admin.Grantee, flags *tokenFlags) (users.Token, error) {
	if flags.create {
		if err := a.makeToken(spec, pin, flags.parent); err != nil {
			return users.Token{}, err
		}
	}
	added, err := office.AddToken(ctx, spec, pin, manager)
	if err != nil && flags.create {
		return users.Token{}, fmt.Errorf("the token is made, but could not be registered; try again without --create: %w", err)
	}
	return added, err
}

func (a *app) makeToken(spec admin.TokenSpec, pin []byte, parent uint32) error {
	if spec.Driver == driverTPM {
		return tpm.Create(tpm.Config{Device: a.config.Tokens.TPM, Directory: spec.Location, Parent: parent}, spec.Label, pin)
	}
	return soft.Create(spec.Location, spec.Label, pin)
}

func (a *app) tellToken(ctx context.Context, command *cobra.Command, office *admin.Office, added *users.Token, flags *tokenFlags, manager admin.Grantee) error {
	passphrase, err := flags.grantee.reveal(a, command, manager)
	if err != nil {
		return err
	}
	s, err := office.Store.Snapshot(ctx)
	if err != nil {
		return err
	}
	a.tell(command, "token %q added (serial %s, hardware: %s); its manager is %q", added.Name, added.Serial, yesNo(added.Hardware), flags.manager)
	a.next(command, "'key create NAME --token %s --algorithm …'", added.Name)
	return a.result(command, struct {
		tokenView
		Passphrase string `json:"passphrase,omitempty"`
	}{viewToken(s, added), passphrase})
}

// spec checks that the flags fit the driver.
func (f *tokenFlags) spec(c *config, name string) (admin.TokenSpec, error) {
	if err := users.CheckName(name); err != nil {
		return admin.TokenSpec{}, err
	}
	spec := admin.TokenSpec{Name: name, Driver: f.driver, Serial: f.serial, Label: f.label, MaxSessions: f.maxSessions}
	switch {
	case f.parent != 0 && (f.driver != driverTPM || !f.create):
		return spec, cli.Usage("--parent is for --driver tpm with --create")
	case f.maxSessions < 0 || f.maxSessions > 0 && f.driver == driverPKCS11 && f.maxSessions < pkcs11.MinSessions:
		return spec, cli.Usage("--max-sessions %d: at least %d, or 0 for the default", f.maxSessions, pkcs11.MinSessions)
	case f.inDirectory() && (f.module != "" || f.serial != "" || f.label != "" && !f.create):
		return spec, cli.Usage("a %s token has a --directory; --module and --serial are for pkcs11, --label for --create", f.driver)
	case f.inDirectory():
		return f.directorySpec(spec, c)
	case f.driver != driverPKCS11:
		return spec, cli.Usage("--driver %q: pkcs11, tpm or soft", f.driver)
	case f.module == "" || f.directory != "" || f.create:
		return spec, cli.Usage("a pkcs11 token needs --module; --directory and --create are for soft and tpm ones")
	case f.serial == "" && f.label == "":
		return spec, cli.Usage("say with --serial or --label which of the module's tokens; 'token probe --module %s' lists them", f.module)
	}
	var err error
	if spec.Location, err = filepath.Abs(f.module); err != nil {
		return spec, err
	}
	_, err = c.Tokens.module(spec.Location) // before the PIN is asked for
	return spec, err
}

// inDirectory tells whether the driver keeps its token in a directory of files.
func (f *tokenFlags) inDirectory() bool { return f.driver == driverSoft || f.driver == driverTPM }

func (f *tokenFlags) directorySpec(spec admin.TokenSpec, c *config) (admin.TokenSpec, error) {
	directory := f.directory
	if directory == "" {
		directory = filepath.Join(c.State.Directory, "tokens", spec.Name)
	}
	if spec.Label == "" && f.create {
		spec.Label = spec.Name
	}
	var err error
	spec.Location, err = filepath.Abs(directory)
	return spec, err
}

func checkNewToken(s *users.Snapshot, name, manager string) error {
	_, isToken := s.Token(name)
	_, _, isReplica := s.Replica(name)
	if isToken || isReplica {
		return fmt.Errorf("token %q: %w", name, users.ErrExists)
	}
	_, err := findUser(s, manager)
	if errors.Is(err, users.ErrNotFound) {
		return &cli.Error{Exit: cli.ExitFailed, Code: "not_found", Message: fmt.Sprintf("user %q: not found", manager), Hint: fmt.Sprintf("'chancery-server user add %s' registers them", manager), Cause: err}
	}
	return err
}

func (f *tokenFlags) readPIN(name string) ([]byte, error) {
	f.pin.What = fmt.Sprintf("PIN of token %q", name)
	if f.create {
		return f.pin.ReadNew()
	}
	return f.pin.Read()
}
