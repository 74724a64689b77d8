package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"chancery/internal/cli"
)

// tell says on standard error what was done. JSON callers read standard output instead.
func (a *app) tell(command *cobra.Command, format string, args ...any) {
	if !a.json {
		fmt.Fprintf(command.ErrOrStderr(), program+": "+format+"\n", args...)
	}
}

// next names the step that usually follows.
func (a *app) next(command *cobra.Command, format string, args ...any) {
	a.tell(command, "next: "+format, args...)
}

// warn says on standard error what the operator should know, JSON or not.
func warn(command *cobra.Command, format string, args ...any) {
	fmt.Fprintf(command.ErrOrStderr(), program+": warning: "+format+"\n", args...)
}

// result prints value with --json and nothing otherwise.
func (a *app) result(command *cobra.Command, value any) error {
	if !a.json {
		return nil
	}
	return cli.JSON(command.OutOrStdout(), value)
}

// list prints value with --json and else a table.
func (a *app) list(command *cobra.Command, value any, headings []string, rows [][]string) error {
	if a.json {
		return cli.JSON(command.OutOrStdout(), value)
	}
	return cli.Table(command.OutOrStdout(), headings, rows)
}

// field is one line of what `show` prints for people.
type field struct{ name, value string }

func (a *app) show(command *cobra.Command, value any, fields []field) error {
	if a.json {
		return cli.JSON(command.OutOrStdout(), value)
	}
	width := 0
	for _, f := range fields {
		width = max(width, len(f.name))
	}
	for _, f := range fields {
		if _, err := fmt.Fprintf(command.OutOrStdout(), "%-*s  %s\n", width+1, f.name+":", cli.Visible(f.value)); err != nil {
			return err
		}
	}
	return nil
}

// confirm asks on the terminal before something that cannot be taken back.
func (a *app) confirm(format string, args ...any) error {
	if a.yes {
		return nil
	}
	question := fmt.Sprintf(format, args...)
	terminal, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return &cli.Error{Exit: cli.ExitUsage, Code: "confirmation_needed", Message: question + ": no terminal to ask on", Hint: "add --yes if you mean it", Cause: err}
	}
	defer terminal.Close()
	answer, err := cli.Await(func() (string, error) {
		fmt.Fprintf(terminal, "%s. Type yes to go on: ", question)
		return bufio.NewReader(terminal).ReadString('\n')
	})
	if errors.Is(err, context.Canceled) {
		fmt.Fprintln(terminal)
		return err
	}
	if err != nil || strings.TrimSpace(answer) != "yes" {
		return &cli.Error{Exit: cli.ExitUsage, Code: "not_confirmed", Message: "not confirmed; nothing was changed"}
	}
	return nil
}

// addYes gives a destructive command its --yes.
func (a *app) addYes(command *cobra.Command) *cobra.Command {
	command.Flags().BoolVar(&a.yes, "yes", false, "do not ask for confirmation")
	return command
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func enabled(disabled bool) string {
	if disabled {
		return "disabled"
	}
	return "enabled"
}

// moment prints a time for people, in UTC; the zero time is "never".
func moment(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.UTC().Format("2006-01-02 15:04:05Z")
}

// optionalTime is the JSON form of a time that may be absent.
func optionalTime(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	utc := t.UTC()
	return &utc
}

func isNotExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }
