// Package cli is what the three programs share on the terminal: exit codes and how
// an error is told, configuration, secrets and tables. Data goes to standard output and
// everything else to standard error behind the program's name.
package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
)

// ExitCode is the process's answer to the shell.
type ExitCode int

// The exit codes of all three programs.
const (
	ExitDone        ExitCode = 0
	ExitFailed      ExitCode = 1
	ExitUsage       ExitCode = 2
	ExitDenied      ExitCode = 3
	ExitUnreachable ExitCode = 4 // the other side is unreachable or busy: a retry may help
	ExitToken       ExitCode = 5 // the token is locked or absent
)

// Error is a failure as a user meets it. Code is stable and documented in docs/errors.md.
type Error struct {
	Exit    ExitCode
	Code    string // snake_case
	Message string // one sentence that says what to do
	Hint    string // a second line; may be empty
	Cause   error  // for errors.Is; not printed
}

func (e *Error) Error() string { return e.Message }

func (e *Error) Unwrap() error { return e.Cause }

// Usage returns an error for a call whose words are off.
func Usage(format string, args ...any) *Error {
	return &Error{Exit: ExitUsage, Code: "usage", Message: fmt.Sprintf(format, args...)}
}

// Misconfigured returns an error for a configuration with a value that cannot be, or without one that is needed.
func Misconfigured(format string, args ...any) *Error {
	return &Error{Exit: ExitUsage, Code: "config_invalid", Message: fmt.Sprintf(format, args...)}
}

// Failed returns an error with a code for a failure that fits no other exit code.
func Failed(code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Exit: ExitFailed, Code: code, Message: err.Error(), Cause: errors.Unwrap(err)}
}

// Run executes the command and returns its exit code. classify turns a package's
// error into an Error; it returns nil for what it does not know. With the
// persistent flag --json set, the error is printed as one JSON object.
func Run(root *cobra.Command, classify func(error) *Error) ExitCode {
	root.SilenceErrors = true
	root.SilenceUsage = true
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return Usage("%s", err) })
	addManual(root)
	command, err := root.ExecuteC()
	if err == nil {
		return ExitDone
	}
	told := explain(err, classify)
	if told.Code == "usage" && told.Hint == "" {
		told.Hint = fmt.Sprintf("see '%s --help'", command.CommandPath())
	}
	report(os.Stderr, root.Name(), told, wantsJSON(command))
	return told.Exit
}

func explain(err error, classify func(error) *Error) *Error {
	var told *Error
	if errors.As(err, &told) {
		return told
	}
	if told = classify(err); told != nil {
		return told
	}
	return &Error{Exit: ExitFailed, Code: "failed", Message: err.Error(), Cause: err}
}

func report(w io.Writer, program string, e *Error, asJSON bool) {
	if asJSON {
		line, err := json.Marshal(map[string]string{"code": e.Code, "message": e.Message, "hint": e.Hint})
		if err == nil {
			fmt.Fprintln(w, string(line))
			return
		}
	}
	const lines = "\n\t" // some errors have several
	fmt.Fprintf(w, "%s: %s [%s]\n", program, visible(e.Message, lines), Visible(e.Code))
	if e.Hint != "" {
		fmt.Fprintf(w, "%s: hint: %s\n", program, visible(e.Hint, lines))
	}
}

func wantsJSON(command *cobra.Command) bool {
	flag := command.Flags().Lookup("json")
	return flag != nil && flag.Value.String() == "true"
}

// Args wraps one of cobra's argument checks so that its complaint is a usage error that shows the command's form.
func Args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(command *cobra.Command, args []string) error {
		if err := check(command, args); err != nil {
			return Usage("%s; the form is: %s", err, command.UseLine())
		}
		return nil
	}
}
