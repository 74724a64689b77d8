package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"chancery/internal/cli"
	"chancery/internal/confine"
	"chancery/token"
	"chancery/token/guard"
	"chancery/token/worker"
	"chancery/users"
)

const workerName = "token-worker"

// custody is what the daemon tells a token's process.
type custody struct {
	Token   users.Token
	Tokens  tokensConfig
	PINs    string   // the directory of what tokens have rejected
	Write   []string // what the process may write to
	Network bool
}

// workerCommand is what the daemon runs once for each token. The token's name is there for whoever lists processes.
func (a *app) workerCommand() *cobra.Command {
	var logging cli.Logging
	command := &cobra.Command{
		Use: workerName + " TOKEN", Hidden: true, Short: "Keep one token for the daemon, which starts this by itself",
		Args: cli.Args(cobra.ExactArgs(1)), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(_ *cobra.Command, args []string) error {
			log, err := logging.Logger(os.Stderr)
			if err != nil {
				return err
			}
			link, err := inheritedLink()
			if err != nil {
				return err
			}
			runWorker(log.With("token", args[0], "worker", os.Getpid()), link)
			return nil
		},
	}
	command.Flags().StringVar(&logging.Level, "log-level", "info", "the daemon's")
	command.Flags().StringVar(&logging.Format, "log-format", "text", "the daemon's")
	return command
}

// inheritedLink is to the daemon.
func inheritedLink() (net.Conn, error) {
	file := os.NewFile(worker.LinkFD, "link")
	defer file.Close()
	link, err := net.FileConn(file)
	if err != nil {
		return nil, cli.Usage("%s is run by the daemon, and by nobody else", workerName)
	}
	return link, nil
}

// runWorker serves the daemon, and ends the program itself where that fails: standard error is the daemon's log, so that
// the error goes there as one more message, not as what a command prints for people.
func runWorker(log *slog.Logger, link net.Conn) {
	_ = os.WriteFile("/proc/self/comm", []byte("chancery-token"), 0) // for ps and top, which would show "exe" (proc(5))
	if err := worker.Serve(link, openInCustody, log); err != nil {
		log.Warn("the token's process ends on an error", "error", err)
		os.Exit(int(cli.ExitFailed))
	}
}

// openInCustody confines this process and then loads what it takes to open the token.
func openInCustody(ctx context.Context, specification []byte, log *slog.Logger) (token.Token, error) {
	var c custody
	if err := json.Unmarshal(specification, &c); err != nil {
		return nil, fmt.Errorf("what the daemon says of the token: %w", err)
	}
	for _, notice := range confine.Apply(confine.Rules{Write: c.Write, Network: c.Network}) {
		log.Warn("a token's process goes without a restriction", "what", notice.What, "why", notice.Why)
	}
	return c.Tokens.openGuarded(ctx, c.Token, c.PINs, log)
}

// custodyOf makes what the process could not, and says what it is told. Of what tokens have rejected it may alter what concerns its own.
func (c *config) custodyOf(ctx context.Context, t users.Token) (custody, error) {
	write, memory := c.Tokens.writable(t), guard.New(c.pins())
	for _, home := range t.Homes() {
		directory, err := memory.Prepare(ctx, home.Serial)
		if err != nil {
			return custody{}, fmt.Errorf("token %q: %w", home.Name, err)
		}
		write = append(write, directory)
	}
	return custody{Token: t, Tokens: c.Tokens, PINs: c.pins(), Write: write, Network: slices.Contains(c.Tokens.Network, t.Name)}, nil
}

// openInWorker opens a registered token in a process of its own.
func (c *config) openInWorker(log *slog.Logger) func(context.Context, users.Token) (worker.Handler, error) {
	return func(ctx context.Context, t users.Token) (worker.Handler, error) {
		custody, err := c.custodyOf(ctx, t)
		if err != nil {
			return nil, err
		}
		specification, err := json.Marshal(custody)
		if err != nil {
			return nil, err
		}
		process, err := worker.Start(ctx, worker.Config{
			Args:          []string{workerName, "--log-level", c.Log.Level, "--log-format", c.Log.Format, t.Name},
			Specification: specification, Log: log.With("token", t.Name),
			Unverified:  c.Tokens.UnsafeUnverified,
			Derivations: c.Sessions.Derivations, // of all tokens together, so that none waits in a process for which the daemon had room
			CallTimeout: c.Tokens.CallTimeout, OpenTimeout: c.Tokens.OpenTimeout,
		})
		if err != nil {
			return nil, err
		}
		return process, nil
	}
}
