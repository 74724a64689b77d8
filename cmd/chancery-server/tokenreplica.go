package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"chancery/admin"
	"chancery/internal/cli"
	"chancery/users"
)

// replicaView is the JSON form of a replica.
type replicaView struct {
	Name        string    `json:"name"`
	ReplicaOf   string    `json:"replica_of"`
	Driver      string    `json:"driver"`
	Location    string    `json:"location"`
	Serial      string    `json:"serial"`
	Label       string    `json:"label"`
	MaxSessions int       `json:"max_sessions"` // 0: the driver's default
	CreatedAt   time.Time `json:"created_at"`
}

func viewReplica(primary string, r users.Replica) replicaView {
	return replicaView{
		Name: r.Name, ReplicaOf: primary, Driver: r.Driver, Location: r.Location, Serial: r.Serial, Label: r.Label,
		MaxSessions: r.MaxSessions, CreatedAt: r.CreatedAt.UTC(),
	}
}

func viewReplicas(t *users.Token) []replicaView {
	return collect(t.Replicas, func(r users.Replica) replicaView { return viewReplica(t.Name, r) })
}

func replicaNamesOf(t *users.Token) string {
	return strings.Join(collect(t.Replicas, func(r users.Replica) string { return r.Name }), ", ")
}

// checkReplica refuses what only a token of its own has.
func (f *tokenFlags) checkReplica() error {
	switch {
	case f.create, f.pin.Given(), f.grantee.enrolment != "", f.grantee.generate:
		return cli.Usage("a replica has the keys, PIN and managers of %q: it is added by the passphrase of one of these, without --create, --pin-…, --enrolment and --generate", f.primary)
	}
	return nil
}

// addReplica registers a further home of a token's keys.
func (a *app) addReplica(ctx context.Context, command *cobra.Command, office *admin.Office, name string, flags *tokenFlags) error {
	if err := flags.checkReplica(); err != nil {
		return err
	}
	spec, err := flags.spec(a.config, name)
	if err != nil {
		return err
	}
	actor := &actorFlags{by: flags.by, passphrase: flags.grantee.passphrase}
	manager, err := a.tokenManager(ctx, office, flags.primary, actor)
	if err != nil {
		return err
	}
	defer manager.Clear()
	var added users.Replica
	about := act{name: "token.add_replica", user: manager.User, details: map[string]string{
		"token": flags.primary, "replica": name, "driver": spec.Driver, "location": spec.Location,
	}}
	err = a.recorded(ctx, about, func() (err error) {
		added, err = office.AddReplica(ctx, manager, flags.primary, spec)
		about.details["serial"] = added.Serial
		return err
	})
	if err != nil {
		return err
	}
	a.tell(command, "token %q added (serial %s); it has the PIN and the registered keys of %q and serves beside it", added.Name, added.Serial, flags.primary)
	a.next(command, "the daemon opens both anew, and live sessions unlock again; new keys are made on one, cloned to the other, and registered with 'key adopt'")
	return a.result(command, viewReplica(flags.primary, added))
}

// removeReplica forgets one home of a token's keys.
func (a *app) removeReplica(ctx context.Context, command *cobra.Command, store users.Store, r *users.Replica, primary *users.Token) error {
	if err := a.confirm("Forget token %q, which serves beside %q", r.Name, primary.Name); err != nil {
		return err
	}
	about := act{name: "token.remove_replica", details: map[string]string{"token": primary.Name, "replica": r.Name, "serial": r.Serial}}
	if err := a.recorded(ctx, about, func() error { return store.RemoveReplica(ctx, r.Name) }); err != nil {
		return err
	}
	a.tell(command, "token %q forgotten, %q goes on without it; nothing on either was changed", r.Name, primary.Name)
	return a.result(command, map[string]any{"name": r.Name, "replica_of": primary.Name, "removed": true})
}

// findAnyHome finds a token or a replica; exactly one of them is returned, the replica with its primary.
func findAnyHome(s *users.Snapshot, name string) (*users.Token, *users.Replica, error) {
	if r, primary, found := s.Replica(name); found {
		return primary, r, nil
	}
	t, err := findToken(s, name)
	return t, nil, err
}

// homeNames are the names of tokens and replicas.
func homeNames(s *users.Snapshot) []string {
	var names []string
	for i := range s.Tokens() {
		for _, home := range s.Tokens()[i].Homes() {
			names = append(names, home.Name)
		}
	}
	return names
}

// noSuchToken says so, or that a replica is no token by itself.
func noSuchToken(s *users.Snapshot, name string) error {
	if _, primary, found := s.Replica(name); found {
		return &cli.Error{
			Exit: cli.ExitFailed, Code: "not_found", Message: fmt.Sprintf("token %q is a replica of %q and has nothing of its own", name, primary.Name),
			Hint: fmt.Sprintf("name %q instead", primary.Name), Cause: users.ErrNotFound,
		}
	}
	return fmt.Errorf("token %q: %w", name, users.ErrNotFound)
}
