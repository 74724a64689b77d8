package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"chancery/internal/cli"
	"chancery/seal"
	"chancery/users"
)

// sealView is the JSON form of a seal.
type sealView struct {
	Name       string          `json:"name"`
	Kind       string          `json:"kind"`
	Parameters json.RawMessage `json:"parameters"`
	DataKey    string          `json:"data_key"`  // name of the data key, hex
	Authentic  bool            `json:"authentic"` // it was written under the seal; false too where no seal opens
	CreatedAt  time.Time       `json:"created_at"`
}

func (a *app) sealCommand() *cobra.Command {
	return family("seal", "Seal the database, so that a copy of it is of no use and a forged row does not work",
		a.sealAddCommand(), a.sealListCommand(), a.sealRemoveCommand(), a.sealRotateCommand(), a.sealTestCommand())
}

// withSeals runs act with the database open, and what opens the seal over it.
func (a *app) withSeals(command *cobra.Command, act func(context.Context, users.SealStore, *seal.Opener) error) error {
	return a.withStore(command, func(ctx context.Context, store users.Store) error {
		sealable, ok := store.(users.SealStore)
		if !ok {
			return cli.Failed("not_supported", "this kind of database cannot be sealed")
		}
		return act(ctx, sealable, a.opener())
	})
}

func viewSeal(state users.SealState, s users.Seal) sealView {
	view := sealView{Name: s.Name, Kind: s.Kind, Parameters: s.Parameters, DataKey: hex.EncodeToString(state.KeyID), Authentic: s.Authentic, CreatedAt: s.CreatedAt.UTC()}
	if !json.Valid(view.Parameters) {
		view.Parameters = json.RawMessage("null")
	}
	return view
}

func (a *app) sealListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the seals",
		Args: cli.Args(cobra.NoArgs),
		RunE: func(command *cobra.Command, _ []string) error {
			return a.withSeals(command, func(ctx context.Context, store users.SealStore, _ *seal.Opener) error {
				state, err := store.Seals(ctx)
				if err != nil {
					return err
				}
				views, rows := []sealView{}, [][]string{}
				for _, s := range state.Seals {
					view := viewSeal(state, s)
					views = append(views, view)
					rows = append(rows, []string{s.Name, s.Kind, where(s.Kind, s.Parameters), yesNo(s.Authentic), moment(s.CreatedAt)})
				}
				return a.list(command, views, []string{"SEAL", "KIND", "WHERE", "AUTHENTIC", "SINCE"}, rows)
			})
		},
	}
}

// sealOutcome is how one seal was, when it was tried.
type sealOutcome struct {
	Name  string `json:"name"`
	Kind  string `json:"kind"`
	Opens bool   `json:"opens"`
	Code  string `json:"code,omitempty"`
	Error string `json:"error,omitempty"`
}

func (a *app) sealTestCommand() *cobra.Command {
	return &cobra.Command{
		Use: "test [NAME]", Short: "Open each seal, or one, and say which work",
		Args: cli.Args(cobra.MaximumNArgs(1)), ValidArgsFunction: a.sealNames(1),
		RunE: func(command *cobra.Command, args []string) error {
			a.leaveSealed = true // each seal is asked once, here
			return a.withSeals(command, func(ctx context.Context, store users.SealStore, opener *seal.Opener) error {
				state, err := sealedState(ctx, store)
				if err != nil {
					return err
				}
				if len(args) > 0 {
					one, err := findSeal(state, args[0])
					if err != nil {
						return err
					}
					state.Seals = []users.Seal{one}
				}
				return a.testSeals(ctx, command, opener, state)
			})
		},
	}
}

func (a *app) testSeals(ctx context.Context, command *cobra.Command, opener *seal.Opener, state users.SealState) error {
	outcomes, rows, failures := []sealOutcome{}, [][]string{}, []error{}
	for i := range state.Seals {
		s := &state.Seals[i]
		err := try(ctx, opener, s, state.KeyID)
		outcome := sealOutcome{Name: s.Name, Kind: s.Kind, Opens: err == nil}
		if err != nil {
			failures = append(failures, err)
			outcome.Code, outcome.Error = outcomeOf(err), forPeople(err)
		}
		outcomes = append(outcomes, outcome)
		rows = append(rows, []string{s.Name, s.Kind, yesNo(outcome.Opens), outcome.Error})
	}
	if err := a.list(command, outcomes, []string{"SEAL", "KIND", "OPENS", "WHY NOT"}, rows); err != nil {
		return err
	}
	switch len(failures) {
	case 0:
		return nil
	case len(state.Seals):
		return fmt.Errorf("%w: %w", users.ErrSealClosed, errors.Join(failures...))
	}
	return &cli.Error{
		Exit: cli.ExitFailed, Code: "seal_partly_closed", Message: fmt.Sprintf("%d of %d seals do not open", len(failures), len(state.Seals)),
		Hint: "the others open the database; 'seal remove' and 'seal add' replace one that is gone for good", Cause: errors.Join(failures...),
	}
}

func try(ctx context.Context, opener *seal.Opener, s *users.Seal, keyID []byte) error {
	key, err := opener.Open(ctx, s, keyID)
	if err == nil {
		key.Close()
	}
	return err
}

// sealedState is how the database is sealed. Error: users.ErrNotSealed.
func sealedState(ctx context.Context, store users.SealStore) (users.SealState, error) {
	state, err := store.Seals(ctx)
	if err == nil && len(state.KeyID) == 0 {
		err = users.ErrNotSealed
	}
	return state, err
}

func findSeal(state users.SealState, name string) (users.Seal, error) {
	for _, s := range state.Seals {
		if s.Name == name {
			return s, nil
		}
	}
	return users.Seal{}, fmt.Errorf("seal %q: %w", name, users.ErrNotFound)
}

// sealNames completes up to so many arguments with the names of seals.
func (a *app) sealNames(places int) completion {
	return func(command *cobra.Command, args []string, _ string) (names []cobra.Completion, _ cobra.ShellCompDirective) {
		if len(args) < places {
			names = a.readSealNames(command)
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

func (a *app) readSealNames(command *cobra.Command) (names []string) {
	if command.Context() == nil {
		command.SetContext(context.Background())
	}
	a.leaveSealed = true
	_ = a.withSeals(command, func(ctx context.Context, store users.SealStore, _ *seal.Opener) error {
		state, err := store.Seals(ctx)
		names = collect(state.Seals, func(s users.Seal) string { return s.Name })
		return err
	})
	return names
}

func (a *app) sealRemoveCommand() *cobra.Command {
	var unseal bool
	command := a.addYes(&cobra.Command{
		Use: "remove NAME", Short: "Remove a seal",
		Long: `Remove a seal. The others stay. Copies of the database that were made before still open
by it; 'seal rotate' afterwards makes that of no use for what comes.
The last seal is removed only with --unseal-all, which stores all grants in the clear again.`,
		Args: cli.Args(cobra.ExactArgs(1)), ValidArgsFunction: a.sealNames(1),
	})
	command.Flags().BoolVar(&unseal, "unseal-all", false, "remove the last seal, and store all grants in the clear again")
	command.RunE = func(command *cobra.Command, args []string) error {
		return a.withSeals(command, func(ctx context.Context, store users.SealStore, _ *seal.Opener) error {
			state, err := sealedState(ctx, store)
			if err != nil {
				return err
			}
			s, err := findSeal(state, args[0])
			if err != nil {
				return err
			}
			if unseal {
				return a.unseal(ctx, command, store, state, s)
			}
			return a.removeSeal(ctx, command, store, s)
		})
	}
	return command
}

func (a *app) removeSeal(ctx context.Context, command *cobra.Command, store users.SealStore, s users.Seal) error {
	if err := a.confirm("Remove seal %q (%s)", s.Name, where(s.Kind, s.Parameters)); err != nil {
		return err
	}
	about := act{name: "seal.remove", details: map[string]string{"seal": s.Name, "kind": s.Kind}}
	if err := a.recorded(ctx, about, func() error { return store.RemoveSeal(ctx, s.Name) }); err != nil {
		return err
	}
	a.tell(command, "seal %q is removed", s.Name)
	a.next(command, "'seal rotate', unless you trust who holds it now: it opens older copies of the database")
	return a.result(command, map[string]any{"name": s.Name, "removed": true, "unsealed": false})
}

func (a *app) unseal(ctx context.Context, command *cobra.Command, store users.SealStore, state users.SealState, s users.Seal) error {
	switch {
	case len(state.Seals) > 1:
		return cli.Usage("there are %d seals: remove the others first; --unseal-all is for the last one", len(state.Seals))
	case a.config.Seal.Required:
		return cli.Misconfigured("seal.required is true: a database without a seal would be refused; set it to false first")
	}
	if err := a.confirm("Remove the last seal %q, and store all grants in the clear", s.Name); err != nil {
		return err
	}
	about := act{name: "seal.unseal", details: map[string]string{"seal": s.Name, "kind": s.Kind}}
	if err := a.recorded(ctx, about, func() error { return store.Unseal(ctx) }); err != nil {
		return err
	}
	a.tell(command, "the database is not sealed any more")
	a.next(command, "restart the daemon: while it runs, it refuses a database whose seal went away")
	return a.result(command, map[string]any{"name": s.Name, "removed": true, "unsealed": true})
}

func (a *app) sealRotateCommand() *cobra.Command {
	var drop []string
	command := &cobra.Command{
		Use: "rotate", Short: "Replace the data key, and encrypt everything anew",
		Long: `Replace the data key and encrypt everything anew, in one transaction. Seals that open
now keep the new data key as well; those that do not have to be named with --drop, and are removed.`,
		Args: cli.Args(cobra.NoArgs),
		RunE: func(command *cobra.Command, _ []string) error {
			return a.withSeals(command, func(ctx context.Context, store users.SealStore, opener *seal.Opener) error {
				state, err := sealedState(ctx, store)
				if err != nil {
					return err
				}
				return a.rotateSeals(ctx, command, store, opener, state, drop)
			})
		},
	}
	command.Flags().StringSliceVar(&drop, "drop", nil, "remove this seal, which does not open (may be given several times)")
	must(command.RegisterFlagCompletionFunc("drop", func(command *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return a.readSealNames(command), cobra.ShellCompDirectiveNoFileComp
	}))
	return command
}

func (a *app) rotateSeals(ctx context.Context, command *cobra.Command, store users.SealStore, opener *seal.Opener, state users.SealState, drop []string) error {
	for _, name := range drop {
		if _, err := findSeal(state, name); err != nil {
			return err
		}
	}
	kept, err := keptSeals(ctx, opener, state, drop)
	if err != nil {
		return err
	}
	names := collect(kept, func(s users.Seal) string { return s.Name })
	about := act{name: "seal.rotate", details: map[string]string{"seals": strings.Join(names, ", "), "dropped": strings.Join(drop, ", ")}}
	key := seal.NewKey()
	err = a.recorded(ctx, about, func() error {
		for i := range kept {
			if err := opener.Wrap(ctx, &kept[i], key); err != nil {
				return err
			}
		}
		return store.SealWith(ctx, state.KeyID, key, kept)
	})
	if err != nil {
		key.Close()
		return err
	}
	a.scrub(ctx, command, store)
	a.tell(command, "everything is encrypted under a new data key, kept by %s: %s", count(len(kept), "seal"), strings.Join(names, ", "))
	a.next(command, "'seal test'; and a backup: those made before open by the old data key only")
	return a.result(command, map[string]any{"data_key": hex.EncodeToString(key.ID()), "seals": names, "dropped": append([]string{}, drop...)})
}

// keptSeals are the seals that a new data key goes into: all that open, and were written under the seal. The others have to be dropped by name.
func keptSeals(ctx context.Context, opener *seal.Opener, state users.SealState, drop []string) ([]users.Seal, error) {
	var kept []users.Seal
	for i := range state.Seals {
		s := state.Seals[i]
		if slices.Contains(drop, s.Name) {
			continue
		}
		err := try(ctx, opener, &s, state.KeyID)
		if err == nil && !s.Authentic {
			err = fmt.Errorf("seal %q: %w", s.Name, users.ErrUnsealedRow)
		}
		if err != nil {
			return nil, &cli.Error{
				Exit: cli.ExitFailed, Code: "seal_partly_closed", Message: forPeople(err) + "; nothing was changed",
				Hint: fmt.Sprintf("bring it back, or give it up with --drop %s", s.Name), Cause: err,
			}
		}
		kept = append(kept, s)
	}
	if len(kept) == 0 {
		return nil, fmt.Errorf("no seal would be left: %w", users.ErrLastSeal)
	}
	return kept, nil
}

// scrub overwrites what was stored before. That it cannot is no failure: the seal is on.
func (a *app) scrub(ctx context.Context, command *cobra.Command, store users.SealStore) {
	if err := store.Scrub(ctx); err != nil {
		warn(command, "what was stored before could not be overwritten in %s-wal, and goes at the daemon's next checkpoint or restart: %s", filepath.Base(a.config.database()), forPeople(err))
	}
}

// sealsOf names the seals over a store.
func sealsOf(ctx context.Context, store users.Store) ([]string, error) {
	sealable, ok := store.(users.SealStore)
	if !ok {
		return []string{}, nil
	}
	state, err := sealable.Seals(ctx)
	return collect(state.Seals, func(s users.Seal) string { return s.Name }), err
}
