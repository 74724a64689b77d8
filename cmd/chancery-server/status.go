package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"chancery/internal/cli"
	"chancery/internal/observe"
	"chancery/signer"
	"chancery/users"
)

// statusView is what `status --json` prints.
type statusView struct {
	Database databaseView `json:"database"`
	Daemon   *liveStatus  `json:"daemon"` // null: none runs
}

type databaseView struct {
	Path                string   `json:"path"`
	Revision            int64    `json:"revision"`
	Users               int      `json:"users"`
	DisabledUsers       int      `json:"disabled_users"`
	Tokens              int      `json:"tokens"`
	SoftwareTokens      []string `json:"software_tokens"`
	Keys                int      `json:"keys"`
	DisabledKeys        int      `json:"disabled_keys"`
	Grants              int      `json:"grants"`
	ExpiredGrants       int      `json:"expired_grants"`
	PINChangesInFlight  []string `json:"pin_changes_in_flight"`
	TokensRejectingPINs []string `json:"tokens_rejecting_pins"`
	UnreadableRows      []string `json:"unreadable_rows"` // left out, so that nobody can use them
	Seals               []string `json:"seals"`           // names; none: it is not sealed
	SealClosed          string   `json:"seal_closed,omitempty"`
}

// liveStatus is what the running daemon tells over its control socket.
type liveStatus struct {
	PID     int           `json:"pid"`
	Started time.Time     `json:"started"`
	Bridge  bridgeStatus  `json:"bridge"`
	Signer  signer.Status `json:"signer"`

	Certificates certificateStatus `json:"certificates"`
	Troubles     []observe.Trouble `json:"troubles"` // the last warnings and errors, the latest first
}

type bridgeStatus struct {
	Address      string     `json:"address"`
	Reachable    bool       `json:"reachable"`               // a leg waits there, or a client is just being served
	Waiting      int        `json:"waiting"`                 // legs
	WaitingSince *time.Time `json:"waiting_since,omitempty"` // when the oldest of these came
	Connecting   int        `json:"connecting"`
	Handshaking  int        `json:"handshaking"`
	Accepted     uint64     `json:"accepted"` // sessions since the start
	Refused      uint64     `json:"refused"`
	LastError    string     `json:"last_error,omitempty"`
	LastErrorAt  *time.Time `json:"last_error_at,omitempty"`
}

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show what is registered, and how the daemon is",
		Args: cli.Args(cobra.NoArgs),
		RunE: func(command *cobra.Command, _ []string) error {
			return a.withStore(command, func(ctx context.Context, store users.Store) error {
				s, err := store.Snapshot(ctx)
				if err != nil {
					return err
				}
				live, err := askDaemon(ctx, a.config.socket())
				if err != nil {
					return err
				}
				view := statusView{Database: viewDatabase(a.config, s), Daemon: live}
				if view.Database.Seals, err = sealsOf(ctx, store); err != nil {
					return err
				}
				return a.show(command, view, view.fields(a.config))
			})
		},
	}
}

func viewDatabase(c *config, s *users.Snapshot) databaseView {
	view := databaseView{
		Path: c.database(), Revision: s.Revision, Users: len(s.Users()), Tokens: len(s.Tokens()), Keys: len(s.Keys()), Grants: len(s.Grants()),
		SoftwareTokens: []string{}, PINChangesInFlight: []string{}, TokensRejectingPINs: []string{},
		UnreadableRows: collect(s.Unreadable(), func(row users.Unreadable) string { return plain(row.String()) }),
	}
	if closed := s.Closed(); closed != nil {
		view.SealClosed = forPeople(closed)
	}
	for _, u := range s.Users() {
		view.DisabledUsers += number(u.Disabled)
	}
	for _, k := range s.Keys() {
		view.DisabledKeys += number(k.Disabled)
	}
	now := time.Now()
	for i := range s.Grants() {
		view.ExpiredGrants += number(s.Grants()[i].Expired(now))
	}
	for _, t := range s.Tokens() {
		if !t.Hardware {
			view.SoftwareTokens = append(view.SoftwareTokens, t.Name)
		}
		if t.PINStaged {
			view.PINChangesInFlight = append(view.PINChangesInFlight, t.Name)
		}
		if t.PINRejected {
			view.TokensRejectingPINs = append(view.TokensRejectingPINs, t.Name)
		}
	}
	return view
}

func (d *databaseView) tokens() string {
	if d.Tokens == 0 {
		return "none"
	}
	return fmt.Sprintf("%d (hardware: no for %s)", d.Tokens, orNone(d.SoftwareTokens))
}

func (v *statusView) fields(c *config) []field {
	d := &v.Database
	fields := []field{
		{"database", d.Path},
		{"users", fmt.Sprintf("%d (%d disabled)", d.Users, d.DisabledUsers)},
		{"tokens", d.tokens()},
		{"keys", fmt.Sprintf("%d (%d disabled)", d.Keys, d.DisabledKeys)},
		{"grants", fmt.Sprintf("%d (%d expired)", d.Grants, d.ExpiredGrants)},
		{"PIN changes in flight", orNone(d.PINChangesInFlight)},
		{"PIN rejected by", orNone(d.TokensRejectingPINs)},
	}
	for _, row := range d.UnreadableRows {
		fields = append(fields, field{"LEFT OUT", row + " (nobody can use it; restore the database from its backup)"})
	}
	fields = append(fields, field{"seals", orNone(d.Seals)})
	if d.SealClosed != "" {
		fields = append(fields, field{"seal", "CLOSED, so that no grant works: " + d.SealClosed})
	}
	if v.Daemon == nil {
		return append(fields, field{"daemon", "not running (nothing answers on " + c.socket() + ")"})
	}
	return append(fields, v.Daemon.fields()...)
}

func (s *liveStatus) fields() []field {
	fields := []field{
		{"daemon", fmt.Sprintf("running as process %d since %s", s.PID, moment(s.Started))},
		{"bridge", s.Bridge.sentence()},
		{"sessions", fmt.Sprintf("%d open, %d requests in flight, %d since the start, %d handshakes refused", s.Signer.Sessions, s.Signer.InFlight, s.Bridge.Accepted, s.Bridge.Refused)},
	}
	fields = append(fields, field{"queue", s.queue()})
	if s.Signer.Seal != "" {
		fields = append(fields, field{"seal", "CLOSED for the daemon, so that nothing is signed: " + plain(s.Signer.Seal)})
	}
	if s.Signer.Audit != "" {
		fields = append(fields, field{"audit log", "NOT WRITABLE, so that nothing is signed: " + plain(s.Signer.Audit)})
	}
	fields = append(fields, s.Certificates.fields()...)
	for _, t := range s.Signer.Tokens {
		text := fmt.Sprintf("%s is %s since %s", t.Name, t.State, moment(t.Since))
		if t.Error != "" {
			text += ": " + plain(t.Error)
		}
		if len(t.Refused) > 0 {
			text += "; refused, since the token has another public half: " + strings.Join(t.Refused, ", ")
		}
		fields = append(fields, field{"token", text})
	}
	for _, t := range s.Troubles {
		fields = append(fields, field{"trouble", describeTrouble(t)})
	}
	return fields
}

// queue tells who waits for what.
func (s *liveStatus) queue() string {
	text := fmt.Sprintf("%d requests wait for room, %d passphrases are checked and %d wait for that, %d signatures are in a token",
		s.Signer.Queued, s.Signer.Derivations.Running, s.Signer.Derivations.Waiting, s.Signer.Signing)
	if s.Signer.Store.Error != "" {
		text += "; the database cannot be read since " + moment(s.Signer.Store.Good) + ": " + plain(s.Signer.Store.Error)
	}
	return text
}

func describeTrouble(t observe.Trouble) string {
	text := moment(t.Time) + " " + t.Message
	if t.Session != "" {
		text += " session=" + t.Session
	}
	if t.Details != "" {
		text += " " + t.Details
	}
	return plain(text)
}

func (b *bridgeStatus) sentence() string {
	text := fmt.Sprintf("%s reachable, %d legs waiting", b.Address, b.Waiting)
	if b.WaitingSince != nil {
		text += ", the oldest for " + time.Since(*b.WaitingSince).Round(time.Second).String()
	}
	if !b.Reachable {
		text = b.Address + " NOT reachable"
	}
	if b.LastError != "" && b.LastErrorAt != nil {
		text += fmt.Sprintf("; last error %s: %s", moment(*b.LastErrorAt), b.LastError)
	}
	return text
}

func orNone(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}
