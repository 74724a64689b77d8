package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/spf13/cobra"

	"chancery/internal/cli"
	"chancery/seal"
	"chancery/users"
	"chancery/users/sqlite"
)

// asDaemon is the advice to whoever may not read or write what is the daemon's.
const asDaemon = "run this as the user of the daemon, for example with sudo -u chancery"

// withStore runs act with the database open.
func (a *app) withStore(command *cobra.Command, act func(context.Context, users.Store) error) error {
	c, err := a.loadConfig()
	if err != nil {
		return err
	}
	store, err := openStore(command.Context(), c, a.storeOpener())
	if err != nil {
		return err
	}
	return errors.Join(a.actAndTell(command, store, act), a.closeAudit(), store.Close())
}

// actAndTell runs act and, if that changed the database, has the daemon take the change up
// before the command ends: what was revoked is refused from then on, and what was granted works.
func (a *app) actAndTell(command *cobra.Command, store users.Store, act func(context.Context, users.Store) error) error {
	ctx := command.Context()
	before, err := store.Revision(ctx)
	if err != nil {
		return err
	}
	failed := act(ctx, store)
	ctx = context.WithoutCancel(ctx) // a change that is made before a signal comes is taken up all the same
	after, err := store.Revision(ctx)
	if err != nil || after == before {
		return errors.Join(failed, err)
	}
	if err := refreshDaemon(ctx, a.config.socket()); err != nil {
		warn(command, "the daemon could not be told of the change; it takes it up by itself as soon as it can: %s", forPeople(err))
	}
	return failed
}

// withSnapshot runs act with all that the database holds.
func (a *app) withSnapshot(command *cobra.Command, act func(*users.Snapshot) error) error {
	return a.withStore(command, func(ctx context.Context, store users.Store) error {
		snapshot, err := store.Snapshot(ctx)
		if err != nil {
			return err
		}
		if closed := snapshot.Closed(); closed != nil {
			warn(command, "grants are left out, and nothing vouches for the rest: %s", forPeople(closed))
		}
		return act(snapshot)
	})
}

// storeOpener opens the seal over the database for a command, unless that leaves it as it is.
func (a *app) storeOpener() users.SealOpener {
	if a.leaveSealed {
		return nil
	}
	return a.opener()
}

// opener is one for all of a command, since it remembers the PINs that a token rejected.
func (a *app) opener() *seal.Opener {
	if a.seals == nil {
		a.seals = a.config.sealOpener(nil)
	}
	return a.seals
}

// openStore opens the database, which is made on first use. Without an opener, a sealed one stays closed.
func openStore(ctx context.Context, c *config, opener users.SealOpener) (users.Store, error) {
	for _, path := range []string{c.State.Directory, c.database()} {
		if err := checkOwner(path); err != nil {
			return nil, err
		}
	}
	store, err := sqlite.OpenSealed(ctx, c.database(), opener)
	switch _, known := databaseKind(err); {
	case err == nil:
		return store, nil
	case known, errors.Is(err, sqlite.ErrPermissions), errors.Is(err, sqlite.ErrSchema), errors.Is(err, syscall.ENOSPC):
		return nil, err
	}
	return nil, &cli.Error{
		Exit: cli.ExitFailed, Code: "state_unusable", Message: "cannot open the database: " + forPeople(err),
		Hint: "see state.directory in the configuration, and run this as the user of the daemon", Cause: err,
	}
}

// checkOwner refuses what belongs to another user: the files that root would make beside
// the database, the daemon could not open any more.
func checkOwner(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return nil // opening the database tells it, or makes it
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || int(stat.Uid) == os.Geteuid() {
		return nil
	}
	return &cli.Error{
		Exit: cli.ExitFailed, Code: "state_owner",
		Message: fmt.Sprintf("%s belongs to user %d and this is user %d", path, stat.Uid, os.Geteuid()),
		Hint:    asDaemon,
	}
}
