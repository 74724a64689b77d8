package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"chancery/internal/cli"
	"chancery/seal"
	"chancery/seal/pkcs11"
	"chancery/seal/tpm"
	"chancery/users"
)

func (a *app) sealAddCommand() *cobra.Command {
	command := family("add", "Add a seal; the first one seals the database", a.sealAddSecretCommand(), a.sealAddTPMCommand(), a.sealAddPKCS11Command())
	command.Long = `Add a seal; the first one seals the database: all rows are authenticated and all grants
encrypted in one transaction. Any one of the seals opens it, so add a second one of another
kind, and keep it elsewhere: without a seal that opens, every grant is lost.`
	return command
}

func (a *app) sealAddSecretCommand() *cobra.Command {
	var file seal.File
	command := a.sealAdder(seal.KindSecret, "Seal with a secret file or systemd credential", func() (any, error) {
		var err error
		if file.Path != "" {
			file.Path, err = filepath.Abs(file.Path)
		}
		return file, errors.Join(err, file.Check())
	})
	command.Long = `Seal with a secret file or a systemd credential of at least 32 random bytes, such as
'head -c 32 /dev/urandom' makes. Keep it where the database and its backups are not.`
	command.Flags().StringVar(&file.Path, "file", "", "the secret file, readable by the daemon's user only")
	command.Flags().StringVar(&file.Credential, "credential", "", "the name of a systemd credential of the daemon's unit")
	command.MarkFlagsMutuallyExclusive("file", "credential")
	command.MarkFlagsOneRequired("file", "credential")
	return command
}

func (a *app) sealAddTPMCommand() *cobra.Command {
	var p tpm.Parameters
	command := a.sealAdder(seal.KindTPM, "Seal with this machine's TPM 2.0", func() (any, error) {
		slices.Sort(p.PCRs)
		p.PCRs = slices.Compact(p.PCRs)
		return p, p.Check()
	})
	command.Long = `Seal with this machine's TPM 2.0. With --pcr the seal opens only while these registers
have the values that they have now: add a second seal for the day on which firmware or kernel change.
Another device than ` + tpm.DefaultDevice + ` has to be the one of tokens.tpm in the configuration.`
	command.Flags().StringVar(&p.Device, "device", tpm.DefaultDevice, "the TPM's device, or unix: and the socket of an emulated one")
	command.Flags().UintSliceVar(&p.PCRs, "pcr", nil, "bind to this PCR of the SHA-256 bank (may be given several times)")
	return command
}

func (a *app) sealAddPKCS11Command() *cobra.Command {
	var p pkcs11.Parameters
	command := a.sealAdder(seal.KindPKCS11, "Seal with an RSA or AES key inside a PKCS#11 token", func() (any, error) {
		var err error
		if p.Module, err = filepath.Abs(p.Module); err == nil && p.PIN.Path != "" {
			p.PIN.Path, err = filepath.Abs(p.PIN.Path)
		}
		return p, errors.Join(err, p.Check())
	})
	command.Long = `Seal with a key inside a PKCS#11 token: an AES key that may encrypt and decrypt, or an RSA
key that may decrypt; sensitive and not extractable. The daemon logs in with the PIN in a file or systemd
credential: give it a token of its own, not one that holds signing keys.`
	f := command.Flags()
	f.StringVar(&p.Module, "module", "", "path of the module")
	f.StringVar(&p.Serial, "serial", "", "the token's serial number")
	f.StringVar(&p.Label, "label", "", "the token's label")
	f.StringVar(&p.KeyLabel, "key-label", "", "the key's label")
	f.StringVar(&p.KeyID, "key-id", "", "the key's identifier, in hex")
	f.StringVar(&p.PIN.Path, "pin-file", "", "the file with the PIN, readable by the daemon's user only")
	f.StringVar(&p.PIN.Credential, "pin-credential", "", "the name of a systemd credential of the daemon's unit with the PIN")
	command.MarkFlagsMutuallyExclusive("pin-file", "pin-credential")
	command.MarkFlagsOneRequired("pin-file", "pin-credential")
	command.MarkFlagsOneRequired("serial", "label")
	command.MarkFlagsOneRequired("key-label", "key-id")
	must(command.MarkFlagRequired("module"))
	return command
}

// sealAdder is a command that adds a seal with what parameters returns.
func (a *app) sealAdder(kind, short string, parameters func() (any, error)) *cobra.Command {
	return &cobra.Command{
		Use: kind + " NAME", Short: short,
		Args: cli.Args(cobra.ExactArgs(1)), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(command *cobra.Command, args []string) error {
			if err := users.CheckName(args[0]); err != nil {
				return err
			}
			chosen, err := parameters()
			if err != nil {
				return err
			}
			encoded, err := json.Marshal(chosen)
			if err != nil {
				return err
			}
			return a.withSeals(command, func(ctx context.Context, store users.SealStore, opener *seal.Opener) error {
				return a.addSeal(ctx, command, store, opener, users.Seal{Name: args[0], Kind: kind, Parameters: encoded})
			})
		},
	}
}

func (a *app) addSeal(ctx context.Context, command *cobra.Command, store users.SealStore, opener *seal.Opener, s users.Seal) error {
	state, err := store.Seals(ctx)
	if err != nil {
		return err
	}
	if _, err := findSeal(state, s.Name); err == nil {
		return fmt.Errorf("seal %q: %w", s.Name, users.ErrExists)
	}
	first := len(state.KeyID) == 0
	about := act{name: "seal.add", details: map[string]string{"seal": s.Name, "kind": s.Kind, "where": where(s.Kind, s.Parameters)}}
	err = a.recorded(ctx, about, func() error {
		if first {
			return sealFirst(ctx, store, opener, &s)
		}
		return sealMore(ctx, store, opener, state, &s)
	})
	if err != nil {
		return err
	}
	if first {
		a.scrub(ctx, command, store)
	}
	return a.tellSeal(ctx, command, store, s.Name, first)
}

// sealFirst makes a data key and seals the database.
func sealFirst(ctx context.Context, store users.SealStore, opener *seal.Opener, s *users.Seal) error {
	key := seal.NewKey()
	err := opener.Wrap(ctx, s, key)
	if err == nil {
		err = store.SealWith(ctx, nil, key, []users.Seal{*s})
	}
	if err != nil {
		key.Close()
	}
	return err
}

// sealMore gets the data key out of another seal.
func sealMore(ctx context.Context, store users.SealStore, opener *seal.Opener, state users.SealState, s *users.Seal) error {
	key, err := opener.OpenKey(ctx, state)
	if err != nil {
		return err
	}
	defer key.Close()
	if err := opener.Wrap(ctx, s, key); err != nil {
		return err
	}
	return store.AddSeal(ctx, state.KeyID, *s)
}

func (a *app) tellSeal(ctx context.Context, command *cobra.Command, store users.SealStore, name string, first bool) error {
	state, err := store.Seals(ctx)
	if err != nil {
		return err
	}
	added, err := findSeal(state, name)
	if err != nil {
		return err
	}
	if first {
		a.tell(command, "the database is sealed; it opens by seal %q only", name)
		a.next(command, "add a second seal of another kind, set seal.required in the configuration, and 'token change-pin' for every token if older copies of the database exist")
	} else {
		a.tell(command, "seal %q added; the database opens by any of %s", name, count(len(state.Seals), "seal"))
	}
	return a.result(command, viewSeal(state, added))
}
