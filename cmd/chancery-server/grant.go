package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"chancery/admin"
	"chancery/internal/cli"
	"chancery/users"
)

func (a *app) grantCommand() *cobra.Command {
	return family("grant", "Manage who may use which key",
		a.grantAddCommand(), a.grantListCommand(), a.grantRevokeCommand(), a.grantPriorityCommand(), a.grantPassphraseCommand())
}

// targetArguments reads KEY USER, or USER alone with --token.
func targetArguments(tokenName string, args []string) (admin.Target, string, error) {
	switch {
	case tokenName != "" && len(args) == 1:
		return admin.Target{Token: tokenName}, args[0], nil
	case tokenName == "" && len(args) == 2:
		return admin.Target{Key: args[0]}, args[1], nil
	}
	return admin.Target{}, "", cli.Usage("name KEY and USER, or USER alone with --token")
}

func (a *app) addTarget(command *cobra.Command) *string {
	name := command.Flags().String("token", "", "the management of this token instead of a key")
	a.completeFlag(command, "token", tokenNames)
	command.Args = cli.Args(cobra.RangeArgs(1, 2))
	command.ValidArgsFunction = func(command *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if *name != "" {
			return a.inOrder(userNames)(command, args, prefix)
		}
		return a.inOrder(keyNames, userNames)(command, args, prefix)
	}
	return name
}

// grantFlags are what `grant add` was told.
type grantFlags struct {
	role, expires string
	lease         time.Duration
	uses          int
	priority      int
	token         *string
	actor         *actorFlags
	grantee       *granteeFlags
}

func (a *app) grantAddCommand() *cobra.Command {
	flags := &grantFlags{}
	command := &cobra.Command{
		Use: "add KEY USER | --token TOKEN USER", Short: "Let a user sign with a key, manage it, or manage a token",
		Long: `Let a user sign with a key (signer), also grant it to others (manager), or make keys on a
token (--token). A manager's passphrase unwraps the PIN, which is then wrapped for the user:
to the enrolment string that they made with 'chancery enroll', so that nobody learns
their passphrase, or to a passphrase that they type here.`,
	}
	flags.token = a.addTarget(command)
	flags.actor = a.addActor(command, "manager")
	flags.grantee = addGrantee(command, "grantee-passphrase", "grantee's passphrase")
	command.Flags().StringVar(&flags.role, "role", string(users.RoleSigner), "signer or manager; with --token always token-manager")
	command.Flags().StringVar(&flags.expires, "expires", "", "end of the grant: a date (its first moment, UTC), an RFC 3339 time or a duration such as 720h (default never)")
	command.Flags().DurationVar(&flags.lease, "lease", 0, "how long an unlock lasts, such as 8h (default: sessions.lease of the configuration)")
	command.Flags().IntVar(&flags.uses, "uses", 0, "signatures that an unlock is good for (default: any number)")
	command.Flags().IntVar(&flags.priority, "priority", 0, priorityUsage)
	completeWords(command, "role", string(users.RoleSigner), string(users.RoleManager))
	command.RunE = func(command *cobra.Command, args []string) error {
		target, user, err := targetArguments(*flags.token, args)
		if err != nil {
			return err
		}
		spec, err := flags.spec(command, target)
		if err != nil {
			return err
		}
		return a.withOffice(command, func(ctx context.Context, office *admin.Office) error {
			return a.addGrant(ctx, command, office, spec, user, flags)
		})
	}
	return command
}

func (f *grantFlags) spec(command *cobra.Command, target admin.Target) (admin.GrantSpec, error) {
	spec := admin.GrantSpec{Target: target, Role: users.Role(f.role)}
	switch {
	case target.Token != "" && !command.Flags().Changed("role"):
		spec.Role = users.RoleTokenManager
	case target.Token != "" && spec.Role != users.RoleTokenManager:
		return spec, cli.Usage("--role %s is for keys; --token makes a token manager", f.role)
	case target.Token == "" && spec.Role != users.RoleSigner && spec.Role != users.RoleManager:
		return spec, cli.Usage("--role %q: signer or manager", f.role)
	}
	if err := f.checkLease(command, target); err != nil {
		return spec, err
	}
	if command.Flags().Changed("priority") {
		if err := checkPriority("--priority", target, f.priority); err != nil {
			return spec, err
		}
	}
	spec.Lease, spec.LeaseUses, spec.Priority = f.lease, f.uses, f.priority
	var err error
	spec.Expires, err = parseExpiry(f.expires, time.Now())
	return spec, err
}

func (f *grantFlags) checkLease(command *cobra.Command, target admin.Target) error {
	timed, counted := command.Flags().Changed("lease"), command.Flags().Changed("uses")
	switch {
	case target.Token != "" && (timed || counted):
		return cli.Usage("--lease and --uses are for keys: a token's management is unlocked for each command")
	case timed && (f.lease < time.Second || f.lease%time.Second != 0):
		return cli.Usage("--lease %s: whole seconds, and at least one", f.lease)
	case counted && f.uses < 1:
		return cli.Usage("--uses %d: at least 1", f.uses)
	}
	return nil
}

func (a *app) addGrant(ctx context.Context, command *cobra.Command, office *admin.Office, spec admin.GrantSpec, user string, flags *grantFlags) error {
	s, err := office.Store.Snapshot(ctx)
	if err != nil {
		return err
	}
	if err := checkNewGrant(s, spec.Target, user); err != nil {
		return err
	}
	actor, err := a.managerOf(s, spec.Target, flags.actor)
	if err != nil {
		return err
	}
	defer actor.Clear()
	grantee, err := flags.grantee.read(a, command, user, spec.Target)
	if err != nil {
		return err
	}
	defer grantee.Clear()
	var added users.Grant
	about := grantAct("grant.add", actor.User, spec.Target, user)
	about.details["role"] = string(spec.Role)
	if !spec.Expires.IsZero() {
		about.details["expires"] = spec.Expires.Format(time.RFC3339)
	}
	if lease := leaseText(spec.Lease, spec.LeaseUses); lease != "" {
		about.details["lease"] = lease
	}
	if spec.Priority > 0 {
		about.details["priority"] = strconv.Itoa(spec.Priority)
	}
	err = a.recorded(ctx, about, func() (err error) {
		added, err = office.AddGrant(ctx, actor, spec, grantee)
		about.details["grant"] = fmt.Sprint(added.ID)
		return err
	})
	if err != nil {
		return err
	}
	passphrase, err := flags.grantee.reveal(a, command, grantee)
	if err != nil {
		return err
	}
	if s, err = office.Store.Snapshot(ctx); err != nil {
		return err
	}
	view := viewGrant(s, &added)
	a.tell(command, "granted: %s", view.sentence())
	a.next(command, "%s", afterGrant(&view))
	return a.result(command, struct {
		grantView
		Passphrase string `json:"passphrase,omitempty"`
	}{view, passphrase})
}

// grantAct is about a user's grant on a key or token.
func grantAct(name, actor string, target admin.Target, user string) act {
	about := act{name: name, user: actor, key: target.Key, details: map[string]string{"user": user}}
	if target.Token != "" {
		about.details["token"] = target.Token
	}
	return about
}

func afterGrant(g *grantView) string {
	if g.Key == "" {
		return fmt.Sprintf("%s makes keys with 'key create NAME --token %s --by %s'", g.User, g.Token, g.User)
	}
	return fmt.Sprintf("%s signs with 'chancery sign raw %s FILE'; 'chancery keys' shows them what they hold", g.User, g.Key)
}

func checkNewGrant(s *users.Snapshot, target admin.Target, user string) error {
	if _, err := findUser(s, user); err != nil {
		return err
	}
	if err := findTarget(s, target); err != nil {
		return err
	}
	if grant, ok := heldGrant(s, user, target); ok {
		return fmt.Errorf("the grant of user %q on %s as %s: %w; revoke it first", user, target, grant.Role, users.ErrExists)
	}
	return nil
}

func findTarget(s *users.Snapshot, target admin.Target) error {
	if target.Token != "" {
		_, err := findToken(s, target.Token)
		return err
	}
	_, err := findKey(s, target.Key)
	return err
}

func heldGrant(s *users.Snapshot, name string, target admin.Target) (*users.Grant, bool) {
	user, ok := s.User(name)
	if !ok {
		return nil, false
	}
	if t, ok := s.Token(target.Token); ok && target.Token != "" {
		return s.TokenGrant(user.ID, t.ID)
	}
	if k, ok := s.Key(target.Key); ok && target.Key != "" {
		return s.KeyGrant(user.ID, k.ID)
	}
	return nil, false
}

// managerOf finds out who acts on a key or token, and asks for their passphrase.
func (a *app) managerOf(s *users.Snapshot, target admin.Target, flags *actorFlags) (admin.Actor, error) {
	role := "manager"
	if target.Token != "" {
		role = "token manager"
	}
	user, err := flags.choose(role, managersOf(s, target), target)
	if err != nil {
		return admin.Actor{}, err
	}
	return flags.read(role, user, target)
}

func (a *app) grantListCommand() *cobra.Command {
	var key, tokenName, user string
	command := &cobra.Command{
		Use: "list", Short: "List grants",
		Args: cli.Args(cobra.NoArgs),
		RunE: func(command *cobra.Command, _ []string) error {
			return a.withSnapshot(command, func(s *users.Snapshot) error {
				views, rows := []grantView{}, [][]string{}
				for i := range s.Grants() {
					g := viewGrant(s, &s.Grants()[i])
					if key != "" && g.Key != key || tokenName != "" && g.Token != tokenName || user != "" && g.User != user {
						continue
					}
					views = append(views, g)
					rows = append(rows, []string{fmt.Sprint(g.ID), g.User, string(g.Role), g.target(), "hardware: " + yesNo(g.Hardware), g.until(), leaseText(g.lease, g.LeaseUses), strconv.Itoa(g.Priority), g.Fingerprint, g.CreatedBy})
				}
				return a.list(command, views, []string{"ID", "USER", "ROLE", "OF", "PROTECTION", "EXPIRES", "LEASE", "PRIORITY", "ACCESS KEY", "GRANTED BY"}, rows)
			})
		},
	}
	command.Flags().StringVar(&key, "key", "", "only grants on this key")
	command.Flags().StringVar(&tokenName, "token", "", "only grants on this token and its keys")
	command.Flags().StringVar(&user, "user", "", "only this user's grants")
	a.completeFlag(command, "key", keyNames)
	a.completeFlag(command, "token", tokenNames)
	a.completeFlag(command, "user", userNames)
	return command
}

func (a *app) grantRevokeCommand() *cobra.Command {
	command := a.addYes(&cobra.Command{
		Use: "revoke KEY USER | --token TOKEN USER", Short: "Take a grant away, at once and in live sessions",
	})
	tokenName := a.addTarget(command)
	command.RunE = func(command *cobra.Command, args []string) error {
		target, user, err := targetArguments(*tokenName, args)
		if err != nil {
			return err
		}
		return a.withOffice(command, func(ctx context.Context, office *admin.Office) error {
			revoke := func(force bool) error {
				return a.recorded(ctx, grantAct("grant.revoke", "", target, user), func() error { return office.RevokeGrant(ctx, user, target, force) })
			}
			err := revoke(false)
			if errors.Is(err, admin.ErrLastManager) {
				if err := a.confirm("User %q is the last who manages %s; without them nobody can grant it", user, target); err != nil {
					return err
				}
				err = revoke(true)
			}
			if err != nil {
				return err
			}
			a.tell(command, "grant of user %q on %s revoked, from now on and in live sessions", user, target)
			return a.result(command, map[string]any{"user": user, "key": target.Key, "token": target.Token, "revoked": true})
		})
	}
	return command
}

func (a *app) grantPassphraseCommand() *cobra.Command {
	command := &cobra.Command{
		Use: "change-passphrase KEY USER | --token TOKEN USER", Short: "Change the passphrase that opens a grant",
		Long: "Change the passphrase that opens one grant. The user proves themself by the old one. Their other grants keep theirs.",
	}
	tokenName := a.addTarget(command)
	old := secretFlags(command, "passphrase", "user's present passphrase")
	renewed := addGrantee(command, "new-passphrase", "user's new passphrase")
	command.RunE = func(command *cobra.Command, args []string) error {
		target, user, err := targetArguments(*tokenName, args)
		if err != nil {
			return err
		}
		return a.withOffice(command, func(ctx context.Context, office *admin.Office) error {
			return a.changePassphrase(ctx, command, office, target, user, &actorFlags{by: user, passphrase: old}, renewed)
		})
	}
	return command
}

func (a *app) changePassphrase(ctx context.Context, command *cobra.Command, office *admin.Office, target admin.Target, user string, old *actorFlags, renewed *granteeFlags) error {
	s, err := office.Store.Snapshot(ctx)
	if err != nil {
		return err
	}
	if _, err := findUser(s, user); err != nil {
		return err
	}
	if err := findTarget(s, target); err != nil {
		return err
	}
	if _, held := heldGrant(s, user, target); !held {
		return fmt.Errorf("grant of user %q on %s: %w", user, target, users.ErrNotFound)
	}
	actor, err := old.read("user", user, target)
	if err != nil {
		return err
	}
	defer actor.Clear()
	replacement, err := renewed.read(a, command, user, target)
	if err != nil {
		return err
	}
	defer replacement.Clear()
	var changed users.Grant
	err = a.recorded(ctx, grantAct("grant.change_passphrase", actor.User, target, user), func() (err error) {
		changed, err = office.ChangePassphrase(ctx, actor, target, replacement)
		return err
	})
	if err != nil {
		return err
	}
	passphrase, err := renewed.reveal(a, command, replacement)
	if err != nil {
		return err
	}
	a.tell(command, "user %q opens %s with the new passphrase; live sessions have to unlock it again", user, target)
	return a.result(command, struct {
		grantView
		Passphrase string `json:"passphrase,omitempty"`
	}{viewGrant(s, &changed), passphrase})
}
