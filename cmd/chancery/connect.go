package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"chancery/client"
	"chancery/internal/cli"
	"chancery/tunnel/wire"
)

// passphraseTries is how often somebody at a terminal is asked for a passphrase.
const passphraseTries = 3

// session is a connection for one command.
type session struct {
	*client.Client
	config *config
}

// connect reads the configuration and connects.
func (a *app) connect(ctx context.Context) (*session, error) {
	c, err := a.load()
	if err != nil {
		return nil, err
	}
	return a.connectAs(ctx, c)
}

// connectAs connects as a configuration says.
func (a *app) connectAs(ctx context.Context, c *config) (*session, error) {
	settings, err := c.client(a)
	if err != nil {
		return nil, err
	}
	connected, err := client.Connect(ctx, settings)
	if err != nil {
		return nil, err
	}
	return &session{Client: connected, config: c}, nil
}

// unlock opens a key with its passphrase. Only at the terminal a wrong one is asked for again.
func (s *session) unlock(ctx context.Context, a *app, name string, secret cli.Secret) error {
	for try := 1; ; try++ {
		passphrase, err := secret.Read()
		if err != nil {
			return err
		}
		err = s.Unlock(ctx, name, passphrase)
		clear(passphrase)
		var failed *client.Error
		wrong := errors.As(err, &failed) && failed.Code == wire.CodeWrongPassphrase
		if !wrong || secret.Given() || try == passphraseTries {
			return err
		}
		a.warn("%s", told(err).Message)
	}
}

// completeKeys offers the keys that the configuration names; the server is not asked.
func (a *app) completeKeys(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	c, _, err := a.read()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return c.keyNames(), cobra.ShellCompDirectiveNoFileComp
}
