package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"chancery/internal/cli"
)

func (a *app) whoamiCommand() *cobra.Command {
	return &cobra.Command{
		Use: "whoami", Short: "Print the user's name as the server knows it",
		Args: cli.Args(cobra.NoArgs),
		RunE: func(command *cobra.Command, _ []string) error {
			ctx, cancel := a.context(command)
			defer cancel()
			s, err := a.connect(ctx)
			if err != nil {
				return err
			}
			defer s.Close()
			user, err := s.WhoAmI(ctx)
			if err != nil {
				return err
			}
			if a.json {
				return cli.JSON(a.stdout, map[string]string{"user": user})
			}
			_, err = fmt.Fprintln(a.stdout, printable(user))
			return err
		},
	}
}
