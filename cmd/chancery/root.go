package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"chancery/internal/cli"
)

// app is what the commands of one call share.
type app struct {
	configFile string        // --config
	json       bool          // --json
	quiet      bool          // --quiet
	timeout    time.Duration // --timeout
	stdout     io.Writer
	stderr     io.Writer
}

func newRoot() *cobra.Command {
	a := &app{stdout: os.Stdout, stderr: os.Stderr}
	root := &cobra.Command{
		Use:   program,
		Short: "Sign files with keys that a signing server keeps",
		Long: "chancery signs files with keys that a signing server keeps in hardware or in files of its own.\n" +
			"Data goes to standard output, everything else to standard error.\n\n" +
			"Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 denied, 4 unreachable or busy, 5 token locked or absent.",
		Args: subcommand,
		RunE: help,
	}
	flags := root.PersistentFlags()
	flags.StringVar(&a.configFile, "config", "", "configuration file (default: chancery/client.toml in the user's configuration directory, then "+systemConfigFile+")")
	flags.BoolVar(&a.json, "json", false, "print results and errors as JSON")
	flags.BoolVarP(&a.quiet, "quiet", "q", false, "say nothing but data and errors")
	flags.DurationVar(&a.timeout, "timeout", 0, "give up after this time, for example 5m (default: no limit)")
	root.AddCommand(
		a.whoamiCommand(), a.keysCommand(), a.keyCommand(), a.enrollCommand(),
		a.signCommand(), a.verifyCommand(), a.configCommand(), cli.VersionCommand(),
	)
	return root
}

// help is what a command does that only has others below it.
func help(command *cobra.Command, _ []string) error { return command.Help() }

// subcommand refuses a word that is no command below this one, and tells the commands that look like it.
func subcommand(command *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	unknown := cli.Usage("unknown command %q for %q", args[0], command.CommandPath())
	command.SuggestionsMinimumDistance = 2 // edits; without it only the beginning of a command's name is known again
	if similar := command.SuggestionsFor(args[0]); len(similar) > 0 {
		unknown.Hint = fmt.Sprintf("did you mean '%s'? see '%s --help'", strings.Join(similar, "' or '"), command.CommandPath())
	}
	return unknown
}

// atMostOne refuses flags that contradict each other.
func atMostOne(command *cobra.Command, names ...string) error {
	var given []string
	for _, name := range names {
		if command.Flags().Changed(name) {
			given = append(given, "--"+name)
		}
	}
	if len(given) > 1 {
		return cli.Usage("%s exclude each other", strings.Join(given, " and "))
	}
	return nil
}

// oneOf demands exactly one of two flags.
func oneOf(command *cobra.Command, first, second string) error {
	if !command.Flags().Changed(first) && !command.Flags().Changed(second) {
		return cli.Usage("give --%s or --%s", first, second)
	}
	return atMostOne(command, first, second)
}

// context is the command's, with the limit of --timeout.
func (a *app) context(command *cobra.Command) (context.Context, context.CancelFunc) {
	if a.timeout > 0 {
		return context.WithTimeout(command.Context(), a.timeout)
	}
	return context.WithCancel(command.Context())
}

// say tells people what happened, unless --quiet.
func (a *app) say(format string, args ...any) {
	if !a.quiet {
		a.warn(format, args...)
	}
}

// warn tells people what they must not miss.
func (a *app) warn(format string, args ...any) {
	fmt.Fprintf(a.stderr, program+": "+format+"\n", args...)
}
