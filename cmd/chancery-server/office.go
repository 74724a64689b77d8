package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"chancery/access"
	"chancery/admin"
	"chancery/token"
	"chancery/token/pkcs11"
	"chancery/token/soft"
	"chancery/token/tpm"
	"chancery/users"
)

// The drivers of tokens, as the database names them.
const (
	driverPKCS11 = "pkcs11"
	driverTPM    = "tpm"
	driverSoft   = "soft"
)

// accessParameters are those of new access keys. Tests make them cheap.
var accessParameters = access.NewParameters

// withOffice runs act with what operators' acts need. It takes as few sessions
// of a token as possible: a daemon may hold the others.
func (a *app) withOffice(command *cobra.Command, act func(context.Context, *admin.Office) error) error {
	return a.withStore(command, func(ctx context.Context, store users.Store) error {
		s, err := store.Snapshot(ctx)
		if err == nil {
			err = s.Closed() // there are no grants, and so nobody who may act
		}
		if err != nil {
			return err
		}
		log := slog.New(slog.NewTextHandler(command.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn})) // which replica is out of order
		return act(ctx, &admin.Office{
			Store: store, MinPassphrase: a.config.Passphrases.MinimumLength, Parameters: accessParameters,
			Open: func(ctx context.Context, t users.Token) (token.Token, error) {
				return a.config.Tokens.openGuarded(ctx, withFewSessions(t, pkcs11.MinSessions), a.config.pins(), log)
			},
		})
	})
}

// open opens a registered token with its driver, without login and without its replicas.
func (c tokensConfig) open(_ context.Context, t users.Token) (token.Token, error) {
	switch t.Driver {
	case driverSoft:
		return soft.Open(t.Location)
	case driverTPM:
		return tpm.Open(tpm.Config{Device: c.TPM, Directory: t.Location})
	case driverPKCS11:
		module, err := c.module(t.Location)
		if err != nil {
			return nil, err
		}
		config := pkcs11.Config{Module: module, Serial: t.Serial, MaxSessions: t.MaxSessions}
		if t.Serial == "" {
			config.Label = t.Label
		}
		return pkcs11.Open(config)
	}
	return nil, fmt.Errorf("token %q: driver %q: %w", t.Name, t.Driver, token.ErrUnsupported)
}

// managersOf names who can act on a key or a token now: the enabled users who manage it by a grant that has not run out.
func managersOf(s *users.Snapshot, target admin.Target) []string {
	var names []string
	now := time.Now()
	for i := range s.Users() {
		user := &s.Users()[i]
		if !user.Disabled && manages(s, user.ID, target, now) {
			names = append(names, user.Name)
		}
	}
	return names
}

func manages(s *users.Snapshot, userID int64, target admin.Target, now time.Time) bool {
	if t, ok := s.Token(target.Token); ok {
		grant, held := s.TokenGrant(userID, t.ID)
		return held && !grant.Expired(now)
	}
	k, ok := s.Key(target.Key)
	if !ok {
		return false
	}
	grant, held := s.KeyGrant(userID, k.ID)
	return held && grant.Role == users.RoleManager && !grant.Expired(now)
}
