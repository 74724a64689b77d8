package main

import (
	"context"
	"errors"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"chancery/internal/certfile"
	"chancery/internal/cli"
	"chancery/internal/listen"
	"chancery/tunnel/bridge"
)

func (a *app) serveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "serve", Short: "Serve until SIGTERM or SIGINT (the default)",
		Long: "Serve until SIGTERM or SIGINT. Sessions in progress then have timeouts.drain to end; a second signal ends them at once.\n" +
			"Certificates, key and revocation lists are loaded again when their files change, at once with SIGHUP.",
		Args: cli.Args(cobra.NoArgs),
		RunE: func(command *cobra.Command, _ []string) error {
			c, err := a.load()
			if err != nil {
				return err
			}
			return c.serve(command.Context())
		},
	}
}

func (c *config) serve(ctx context.Context) error {
	log, err := c.Log.Logger(os.Stderr)
	if err != nil {
		return err
	}
	counted := newMetrics()
	b, certificates, err := c.bridge(log, counted)
	if err != nil {
		return err
	}
	clients, err := listenFor("clients", c.Listen.Clients)
	if err != nil {
		return err
	}
	servers, err := listenFor("servers", c.Listen.Servers)
	if err != nil {
		return errors.Join(err, clients.Close())
	}
	onlookers, err := c.Observe.listen()
	if err != nil {
		return errors.Join(err, clients.Close(), servers.Close())
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	// Once draining, the next signal has its usual effect.
	context.AfterFunc(ctx, stop)
	log.Info("listening", "clients", clients.Addr().String(), "servers", servers.Addr().String(), "allowed_servers", c.Servers)
	reloadOnHangup(ctx, certificates, b)
	go certificates.Watch(ctx, certfile.DefaultInterval, func() { b.CutRevoked() })
	end := counted.show(ctx, onlookers, shown{b, certificates, log})
	err = b.Serve(ctx, clients, servers)
	end()
	log.Info("stopped", "sessions", b.Stats().Paired)
	return err
}

// reloadOnHangup loads the certificates at once with each SIGHUP.
func reloadOnHangup(ctx context.Context, certificates *certfile.Live, b *bridge.Bridge) {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	go func() {
		defer signal.Stop(hangups)
		for {
			select {
			case <-ctx.Done():
				return
			case <-hangups:
				_ = certificates.Reload() // it is logged there
				b.CutRevoked()
			}
		}
	}()
}

func listenFor(what, address string) (net.Listener, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, listen.Failed(what, address, "listen."+what, err)
	}
	return listener, nil
}

// classify turns the errors of this program's packages into what a user meets.
func classify(err error) *cli.Error {
	switch {
	case errors.Is(err, bridge.ErrConfig):
		return &cli.Error{Exit: cli.ExitUsage, Code: "config_invalid", Message: err.Error(), Cause: err}
	case errors.Is(err, certfile.ErrUnusable):
		return &cli.Error{Exit: cli.ExitUsage, Code: "certificate_unusable", Message: "the TLS files: " + strings.TrimPrefix(err.Error(), certfile.ErrUnusable.Error()+": "), Hint: "see the table [tls] of the configuration", Cause: err}
	}
	return nil
}
