package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"chancery/admin"
	"chancery/internal/cli"
)

func (a *app) tokenChangePINCommand() *cobra.Command {
	var settle bool
	command := &cobra.Command{
		Use: "change-pin NAME", Short: "Give a token a new PIN and wrap it for all its grants",
		Long: `Give a token a new PIN and wrap it for all its grants; no other passphrase is needed.

This may be interrupted at any point, power loss included: nobody loses access, and
the next login by anybody, or 'token change-pin --settle', finds out which PIN is right.`,
		Args: cli.Args(cobra.ExactArgs(1)), ValidArgsFunction: a.namesOf(tokenNames),
	}
	actor := a.addActor(command, "token manager")
	pin := secretFlags(command, "new-pin", "token's new PIN")
	command.Flags().BoolVar(&settle, "settle", false, "only complete a change that was interrupted")
	command.RunE = func(command *cobra.Command, args []string) error {
		return a.withOffice(command, func(ctx context.Context, office *admin.Office) error {
			manager, err := a.tokenManager(ctx, office, args[0], actor)
			if err != nil {
				return err
			}
			defer manager.Clear()
			if settle {
				return a.settlePIN(ctx, command, office, manager, args[0])
			}
			return a.changePIN(ctx, command, office, manager, args[0], pin)
		})
	}
	return command
}

// tokenManager finds out who acts on a token, and asks for their passphrase.
func (a *app) tokenManager(ctx context.Context, office *admin.Office, name string, flags *actorFlags) (admin.Actor, error) {
	s, err := office.Store.Snapshot(ctx)
	if err != nil {
		return admin.Actor{}, err
	}
	if _, err := findToken(s, name); err != nil {
		return admin.Actor{}, err
	}
	target := admin.Target{Token: name}
	user, err := flags.choose("token manager", managersOf(s, target), target)
	if err != nil {
		return admin.Actor{}, err
	}
	return flags.read("token manager", user, target)
}

func (a *app) changePIN(ctx context.Context, command *cobra.Command, office *admin.Office, manager admin.Actor, name string, secret *cli.Secret) error {
	secret.What = fmt.Sprintf("PIN of token %q", name)
	pin, err := secret.ReadNew()
	if err != nil {
		return err
	}
	defer clear(pin)
	about := act{name: "token.change_pin", user: manager.User, details: map[string]string{"token": name}}
	if err := a.recorded(ctx, about, func() error { return office.ChangePIN(ctx, manager, name, pin) }); err != nil {
		return err
	}
	a.tell(command, "token %q has the new PIN; every grant opens it with the same passphrase as before", name)
	return a.result(command, map[string]any{"name": name, "pin_changed": true})
}

func (a *app) settlePIN(ctx context.Context, command *cobra.Command, office *admin.Office, manager admin.Actor, name string) error {
	var settlement admin.Settlement
	about := act{name: "token.settle_pin", user: manager.User, details: map[string]string{"token": name}}
	err := a.recorded(ctx, about, func() (err error) {
		settlement, err = office.SettlePIN(ctx, manager, name)
		about.details["settlement"] = fmt.Sprint(settlement)
		return err
	})
	if err != nil {
		return err
	}
	a.tell(command, "token %q: %s", name, settlement)
	return a.result(command, map[string]any{"name": name, "settlement": settlement})
}

func (a *app) tokenRepairPINCommand() *cobra.Command {
	command := &cobra.Command{
		Use: "repair-pin NAME", Short: "Wrap a PIN that was changed by other means for all grants",
		Long: "Wrap the PIN that a token has now for all its grants, after it was changed or reset by the token's own tools.\n" +
			"The PIN is checked by one login; no passphrase is needed.",
		Args: cli.Args(cobra.ExactArgs(1)), ValidArgsFunction: a.namesOf(tokenNames),
	}
	secret := secretFlags(command, "pin", "token's present PIN")
	command.RunE = func(command *cobra.Command, args []string) error {
		return a.withOffice(command, func(ctx context.Context, office *admin.Office) error {
			s, err := office.Store.Snapshot(ctx)
			if err != nil {
				return err
			}
			if _, err := findToken(s, args[0]); err != nil {
				return err
			}
			secret.What = fmt.Sprintf("present PIN of token %q", args[0])
			pin, err := secret.Read()
			if err != nil {
				return err
			}
			defer clear(pin)
			about := act{name: "token.repair_pin", details: map[string]string{"token": args[0]}}
			if err := a.recorded(ctx, about, func() error { return office.RepairPIN(ctx, args[0], pin) }); err != nil {
				return err
			}
			a.tell(command, "all grants of token %q hold its present PIN", args[0])
			return a.result(command, map[string]any{"name": args[0], "pin_repaired": true})
		})
	}
	return command
}
