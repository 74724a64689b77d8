package main

import (
	"context"
	"strconv"

	"github.com/spf13/cobra"

	"chancery/admin"
	"chancery/internal/cli"
	"chancery/users"
)

const priorityUsage = "how soon requests get their turn at a busy token, 0 to 7; each step doubles the part of it beside others' (default 0)"

func checkPriority(what string, target admin.Target, priority int) error {
	switch {
	case target.Token != "":
		return cli.Usage("%s is for keys: a token's management signs nothing", what)
	case priority < 0 || priority > users.MaxPriority:
		return cli.Usage("%s %d: 0 to %d", what, priority, users.MaxPriority)
	}
	return nil
}

func (a *app) grantPriorityCommand() *cobra.Command {
	return &cobra.Command{
		Use: "set-priority KEY USER PRIORITY", Short: "Change how soon a grant's requests get their turn at a busy token",
		Long: `Change how soon the requests by a grant get their turn at a busy token: from 0, which grants
have by default, to 7. Each step doubles the part of the token that they get beside other users'
requests. Even the lowest keeps a part, so that nobody is shut out. Live sessions unlock the key again.`,
		Args: cli.Args(cobra.ExactArgs(3)), ValidArgsFunction: a.inOrder(keyNames, userNames, priorities),
		RunE: func(command *cobra.Command, args []string) error {
			target, user := admin.Target{Key: args[0]}, args[1]
			priority, err := strconv.Atoi(args[2])
			if err != nil {
				return cli.Usage("priority %q: 0 to %d", args[2], users.MaxPriority)
			}
			if err := checkPriority("priority", target, priority); err != nil {
				return err
			}
			return a.withOffice(command, func(ctx context.Context, office *admin.Office) error {
				return a.setPriority(ctx, command, office, target, user, priority)
			})
		},
	}
}

func (a *app) setPriority(ctx context.Context, command *cobra.Command, office *admin.Office, target admin.Target, user string, priority int) error {
	var changed users.Grant
	about := grantAct("grant.set_priority", "", target, user)
	about.details["priority"] = strconv.Itoa(priority)
	err := a.recorded(ctx, about, func() (err error) {
		changed, err = office.SetPriority(ctx, user, target, priority)
		return err
	})
	if err != nil {
		return err
	}
	s, err := office.Store.Snapshot(ctx)
	if err != nil {
		return err
	}
	view := viewGrant(s, &changed)
	a.tell(command, "grant of user %q on %s has priority %d; live sessions unlock it again", user, target, priority)
	return a.result(command, view)
}

func priorities(*users.Snapshot) []string {
	var all []string
	for priority := range users.MaxPriority + 1 {
		all = append(all, strconv.Itoa(priority))
	}
	return all
}
