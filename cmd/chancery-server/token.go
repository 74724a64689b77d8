package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"chancery/admin"
	"chancery/internal/cli"
	"chancery/token"
	"chancery/users"
)

func (a *app) tokenCommand() *cobra.Command {
	return family("token", "Manage tokens, the homes of keys",
		a.tokenProbeCommand(), a.tokenAddCommand(), a.tokenListCommand(), a.tokenShowCommand(),
		a.tokenReloadCommand(), a.tokenUnblockCommand(), a.tokenChangePINCommand(), a.tokenRepairPINCommand(), a.tokenRemoveCommand())
}

func (a *app) tokenListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List tokens",
		Args: cli.Args(cobra.NoArgs),
		RunE: func(command *cobra.Command, _ []string) error {
			return a.withSnapshot(command, func(s *users.Snapshot) error {
				views, rows := []tokenView{}, [][]string{}
				for i := range s.Tokens() {
					v := viewToken(s, &s.Tokens()[i])
					views = append(views, v)
					rows = append(rows, []string{v.Name, v.Driver, "hardware: " + yesNo(v.Hardware), v.Serial, v.Label, fmt.Sprint(len(v.Keys)), replicaNamesOf(&s.Tokens()[i]), strings.Join(v.Managers, ",")})
				}
				return a.list(command, views, []string{"TOKEN", "DRIVER", "PROTECTION", "SERIAL", "LABEL", "KEYS", "REPLICAS", "MANAGERS"}, rows)
			})
		},
	}
}

func (a *app) tokenShowCommand() *cobra.Command {
	var keys bool
	command := &cobra.Command{
		Use: "show NAME", Short: "Show a token, or the keys that it holds",
		Args: cli.Args(cobra.ExactArgs(1)), ValidArgsFunction: a.namesOf(tokenNames),
		RunE: func(command *cobra.Command, args []string) error {
			if keys {
				return a.showTokenKeys(command, args[0])
			}
			return a.withSnapshot(command, func(s *users.Snapshot) error {
				t, err := findToken(s, args[0])
				if err != nil {
					return err
				}
				v := viewToken(s, t)
				return a.show(command, v, append(v.fields(), v.replicaFields()...))
			})
		},
	}
	command.Flags().BoolVar(&keys, "keys", false, "ask the token itself which keys it shows without a PIN, registered or not")
	return command
}

func (v *tokenView) fields() []field {
	return []field{
		{"token", v.Name}, {"driver", v.Driver}, {"hardware", yesNo(v.Hardware)}, {"location", v.Location},
		{"serial", v.Serial}, {"label", v.Label}, {"managers", strings.Join(v.Managers, ", ")},
		{"keys", strings.Join(v.Keys, ", ")}, {"max sessions", sessionsText(v.MaxSessions)},
		{"PIN change", inFlight(v.PINChangeInFlight)}, {"PIN rejected", yesNo(v.PINRejected)}, {"since", moment(v.CreatedAt)},
	}
}

func (v *tokenView) replicaFields() []field {
	return collect(v.Replicas, func(r replicaView) field {
		return field{"replica", fmt.Sprintf("%s (driver %s, location %s, serial %s, label %s, max sessions %s)",
			r.Name, r.Driver, r.Location, r.Serial, r.Label, sessionsText(r.MaxSessions))}
	})
}

// heldKeyView is a key as its token lists it.
type heldKeyView struct {
	ID         string          `json:"id"` // hex
	Label      string          `json:"label"`
	Algorithm  token.Algorithm `json:"algorithm"`
	Hardware   bool            `json:"hardware"`
	Registered string          `json:"registered,omitempty"` // Chancery's name for it
}

func (a *app) showTokenKeys(command *cobra.Command, name string) error {
	return a.withOffice(command, func(ctx context.Context, office *admin.Office) error {
		info, held, err := office.Inspect(ctx, name)
		if err != nil {
			return err
		}
		s, err := office.Store.Snapshot(ctx)
		if err != nil {
			return err
		}
		t, err := findToken(s, name)
		if err != nil {
			return err
		}
		views, rows := []heldKeyView{}, [][]string{}
		for _, key := range held {
			v := heldKeyView{ID: hex.EncodeToString(key.ID), Label: key.Label, Algorithm: key.Algorithm, Hardware: info.Hardware, Registered: registeredAs(s, t, key.ID)}
			views = append(views, v)
			rows = append(rows, []string{v.ID, v.Label, string(v.Algorithm), "hardware: " + yesNo(v.Hardware), v.Registered})
		}
		return a.list(command, views, []string{"ID", "LABEL", "ALGORITHM", "PROTECTION", "REGISTERED AS"}, rows)
	})
}

func registeredAs(s *users.Snapshot, t *users.Token, id []byte) string {
	for _, k := range s.Keys() {
		if k.TokenID == t.ID && bytes.Equal(k.TokenKeyID, id) {
			return k.Name
		}
	}
	return ""
}

func (a *app) tokenReloadCommand() *cobra.Command {
	return &cobra.Command{
		Use: "reload NAME", Short: "Have the daemon close and open a token again",
		Long: "Have the running daemon close a token and open it again: after a module's upgrade, or when the token was plugged in again.\n" +
			"Users' next unlock logs in anew. A PIN that the token has rejected stays so: see 'token unblock'.",
		Args: cli.Args(cobra.ExactArgs(1)), ValidArgsFunction: a.namesOf(tokenNames),
		RunE: func(command *cobra.Command, args []string) error {
			return a.withStore(command, func(ctx context.Context, store users.Store) error {
				about := act{name: "token.reload", details: map[string]string{"token": args[0]}}
				if err := a.recorded(ctx, about, func() error { return store.RequestReload(ctx, args[0]) }); err != nil {
					return err
				}
				a.tell(command, "reload of token %q requested", args[0])
				a.next(command, "'status' shows how it went")
				return a.result(command, map[string]any{"name": args[0], "reload_requested": true})
			})
		},
	}
}

func (a *app) tokenRemoveCommand() *cobra.Command {
	return a.addYes(&cobra.Command{
		Use: "remove NAME", Short: "Forget a token, or a replica of one",
		Long: "Forget a token with its replicas and its token managers' grants, or one replica alone. Nothing is touched on the tokens themselves.\n" +
			"A token with registered keys stays.",
		Args: cli.Args(cobra.ExactArgs(1)), ValidArgsFunction: a.namesOf(homeNames),
		RunE: func(command *cobra.Command, args []string) error {
			return a.withStore(command, func(ctx context.Context, store users.Store) error {
				s, err := store.Snapshot(ctx)
				if err != nil {
					return err
				}
				t, replica, err := findAnyHome(s, args[0])
				if err != nil {
					return err
				}
				if replica != nil {
					return a.removeReplica(ctx, command, store, replica, t)
				}
				if keys := viewToken(s, t).Keys; len(keys) > 0 {
					return fmt.Errorf("token %q holds the registered keys %s: %w", t.Name, strings.Join(keys, ", "), users.ErrInUse)
				}
				if err := a.confirm("Forget token %q and who manages it; adding it again takes its PIN", t.Name); err != nil {
					return err
				}
				about := act{name: "token.remove", details: map[string]string{"token": t.Name, "serial": t.Serial}}
				if err := a.recorded(ctx, about, func() error { return store.RemoveToken(ctx, t.Name) }); err != nil {
					return err
				}
				a.tell(command, "token %q forgotten; nothing on the token itself was changed", t.Name)
				return a.result(command, map[string]any{"name": t.Name, "removed": true})
			})
		},
	})
}

func findToken(s *users.Snapshot, name string) (*users.Token, error) {
	if t, ok := s.Token(name); ok {
		return t, nil
	}
	return nil, noSuchToken(s, name)
}

func sessionsText(sessions int) string {
	if sessions == 0 {
		return "the driver's default"
	}
	return fmt.Sprint(sessions)
}

func inFlight(staged bool) string {
	if staged {
		return "in flight: 'token change-pin --settle' completes it, and so does the next unlock"
	}
	return "none in flight"
}
