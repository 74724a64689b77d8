package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"chancery/audit"
	"chancery/internal/cli"
	"chancery/seal"
)

const (
	program   = "chancery-server"
	serveName = "serve"
)

// app is what the commands of one call share.
type app struct {
	configFile string // --config
	json       bool   // --json
	yes        bool   // --yes

	config     *config    // nil until loadConfig
	configFrom string     // the file it came from, or ""
	audit      *audit.Log // nil until openAudit

	seals       *seal.Opener // nil until opener
	leaveSealed bool         // the database is opened without asking its seals
}

func newRoot() *cobra.Command {
	a := &app{}
	root := &cobra.Command{
		Use:   program,
		Short: "The signing server and its operators' tool",
		Long: `chancery-server keeps signing keys in tokens and lets named users sign with them.

'chancery-server serve' is the daemon. It dials out to the bridge and listens nowhere.
The other commands are the operators': they change the database in the state
directory, and a running daemon takes every change up within a second.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 denied, 4 unreachable or busy, 5 token locked or absent.`,
		Args: cli.Args(cobra.NoArgs),
		RunE: func(command *cobra.Command, _ []string) error { return command.Help() },

		PersistentPreRunE: func(command *cobra.Command, _ []string) error {
			stopOnSignal(command)
			return checkFlags(command)
		},
	}
	root.PersistentFlags().StringVar(&a.configFile, "config", "", "configuration file (default "+defaultConfigFile+")")
	root.PersistentFlags().BoolVar(&a.json, "json", false, "print results and errors as JSON")
	root.AddGroup(&cobra.Group{ID: "run", Title: "The daemon:"}, &cobra.Group{ID: "manage", Title: "Users, tokens, keys and grants:"})
	root.AddCommand(
		inGroup("run", a.serveCommand()), inGroup("run", a.statusCommand()), inGroup("run", a.configCommand()),
		inGroup("manage", a.userCommand()), inGroup("manage", a.tokenCommand()), inGroup("manage", a.keyCommand()),
		inGroup("manage", a.grantCommand()), inGroup("manage", a.auditCommand()), inGroup("manage", a.pkiCommand()),
		inGroup("manage", a.sealCommand()), a.sealHelperCommand(),
		a.workerCommand(), cli.VersionCommand(),
	)
	return root
}

// stopOnSignal has SIGINT and SIGTERM end the command's context, so that it can leave things whole. A second
// signal has its usual effect. The daemon has its own way, and may not have begun to serve; a token's
// process ends with the daemon.
func stopOnSignal(command *cobra.Command) {
	if command.Name() == serveName || command.Name() == workerName {
		return
	}
	ctx, stop := signal.NotifyContext(command.Context(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	command.SetContext(ctx)
}

// checkFlags does what cobra would do next, so that its complaints are usage errors.
func checkFlags(command *cobra.Command) error {
	err := command.ValidateRequiredFlags()
	if err == nil {
		err = command.ValidateFlagGroups()
	}
	if err != nil {
		return cli.Usage("%s", err)
	}
	return nil
}

func inGroup(group string, command *cobra.Command) *cobra.Command {
	command.GroupID = group
	return command
}

// family returns a command that only holds others.
func family(use, short string, commands ...*cobra.Command) *cobra.Command {
	parent := &cobra.Command{
		Use: use, Short: short, Args: cli.Args(cobra.NoArgs),
		RunE: func(command *cobra.Command, _ []string) error { return command.Help() },
	}
	parent.AddCommand(commands...)
	return parent
}

func (a *app) configCommand() *cobra.Command {
	return cli.ConfigCommand(
		func() (any, string, error) {
			c, err := a.loadConfig()
			return c, a.configFrom, err
		},
		func() error { return a.config.checkDaemon() },
	)
}
