package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"chancery/admin"
	"chancery/internal/cli"
	"chancery/users"
)

type userView struct {
	Name      string      `json:"name"`
	Disabled  bool        `json:"disabled"`
	CreatedAt time.Time   `json:"created_at"`
	Grants    []grantView `json:"grants"`
}

func (a *app) userCommand() *cobra.Command {
	return family("user", "Manage users",
		a.userAddCommand(), a.userListCommand(), a.userShowCommand(),
		a.userDisableCommand("disable", true), a.userDisableCommand("enable", false), a.userDeleteCommand())
}

func (a *app) userAddCommand() *cobra.Command {
	return &cobra.Command{
		Use: "add NAME", Short: "Register a user",
		Long: "Register a user. NAME is the Common Name of the user's client certificate, exactly.",
		Args: cli.Args(cobra.ExactArgs(1)), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(command *cobra.Command, args []string) error {
			return a.withStore(command, func(ctx context.Context, store users.Store) error {
				var user users.User
				add := act{name: "user.add", details: map[string]string{"user": args[0]}}
				err := a.recorded(ctx, add, func() (err error) {
					user, err = store.AddUser(ctx, args[0])
					return err
				})
				if err != nil {
					return err
				}
				a.tell(command, "user %q added", user.Name)
				a.next(command, "issue a certificate with 'pki issue client %s', then 'grant add KEY %s'", user.Name, user.Name)
				return a.result(command, userView{Name: user.Name, CreatedAt: user.CreatedAt.UTC(), Grants: []grantView{}})
			})
		},
	}
}

func (a *app) userListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List users",
		Args: cli.Args(cobra.NoArgs),
		RunE: func(command *cobra.Command, _ []string) error {
			return a.withSnapshot(command, func(s *users.Snapshot) error {
				views, rows := []userView{}, [][]string{}
				for i := range s.Users() {
					view := viewUser(s, &s.Users()[i])
					views = append(views, view)
					rows = append(rows, []string{view.Name, enabled(view.Disabled), fmt.Sprint(len(view.Grants)), moment(view.CreatedAt)})
				}
				return a.list(command, views, []string{"USER", "STATE", "GRANTS", "SINCE"}, rows)
			})
		},
	}
}

func (a *app) userShowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "Show a user and their grants",
		Args: cli.Args(cobra.ExactArgs(1)), ValidArgsFunction: a.namesOf(userNames),
		RunE: func(command *cobra.Command, args []string) error {
			return a.withSnapshot(command, func(s *users.Snapshot) error {
				user, err := findUser(s, args[0])
				if err != nil {
					return err
				}
				view := viewUser(s, user)
				fields := []field{{"user", view.Name}, {"state", enabled(view.Disabled)}, {"since", moment(view.CreatedAt)}}
				for _, g := range view.Grants {
					fields = append(fields, field{"grant", g.sentence()})
				}
				return a.show(command, view, fields)
			})
		},
	}
}

func (a *app) userDisableCommand(verb string, disabled bool) *cobra.Command {
	return &cobra.Command{
		Use: verb + " NAME", Short: map[bool]string{true: "Stop a user from signing, keeping their grants", false: "Let a disabled user sign again"}[disabled],
		Args: cli.Args(cobra.ExactArgs(1)), ValidArgsFunction: a.namesOf(userNames),
		RunE: func(command *cobra.Command, args []string) error {
			return a.withStore(command, func(ctx context.Context, store users.Store) error {
				disable := act{name: "user." + verb, details: map[string]string{"user": args[0]}}
				err := a.recorded(ctx, disable, func() error { return store.SetUserDisabled(ctx, args[0], disabled) })
				if err != nil {
					return err
				}
				a.tell(command, "user %q is %s, from now on and in live sessions", args[0], enabled(disabled))
				return a.result(command, map[string]any{"name": args[0], "disabled": disabled})
			})
		},
	}
}

func (a *app) userDeleteCommand() *cobra.Command {
	return a.addYes(&cobra.Command{
		Use: "delete NAME", Short: "Delete a user with all their grants",
		Args: cli.Args(cobra.ExactArgs(1)), ValidArgsFunction: a.namesOf(userNames),
		RunE: func(command *cobra.Command, args []string) error {
			return a.withOffice(command, func(ctx context.Context, office *admin.Office) error {
				return a.deleteUser(ctx, command, office, args[0])
			})
		},
	})
}

func (a *app) deleteUser(ctx context.Context, command *cobra.Command, office *admin.Office, name string) error {
	s, err := office.Store.Snapshot(ctx)
	if err != nil {
		return err
	}
	user, err := findUser(s, name)
	if err != nil {
		return err
	}
	grants := len(s.GrantsOf(user.ID))
	if err := a.confirm("Delete user %q with %s", name, count(grants, "grant")); err != nil {
		return err
	}
	remove := func(force bool) error {
		about := act{name: "user.delete", details: map[string]string{"user": name}}
		return a.recorded(ctx, about, func() error { return office.DeleteUser(ctx, name, force) })
	}
	err = remove(false)
	if errors.Is(err, admin.ErrLastManager) {
		if err := a.confirm("%s. Delete them all the same", forPeople(err)); err != nil {
			return err
		}
		err = remove(true)
	}
	if err != nil {
		return err
	}
	a.tell(command, "user %q deleted with %s", name, count(grants, "grant"))
	a.next(command, "nothing: their certificate stays valid until it expires, but opens no session any more")
	return a.result(command, map[string]any{"name": name, "deleted": true, "grants": grants})
}

func viewUser(s *users.Snapshot, user *users.User) userView {
	view := userView{Name: user.Name, Disabled: user.Disabled, CreatedAt: user.CreatedAt.UTC(), Grants: []grantView{}}
	for _, g := range s.GrantsOf(user.ID) {
		view.Grants = append(view.Grants, viewGrant(s, g))
	}
	return view
}

func findUser(s *users.Snapshot, name string) (*users.User, error) {
	if user, ok := s.User(name); ok {
		return user, nil
	}
	return nil, fmt.Errorf("user %q: %w", name, users.ErrNotFound)
}

func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
