package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"chancery/audit"
	"chancery/internal/canary"
	"chancery/internal/certfile"
	"chancery/internal/cli"
	"chancery/internal/notify"
	"chancery/internal/observe"
	"chancery/signer"
	"chancery/tunnel"
	"chancery/users"
)

// pollEvery is how soon at the latest a change takes effect in live sessions when the command that made it could not tell the daemon.
const pollEvery = 250 * time.Millisecond

// keptTroubles is how many warnings and errors `status` can show.
const keptTroubles = 20

func (a *app) serveCommand() *cobra.Command {
	return &cobra.Command{
		Use: serveName, Short: "Run the daemon until SIGTERM or SIGINT",
		Long: `Run the daemon until SIGTERM or SIGINT. Requests in flight then have
sessions.drain_timeout to end; a second signal ends them at once. SIGHUP closes all
tokens and opens them again, and tries a closed seal at once. Certificates, key and
revocation lists are loaded again when their files change, at once with SIGHUP. No PIN
is needed: each user's passphrase unlocks what is theirs.`,
		Args: cli.Args(cobra.NoArgs),
		RunE: func(command *cobra.Command, _ []string) error {
			c, err := a.loadConfig()
			if err != nil {
				return err
			}
			return serve(command.Context(), c)
		},
	}
}

// daemon is the running server's parts.
type daemon struct {
	config       *config
	log          *slog.Logger
	store        users.Store
	audit        *audit.Log
	signer       *signer.Server
	listener     *tunnel.Listener
	certificates *certfile.Live
	metrics      *metrics
	recent       *observe.Recent // warnings and errors of log
	manager      *notify.Manager
	canary       *canary.Canary // nil without one
	started      time.Time
}

func serve(ctx context.Context, c *config) error {
	if err := c.validateDaemon(); err != nil {
		return err
	}
	log, err := c.Log.Logger(os.Stderr)
	if err != nil {
		return err
	}
	recent := observe.NewRecent(keptTroubles)
	log = recent.Logger(log)
	certificates, err := c.TLS.certificates(log)
	if err != nil {
		return err
	}
	legs, err := c.tunnel(certificates, log)
	if err != nil {
		return err
	}
	store, err := openStore(ctx, c, c.sealOpener(log))
	if err != nil {
		return err
	}
	counted := newMetrics()
	recording := c.auditLog()
	recording.Committed = counted.committed
	records, err := audit.Open(recording)
	if err != nil {
		return errors.Join(err, store.Close())
	}
	if c.Tokens.UnsafeUnverified {
		log.Warn("tokens.unsafe_unverified is set: a signature that a failing token got wrong can leave the server")
	}
	if c.Audit.UnsafeNoSync {
		log.Warn("audit.unsafe_no_sync is set: records of signatures can be lost when the power fails")
	}
	d := &daemon{
		config: c, log: log, store: store, audit: records, started: time.Now(), certificates: certificates,
		metrics: counted, recent: recent, manager: notify.New(log),
	}
	return errors.Join(d.run(ctx, legs), records.Close(), store.Close())
}

// run serves until a signal comes.
func (d *daemon) run(ctx context.Context, legs *tunnel.Config) error {
	control, err := listenControl(d.config.socket())
	if err != nil {
		return err
	}
	settings := signer.Config{
		Store: d.store, Open: d.config.openInWorker(d.log), Audit: timedAudit{d.audit, d.metrics.append},
		Observer: d.metrics, Log: d.log, PollEvery: pollEvery,
	}
	d.config.Sessions.apply(&settings)
	d.config.Repetitions.apply(&settings)
	d.config.Tokens.apply(&settings)
	if d.signer, err = signer.New(settings); err != nil {
		return errors.Join(err, control.Close())
	}
	onlookers, err := d.config.Observe.listen()
	if err != nil {
		return errors.Join(err, control.Close())
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	// Once draining, the next signal has its usual effect.
	context.AfterFunc(ctx, stop)
	d.reopenOnHangup(ctx)
	d.listener = tunnel.Listen(ctx, legs, d.config.Bridge.IdleConnections)
	go d.certificates.Watch(ctx, certfile.DefaultInterval, func() { d.listener.CutRevoked() })
	go func() {
		if err := serveControl(ctx, control, d.status, d.signer.Refresh); err != nil {
			d.log.Error("the control socket ended", "error", err)
		}
	}()
	d.log.Info("serving", "bridge", legs.Bridge, "legs", d.config.Bridge.IdleConnections, "database", d.config.database(), "control", d.config.socket())
	entrance := d.entrance()
	end := d.show(ctx, onlookers)
	defer end()
	err = d.signer.Serve(ctx, entrance.accept)
	d.log.Info("stopped", "sessions", d.listener.Stats().Accepted)
	return errors.Join(err, d.listener.Close())
}

// reopenOnHangup loads the certificates and has all tokens closed and opened again with each SIGHUP.
func (d *daemon) reopenOnHangup(ctx context.Context) {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	go func() {
		defer signal.Stop(hangups)
		for {
			select {
			case <-ctx.Done():
				return
			case <-hangups:
				d.manager.Reloading("loading certificates and opening the tokens anew")
				_ = d.certificates.Reload() // it is logged there
				d.listener.CutRevoked()
				d.reopenAll(ctx)
				d.manager.Ready(serving)
				_ = d.signer.Refresh(ctx) // a seal that opens again need not wait; what fails, the next poll logs
			}
		}
	}()
}

// reopenAll leaves the store alone: what the tokens have rejected stays rejected, until an operator says
// otherwise of one token by `token unblock`.
func (d *daemon) reopenAll(ctx context.Context) {
	about := act{name: "token.reopen", details: map[string]string{"token": "all", "operator": "SIGHUP to the daemon"}}
	err := recordAct(ctx, d.audit, about, func() error { d.signer.Reopen(); return nil })
	if err != nil {
		d.log.Error("the tokens are not opened anew, or not on record as such", "error", err)
		return
	}
	d.log.Info("all tokens are closed and opened anew")
}

// status may be called at any time.
func (d *daemon) status() liveStatus {
	stats := d.listener.Stats()
	live := liveStatus{
		Troubles: d.recent.List(),
		PID:      os.Getpid(), Started: d.started.UTC(), Signer: d.signer.Status(),
		Bridge: bridgeStatus{
			Address: d.config.Bridge.Address, Reachable: stats.Waiting > 0 || stats.Handshaking > 0,
			Waiting: stats.Waiting, WaitingSince: optionalTime(stats.WaitingSince), Connecting: stats.Connecting, Handshaking: stats.Handshaking,
			Accepted: stats.Accepted, Refused: stats.Refused, LastErrorAt: optionalTime(stats.LastErrorAt),
		},
	}
	live.Certificates.observe(d.certificates.Identity())
	if stats.LastError != nil {
		live.Bridge.LastError = forPeople(stats.LastError)
	}
	return live
}

// checkDaemon tries what `serve` would need, without changing anything. It refuses certificates that all peers would refuse,
// too, with which `serve` starts all the same: they may be renewed while it runs.
func (c *config) checkDaemon() error {
	if err := c.validateDaemon(); err != nil {
		return err
	}
	log, err := c.Log.Logger(os.Stderr)
	if err != nil {
		return err
	}
	certificates, err := c.TLS.certificates(log)
	if err != nil {
		return err
	}
	if err := certificates.Identity().Check(); err != nil {
		return fmt.Errorf("the TLS files: %w", err)
	}
	if _, err = c.tunnel(certificates, log); err != nil {
		return err
	}
	return c.Observe.checkPassphrase()
}
