package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/user"
	"strconv"
	"strings"
	"time"

	"chancery/audit"
	"chancery/internal/cli"
)

const (
	// outcomeIntent is the outcome of a record that was made before its act.
	outcomeIntent = "intent"
	// recordPatience bounds how long a command waits to record what came of its act.
	recordPatience = 10 * time.Second
)

// act is an administrative act, for the audit log.
type act struct {
	name    string // such as grant.add
	user    string // who proved themself by a passphrase; "" where none is needed
	key     string // what it is about, where that is a key
	details map[string]string
}

func (a act) record(outcome string) audit.Record {
	return audit.Record{Kind: audit.Admin(a.name), User: a.user, Key: a.key, Details: maps.Clone(a.details), Outcome: outcome}
}

// recorded does something that is recorded before it is done, and again with what came of it. What
// do puts into the act's details is in the second record.
func (a *app) recorded(ctx context.Context, about act, do func() error) error {
	log, err := a.openAudit()
	if err != nil {
		return unrecorded(err)
	}
	if about.details == nil {
		about.details = make(map[string]string)
	}
	maps.Copy(about.details, operator())
	return recordAct(ctx, log, about, do)
}

func recordAct(ctx context.Context, log *audit.Log, about act, do func() error) error {
	intent, err := log.Append(ctx, about.record(outcomeIntent))
	if err != nil {
		return unrecorded(err)
	}
	failed := do()
	outcome := audit.OutcomeOK
	if failed != nil {
		outcome = outcomeOf(failed)
	}
	about.details["intent"] = strconv.FormatUint(intent.Seq, 10)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordPatience)
	defer cancel()
	if _, err := log.Append(ctx, about.record(outcome)); err != nil {
		return errors.Join(halfRecorded(intent.Seq, outcome, err), failed)
	}
	return failed
}

// outcomeOf is the code that the operator meets.
func outcomeOf(err error) string {
	var told *cli.Error
	if errors.As(err, &told) {
		return told.Code
	}
	return classify(err).Code
}

func unrecorded(err error) error {
	return fmt.Errorf("nothing was changed, because it could not be recorded: %w", err)
}

func halfRecorded(seq uint64, outcome string, err error) error {
	done := "the change IS MADE"
	if outcome != audit.OutcomeOK {
		done = fmt.Sprintf("the change failed (%s)", outcome)
	}
	return &cli.Error{
		Exit: cli.ExitFailed, Code: "audit_incomplete",
		Message: fmt.Sprintf("%s, but the audit log only has its beginning, as record %d: %s", done, seq, forPeople(err)),
		Hint:    "look at the disk of the audit log, and note what came of it elsewhere", Cause: err,
	}
}

// openAudit opens the audit log once for all acts of a command.
func (a *app) openAudit() (*audit.Log, error) {
	if a.audit != nil {
		return a.audit, nil
	}
	log, err := audit.Open(a.config.auditLog())
	if err != nil {
		return nil, err
	}
	a.audit = log
	return log, nil
}

func (a *app) closeAudit() error {
	if a.audit == nil {
		return nil
	}
	log := a.audit
	a.audit = nil
	return log.Close()
}

// operator tells who runs this program, as far as the system knows: the user whose rights it has,
// the one who called sudo, and the one who logged in.
func operator() map[string]string {
	uid := strconv.Itoa(os.Getuid())
	who := map[string]string{"operator": uid}
	if current, err := user.Current(); err == nil {
		who["operator"] = fmt.Sprintf("%s (%s)", current.Username, uid)
	}
	if name := os.Getenv("SUDO_USER"); name != "" {
		who["sudo_user"] = name
	}
	const nobody = "4294967295"
	if login, err := os.ReadFile("/proc/self/loginuid"); err == nil {
		if id := strings.TrimSpace(string(login)); id != "" && id != nobody {
			who["login_uid"] = id
		}
	}
	return who
}
