package bridge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"chancery/tunnel"
)

// Bridge pairs clients with servers. Its methods may be called by many
// goroutines, but Serve only once.
type Bridge struct {
	cfg     Config
	allowed map[string]bool
	tls     settings
	log     tunnel.Logger
	strange tunnel.Logger // throttled: for what strangers can cause
	hub     *hub
	legs    sync.WaitGroup // goroutines of connections and of joins

	accepting   atomic.Int32 // acceptAll loops
	draining    atomic.Bool
	handshaking atomic.Int64
	accepted    atomic.Uint64
	refused     atomic.Uint64
	limited     atomic.Uint64
	shed        atomic.Uint64
	bytesUp     atomic.Uint64
	bytesDown   atomic.Uint64
}

// New checks the configuration and returns a bridge that does not yet serve.
// Errors wrap ErrConfig.
func New(cfg Config) (*Bridge, error) {
	cfg, err := cfg.prepare()
	if err != nil {
		return nil, err
	}
	b := &Bridge{
		cfg:     cfg,
		allowed: make(map[string]bool),
		tls:     settings{source: cfg.Settings},
		log:     cfg.Log,
		strange: tunnel.Throttle(cfg.Log, 20, 10*time.Second),
	}
	if _, err := b.tls.newest(); err != nil {
		return nil, err
	}
	for _, name := range cfg.Servers {
		b.allowed[name] = true
	}
	b.hub = newHub(&b.cfg)
	return b, nil
}

// Stats is a snapshot of a Bridge.
type Stats struct {
	Handshaking    int    // connections that have not yet said a valid hello
	WaitingClients int    // clients without a server
	WaitingServers int    // server legs without a client
	Pairs          int    // pairs in progress
	Accepted       uint64 // connections accepted since the start
	Refused        uint64 // of these, how many never came to wait
	Limited        uint64 // of these, how many came too fast from one address
	Shed           uint64 // of these, how many made room for others in mid-handshake
	Paired         uint64 // pairs since the start
	BytesUp        uint64 // copied from clients to servers
	BytesDown      uint64 // copied from servers to clients
}

// Stats returns a snapshot.
func (b *Bridge) Stats() Stats {
	s := b.hub.stats()
	s.Handshaking = int(b.handshaking.Load())
	s.Accepted = b.accepted.Load()
	s.Refused = b.refused.Load()
	s.Limited = b.limited.Load()
	s.Shed = b.shed.Load()
	s.BytesUp = b.bytesUp.Load()
	s.BytesDown = b.bytesDown.Load()
	return s
}

// Serve accepts clients and servers until ctx is done, and owns both
// listeners. It then drains: nothing more is accepted, waiting legs are closed
// in order, and pairs in progress get Config.Drain to end before they are cut.
// It returns nil after that, or the error of a listener that failed for good.
func (b *Bridge) Serve(ctx context.Context, clients, servers net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		_ = clients.Close()
		_ = servers.Close()
	})
	defer stop()
	var acceptors sync.WaitGroup
	failed := make(chan error, 2)
	for role, listener := range map[tunnel.Role]net.Listener{tunnel.RoleClient: clients, tunnel.RoleServer: servers} {
		acceptors.Go(func() {
			if err := b.acceptAll(ctx, listener, role); err != nil {
				failed <- fmt.Errorf("bridge: accept %ss on %s: %w", role, listener.Addr(), err)
				cancel()
			}
		})
	}
	acceptors.Wait()
	b.drain()
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

// drain ends what Serve has begun.
func (b *Bridge) drain() {
	b.draining.Store(true)
	b.hub.dismiss()
	done := make(chan struct{})
	go func() {
		b.legs.Wait()
		close(done)
	}()
	timer := time.NewTimer(max(b.cfg.Drain, 0))
	defer timer.Stop()
	select {
	case <-done:
		return
	case <-timer.C:
	}
	if n := b.hub.abortAll(); n > 0 {
		b.log.Warn("cut the pairs that did not end in time", "pairs", n, "drain", b.cfg.Drain)
	}
	<-done
}

// acceptAll accepts the connections of one port.
func (b *Bridge) acceptAll(ctx context.Context, listener net.Listener, role tunnel.Role) error {
	b.accepting.Add(1)
	defer b.accepting.Add(-1)
	d := newDoor(&b.cfg)
	var pause time.Duration
	for {
		conn, err := listener.Accept()
		if err == nil {
			pause = 0
			b.receive(ctx, d, conn, role)
			continue
		}
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		// Out of descriptors, for example: it passes, but not by spinning.
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		b.strange.Error("cannot accept connections", "port", role.String(), "retry_in", pause, "error", err.Error())
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// receive brings a connection through the door and serves it.
func (b *Bridge) receive(ctx context.Context, d *door, conn net.Conn, role tunnel.Role) {
	b.accepted.Add(1)
	g, err := d.enter(ctx, conn)
	if err == nil {
		b.legs.Go(func() { b.serve(ctx, d, g, role) })
		return
	}
	if errors.Is(err, errTooFast) {
		b.limited.Add(1)
	}
	b.refuse(conn, role, err)
	hangUp(conn)
}
