package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"chancery/internal/cli"
	"chancery/token/guard"
	"chancery/users"
)

func (a *app) tokenUnblockCommand() *cobra.Command {
	return &cobra.Command{
		Use: "unblock NAME", Short: "Let PINs be tried again that a token has rejected",
		Long: "Forget which PINs a token, or a replica of it, has rejected, so that they may be sent again, and have the running daemon open the token anew. For a\n" +
			"PIN that is right by now, because the token was set back to it, or whose login never ended. Each wrong PIN that is sent\n" +
			"again costs one of the token's tries; the last one is never spent.",
		Args: cli.Args(cobra.ExactArgs(1)), ValidArgsFunction: a.namesOf(tokenNames),
		RunE: func(command *cobra.Command, args []string) error {
			return a.withStore(command, func(ctx context.Context, store users.Store) error {
				s, err := store.Snapshot(ctx)
				if err != nil {
					return err
				}
				t, err := findToken(s, args[0])
				if err != nil {
					return err
				}
				return a.unblock(ctx, command, store, t)
			})
		},
	}
}

// unblock clears the guard's memory first: should the store's fail, the command can be repeated.
func (a *app) unblock(ctx context.Context, command *cobra.Command, store users.Store, t *users.Token) error {
	about := act{name: "token.unblock", details: map[string]string{"token": t.Name, "serial": t.Serial}}
	var forgotten int
	err := a.recorded(ctx, about, func() (err error) {
		memory := guard.New(a.config.pins())
		for _, home := range t.Homes() {
			cleared, err := memory.Clear(home.Serial)
			if err != nil {
				return fmt.Errorf("token %q: %w", home.Name, err)
			}
			forgotten += cleared
		}
		about.details["forgotten"] = strconv.Itoa(forgotten)
		return store.Unblock(ctx, t.Name)
	})
	if err != nil {
		return err
	}
	a.tell(command, "token %q may be sent again what it had rejected (PINs forgotten: %d)", t.Name, forgotten)
	a.next(command, "'token repair-pin' wraps the right PIN for all grants, should they hold a wrong one")
	return a.result(command, map[string]any{"name": t.Name, "forgotten": forgotten, "reload_requested": true})
}
