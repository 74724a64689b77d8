package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"chancery/admin"
	"chancery/internal/cli"
	"chancery/users"
)

func (a *app) keyDeleteCommand() *cobra.Command {
	var destroy bool
	command := a.addYes(&cobra.Command{
		Use: "delete NAME", Short: "Forget a key, or destroy it inside its token",
		Long: `Forget a key with its certificates and grants. The private half stays inside the
token and 'key adopt' can register it again, unless --destroy removes it there too:
then nobody can ever sign with it again.`,
		Args: cli.Args(cobra.ExactArgs(1)), ValidArgsFunction: a.namesOf(keyNames),
	})
	actor := a.addActor(command, "manager of the key")
	command.Flags().BoolVar(&destroy, "destroy", false, "destroy the private half inside the token, for good")
	command.RunE = func(command *cobra.Command, args []string) error {
		return a.withOffice(command, func(ctx context.Context, office *admin.Office) error {
			s, err := office.Store.Snapshot(ctx)
			if err != nil {
				return err
			}
			key, err := findKey(s, args[0])
			if err != nil {
				return err
			}
			view := viewKey(s, key)
			if destroy {
				return a.destroyKey(ctx, command, office, s, &view, actor)
			}
			return a.forgetKey(ctx, command, office.Store, &view)
		})
	}
	return command
}

func (a *app) forgetKey(ctx context.Context, command *cobra.Command, store users.Store, key *keyView) error {
	if err := a.confirm("Forget key %q with %s and %s", key.Name, count(len(key.Grants), "grant"), count(len(key.Certificates), "certificate")); err != nil {
		return err
	}
	about := act{name: "key.delete", key: key.Name, details: map[string]string{"token": key.Token, "handle": key.Handle}}
	if err := a.recorded(ctx, about, func() error { return store.DeleteKey(ctx, key.Name) }); err != nil {
		return err
	}
	a.tell(command, "key %q is forgotten; its private half is still on token %q with the identifier %s", key.Name, key.Token, key.TokenKeyID)
	return a.result(command, map[string]any{"name": key.Name, "deleted": true, "destroyed": false})
}

func (a *app) destroyKey(ctx context.Context, command *cobra.Command, office *admin.Office, s *users.Snapshot, key *keyView, flags *actorFlags) error {
	if err := a.confirm("Destroy key %q inside token %q, for good, with %s", key.Name, key.Token, count(len(key.Grants), "grant")); err != nil {
		return err
	}
	actor, err := a.keyActor(s, key, flags)
	if err != nil {
		return err
	}
	defer actor.Clear()
	about := act{name: "key.destroy", user: actor.User, key: key.Name, details: map[string]string{"token": key.Token, "handle": key.Handle}}
	if err := a.recorded(ctx, about, func() error { return office.DestroyKey(ctx, actor, key.Name) }); err != nil {
		return err
	}
	a.tell(command, "key %q is destroyed and forgotten", key.Name)
	return a.result(command, map[string]any{"name": key.Name, "deleted": true, "destroyed": true})
}

// keyActor is a manager of the key, or else a token manager named with --by.
func (a *app) keyActor(s *users.Snapshot, key *keyView, flags *actorFlags) (admin.Actor, error) {
	target := admin.Target{Key: key.Name}
	managers := managersOf(s, target)
	user, err := flags.choose("manager", managers, target)
	if err != nil {
		return admin.Actor{}, err
	}
	if named, ok := s.User(user); ok && !manages(s, named.ID, target, time.Now()) {
		return flags.read("token manager", user, admin.Target{Token: key.Token})
	}
	return flags.read("manager", user, target)
}
