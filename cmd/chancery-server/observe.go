package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"chancery/internal/canary"
	"chancery/internal/cli"
	"chancery/internal/listen"
	"chancery/internal/observe"
	"chancery/signer"
)

// canaryKeep is for how long the canary's answer is good: so often, at most, anybody who asks makes the token sign.
const canaryKeep = 10 * time.Second

// serving is what systemd shows while all is well.
const serving = "serving"

// observeConfig is where the daemon shows operators how it is.
type observeConfig struct {
	Listen           string `mapstructure:"listen"` // host:port or unix:/path; empty: nowhere
	UnsafeAnyAddress bool   `mapstructure:"unsafe_any_address"`

	CanaryKey                  string        `mapstructure:"canary_key"` // empty: no canary
	CanaryUser                 string        `mapstructure:"canary_user"`
	CanaryPassphraseFile       string        `mapstructure:"canary_passphrase_file"`
	CanaryPassphraseCredential string        `mapstructure:"canary_passphrase_credential"`
	CanaryDeadline             time.Duration `mapstructure:"canary_deadline"`
}

func (o *observeConfig) validate() error {
	if err := observe.Validate(o.Listen, o.UnsafeAnyAddress); err != nil {
		return cli.Misconfigured("observe.listen: %s", err)
	}
	switch {
	case o.CanaryDeadline <= 0:
		return cli.Misconfigured("observe.canary_deadline is %s: more than 0, for example 2s", o.CanaryDeadline)
	case o.CanaryKey == "":
		return nil
	case o.CanaryUser == "":
		return cli.Misconfigured("observe.canary_user is not set: name the user to whom observe.canary_key is granted")
	case o.CanaryPassphraseFile == "" && o.CanaryPassphraseCredential == "":
		return cli.Misconfigured("observe.canary_key needs a passphrase: set observe.canary_passphrase_file or observe.canary_passphrase_credential")
	}
	return nil
}

// listen opens the listener; nil where none is configured.
func (o *observeConfig) listen() (net.Listener, error) {
	if o.Listen == "" {
		return nil, nil
	}
	listener, err := observe.Listen(o.Listen, o.UnsafeAnyAddress)
	if err != nil {
		return nil, listen.Failed("metrics and health", o.Listen, "observe.listen", err)
	}
	return listener, nil
}

func (o *observeConfig) passphrase() cli.Secret {
	return cli.Secret{
		What: "passphrase of the canary key", Descriptor: -1,
		File: o.CanaryPassphraseFile, Credential: o.CanaryPassphraseCredential,
	}
}

// checkPassphrase tries to read the canary's passphrase, which the daemon does when it is first asked for it. A
// credential is there inside the unit only, so that elsewhere there is nothing to try.
func (o *observeConfig) checkPassphrase() error {
	passphrase := o.passphrase()
	if passphrase.File == "" && (passphrase.Credential == "" || os.Getenv("CREDENTIALS_DIRECTORY") == "") {
		return nil
	}
	secret, err := passphrase.Read()
	clear(secret)
	return err
}

// canary returns one whose connections come through the gate.
func (o *observeConfig) canary(gate *canary.Gate) *canary.Canary {
	passphrase := o.passphrase()
	return canary.New(canary.Config{
		User: o.CanaryUser, Key: o.CanaryKey, Passphrase: passphrase.Read, Accept: gate.Accept, Deadline: o.CanaryDeadline,
	})
}

// show tells systemd how the daemon is, and whoever asks on the listener, if there is one. It
// goes on while the daemon drains after ctx, until end is called.
func (d *daemon) show(ctx context.Context, listener net.Listener) (end func()) {
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	if listener != nil {
		d.log.Info("showing metrics and health", "address", listener.Addr().String())
		go func() {
			if err := d.page(ctx).Serve(life, listener); err != nil {
				d.log.Error("metrics and health are not shown any more", "error", err)
			}
		}()
	}
	go func() {
		if d.awaitFirstLeg(ctx) {
			d.manager.Ready(serving)
		}
	}()
	stop := d.manager.StopWith(ctx, "waiting for requests in flight to end")
	go d.manager.Watch(life, d.alive)
	return func() { stop(); cancel() }
}

// awaitFirstLeg waits until the store is open and one leg came to wait at the bridge, or failed
// to. A bridge that is away is no reason to hold up what is started after this service: the
// server comes to wait by itself once the bridge is back. It returns false when ctx ended first.
func (d *daemon) awaitFirstLeg(ctx context.Context) bool {
	const pause = 20 * time.Millisecond
	ticker := time.NewTicker(pause)
	defer ticker.Stop()
	for {
		legs := d.listener.Stats()
		tried := legs.Waiting+legs.Handshaking > 0 || legs.Accepted+legs.Failed > 0
		if tried && d.signer.Alive() == nil {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-ticker.C:
		}
	}
}

// alive returns nil while the daemon's loops run.
func (d *daemon) alive() error {
	d.listener.Stats() // takes the lock that all legs take
	return d.signer.Alive()
}

func (d *daemon) now() state {
	return state{signer: d.signer.Status(), legs: d.listener.Stats(), expiry: d.certificates.Identity().Expiry(), now: time.Now()}
}

// page is what the daemon shows. Once running is done, it is not ready any more.
func (d *daemon) page(running context.Context) observe.Page {
	page := observe.Page{
		Registry: d.metrics.registry(d.now), Log: d.log,
		Alive: []observe.Check{{Name: "loops", Probe: func(context.Context) error { return d.alive() }}},
		Ready: []observe.Check{
			{Name: "serving", Probe: func(context.Context) error {
				if running.Err() != nil {
					return errors.New("the server is stopping")
				}
				return nil
			}},
			{Name: "bridge", Probe: func(context.Context) error { return d.reachable() }},
			{Name: "store", Probe: d.signer.StoreReadable},
			{Name: "audit", Probe: func(context.Context) error { return d.audit.Err() }},
			{Name: "tokens", Probe: func(context.Context) error { return present(d.signer.Status().Tokens) }},
		},
	}
	if d.canary != nil {
		page.Ready = append(page.Ready, observe.Check{Name: "canary", Probe: d.sing, Deadline: d.config.Observe.CanaryDeadline, Keep: canaryKeep})
	}
	return page
}

// reachable returns nil when a leg waits at the bridge, or is just being used.
func (d *daemon) reachable() error {
	legs := d.listener.Stats()
	if legs.Waiting+legs.Handshaking > 0 {
		return nil
	}
	if legs.LastError != nil {
		return fmt.Errorf("no leg waits at the bridge: %s", forPeople(legs.LastError))
	}
	return errors.New("no leg waits at the bridge")
}

// present returns nil when every registered token is open.
func present(tokens []signer.TokenStatus) error {
	var missing []error
	for _, t := range tokens {
		if t.State != signer.StateReady {
			missing = append(missing, fmt.Errorf("token %q is %s", t.Name, t.State))
		}
	}
	return errors.Join(missing...)
}

// sing has the canary sign. It is never called twice at once.
func (d *daemon) sing(ctx context.Context) error {
	began := time.Now()
	err := d.canary.Sign(ctx)
	d.metrics.sang(time.Since(began), err)
	if err != nil {
		d.log.Warn("the canary could not sign", "error", err)
	}
	return err
}
