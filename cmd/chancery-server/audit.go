package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"chancery/audit"
	"chancery/internal/cli"
)

func (a *app) auditCommand() *cobra.Command {
	return family("audit", "Show and check the record of signatures, refusals and operators' acts",
		a.auditShowCommand(), a.auditVerifyCommand(), a.auditHeadCommand())
}

// mainKinds are the kinds of records that people look for.
var mainKinds = []string{
	string(audit.KindSign), string(audit.KindUnlock), string(audit.KindUnlockFailed), string(audit.KindRefused), string(audit.KindAdmin),
}

// showFlags choose records.
type showFlags struct {
	user, key, kind, outcome string
	since, until             string
	after                    uint64
	follow                   bool
}

func (a *app) auditShowCommand() *cobra.Command {
	flags := &showFlags{}
	command := &cobra.Command{
		Use: "show", Short: "Show records, oldest first",
		Long: `Show records of the audit log, oldest first. user= is who acted, and subject= the user whom
an act is about. With --json each is the line of the log itself. A place where the chain of hashes is broken is told on standard error, and
ends the command with an error after everything was shown.`,
		Args: cli.Args(cobra.NoArgs),
		RunE: func(command *cobra.Command, _ []string) error {
			c, err := a.loadConfig()
			if err != nil {
				return err
			}
			filter, err := flags.filter(time.Now())
			if err != nil {
				return err
			}
			return a.showRecords(command.Context(), command, c.auditLog().Directory, audit.ReadOptions{Filter: filter, Follow: flags.follow})
		},
	}
	f := command.Flags()
	f.StringVar(&flags.user, "user", "", "only records of this user's acts")
	f.StringVar(&flags.key, "key", "", "only records about this key")
	f.StringVar(&flags.kind, "kind", "", "only this kind: "+strings.Join(mainKinds, ", ")+", or one act such as admin.grant.add")
	f.StringVar(&flags.outcome, "outcome", "", "only this outcome: ok, intent or the code of an error")
	f.StringVar(&flags.since, "since", "", "only from this time on: a date, an RFC 3339 time, or a duration before now such as 24h")
	f.StringVar(&flags.until, "until", "", "only before this time")
	f.Uint64Var(&flags.after, "after", 0, "only records after this number")
	f.BoolVar(&flags.follow, "follow", false, "wait for more records until interrupted")
	a.completeFlag(command, "user", userNames)
	a.completeFlag(command, "key", keyNames)
	completeWords(command, "kind", mainKinds...)
	return command
}

func (f *showFlags) filter(now time.Time) (audit.Filter, error) {
	filter := audit.Filter{User: f.user, Key: f.key, Kind: audit.Kind(f.kind), Outcome: f.outcome, After: f.after}
	var err error
	if filter.Since, err = parseMoment("since", f.since, now); err != nil {
		return filter, err
	}
	filter.Until, err = parseMoment("until", f.until, now)
	return filter, err
}

// parseMoment reads a date, a time, or how long ago.
func parseMoment(flag, text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if ago, err := time.ParseDuration(text); err == nil {
		return now.Add(-ago), nil
	}
	for _, layout := range []string{time.DateOnly, time.RFC3339} {
		if at, err := time.Parse(layout, text); err == nil {
			return at, nil
		}
	}
	return time.Time{}, cli.Usage("--%s %q: give a date (2027-01-31), a time (2027-01-31T12:00:00Z) or a duration before now (24h)", flag, text)
}

func (a *app) showRecords(ctx context.Context, command *cobra.Command, directory string, options audit.ReadOptions) error {
	problems, shown := 0, 0
	for entry, err := range audit.Read(ctx, directory, options) {
		var problem *audit.Problem
		switch {
		case errors.As(err, &problem):
			problems++
			warn(command, "%s", forPeople(problem))
			continue
		case err != nil:
			return auditUnreadable(directory, err)
		}
		if err := a.printRecord(command.OutOrStdout(), &entry); err != nil {
			return err
		}
		shown++
	}
	if problems > 0 {
		return damaged(problems)
	}
	if shown == 0 && !options.Follow {
		a.tellNone(command, options.Filter.Kind)
	}
	return nil
}

// tellNone says that there is nothing to show. No kind is refused, since each act brings one of its own: a mistyped one shows here.
func (a *app) tellNone(command *cobra.Command, kind audit.Kind) {
	if kind == "" {
		a.tell(command, "no record fits")
		return
	}
	a.tell(command, "no record of the kind %q fits; kinds are %s and acts such as admin.grant.add", kind, strings.Join(mainKinds, ", "))
}

func (a *app) printRecord(w io.Writer, e *audit.Entry) error {
	if a.json {
		_, err := w.Write(append(bytes.Clone(e.Raw), '\n'))
		return err
	}
	_, err := fmt.Fprintln(w, recordLine(e))
	return err
}

// recordLine is one record for people. What a peer chose is quoted, so that no terminal obeys it.
func recordLine(e *audit.Entry) string {
	words := []string{fmt.Sprint(e.Seq), moment(e.Time), string(e.Kind), e.Outcome}
	for _, part := range []struct{ name, value string }{
		{"user", e.User}, {"key", e.Key}, {"scheme", e.Scheme}, {"hash", e.DigestAlgorithm}, {"digests", digestsText(e.Digests)},
	} {
		if part.value != "" {
			words = append(words, fmt.Sprintf("%s=%s", part.name, quoted(part.value)))
		}
	}
	if e.Peer != nil && e.Peer.Serial != "" {
		words = append(words, "certificate="+quoted(e.Peer.Serial))
	}
	if e.Session != "" {
		words = append(words, "session="+quoted(e.Session))
	}
	for _, name := range slices.Sorted(maps.Keys(e.Details)) {
		words = append(words, fmt.Sprintf("%s=%s", quoted(detailName(name)), quoted(e.Details[name])))
	}
	return strings.Join(words, " ")
}

// detailName keeps the user whom an act is about apart from the one who acts, which is what user= says.
func detailName(name string) string {
	if name == "user" {
		return "subject"
	}
	return name
}

// digestsText shows the first; --json has them all.
func digestsText(digests []string) string {
	switch len(digests) {
	case 0:
		return ""
	case 1:
		return digests[0]
	}
	return fmt.Sprintf("%s and %d more", digests[0], len(digests)-1)
}

func quoted(text string) string {
	for _, c := range text {
		if c <= ' ' || c == '"' || c == '=' || c >= 0x7f {
			return fmt.Sprintf("%+q", text)
		}
	}
	return text
}

func (a *app) auditVerifyCommand() *cobra.Command {
	var head string
	var archived bool
	command := &cobra.Command{
		Use: "verify", Short: "Check that no record was changed, removed or moved",
		Long: `Check the chain of hashes over the whole audit log. What it cannot show by itself is that
records were cut off its end, or that all of it was written anew: for that, keep what
'audit head' prints on another host, and give it as --head.`,
		Args: cli.Args(cobra.NoArgs),
		RunE: func(command *cobra.Command, _ []string) error {
			c, err := a.loadConfig()
			if err != nil {
				return err
			}
			options := audit.VerifyOptions{Archived: archived}
			if head != "" {
				kept, err := audit.ParseHead(head)
				if err != nil {
					return cli.Usage("--head: %s", forPeople(err))
				}
				options.Expect = &kept
			}
			report, err := audit.Verify(command.Context(), c.auditLog().Directory, options)
			if err != nil {
				return auditUnreadable(c.auditLog().Directory, err)
			}
			return a.tellReport(command, &report)
		},
	}
	command.Flags().StringVar(&head, "head", "", "an earlier output of 'audit head' that was kept on another host")
	command.Flags().BoolVar(&archived, "archived", false, "older files were moved to an archive: the log may begin later than with record 1")
	return command
}

func (a *app) tellReport(command *cobra.Command, report *audit.Report) error {
	if err := a.result(command, report); err != nil {
		return err
	}
	for i := range report.Problems {
		if !a.json {
			if _, err := fmt.Fprintln(command.OutOrStdout(), forPeople(&report.Problems[i])); err != nil {
				return err
			}
		}
	}
	if !report.OK() {
		return damaged(len(report.Problems) + report.More)
	}
	a.tell(command, "the audit log is whole: records %d to %d in %s", report.First, report.Last.Seq, count(report.Segments, "file"))
	a.next(command, "keep %s on another host, and give it to the next 'audit verify' as --head", report.Last)
	return nil
}

func damaged(problems int) error {
	return &cli.Error{
		Exit: cli.ExitFailed, Code: "audit_damaged", Message: fmt.Sprintf("the audit log is damaged: %s", count(problems, "problem")),
		Hint: "find out who could write to it; a backup of its files, or the bridge's and clients' logs, may have what is missing",
	}
}

func auditUnreadable(directory string, err error) error {
	if isNotExist(err) {
		return cli.Failed("audit_missing", "there is no audit log in %s: nothing was recorded yet, or audit.directory names another place than the daemon's", directory)
	}
	return fmt.Errorf("read the audit log: %w", err)
}

func (a *app) auditHeadCommand() *cobra.Command {
	return &cobra.Command{
		Use: "head", Short: "Print the place of the last record, to be kept on another host",
		Long: `Print number and hash of the last record. Kept where nobody who can write to the audit log can
change it, it lets 'audit verify --head' show later that records were cut off or written anew.`,
		Args: cli.Args(cobra.NoArgs),
		RunE: func(command *cobra.Command, _ []string) error {
			c, err := a.loadConfig()
			if err != nil {
				return err
			}
			head, err := audit.End(command.Context(), c.auditLog().Directory)
			if err == nil && head.Seq == 0 {
				return auditUnreadable(c.auditLog().Directory, fs.ErrNotExist)
			}
			if err != nil {
				return auditUnreadable(c.auditLog().Directory, err)
			}
			if a.json {
				return a.result(command, head)
			}
			_, err = fmt.Fprintln(command.OutOrStdout(), head)
			return err
		},
	}
}
