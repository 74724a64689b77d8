package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// ErrClosed is returned by Accept once the listener is closed.
var ErrClosed = errors.New("tunnel: listener closed")

// Listener keeps legs waiting at a bridge. It opens no listening socket: each
// leg is a connection that it dialled.
type Listener struct {
	cfg     *Config
	cfgErr  error
	log     Logger // throttled: for what peers and the network can cause
	ctx     context.Context
	cancel  context.CancelFunc
	workers sync.WaitGroup
	permits chan struct{} // one per inner handshake or session not yet accepted
	ready   chan *Conn

	mu       sync.Mutex
	stats    Stats
	waiting  map[*Transport]time.Time // since when each leg waits
	sessions map[*Conn]struct{}       // handshaken and not closed
}

// Stats is a snapshot of a Listener.
type Stats struct {
	Waiting      int       // legs that the bridge knows and has not paired
	WaitingSince time.Time // when the oldest of these came to the bridge; zero without any
	Connecting   int       // legs on their way to the bridge, or pausing after a failure
	Handshaking  int       // paired legs in their inner handshake or not yet accepted
	Accepted     uint64    // sessions handed over since the start
	Refused      uint64    // inner handshakes that failed since the start
	Failed       uint64    // tries to get a leg waiting that failed, and waits that broke off
	LastError    error     // the latest failure to get a leg waiting; an *Error
	LastErrorAt  time.Time // when that was
}

// Listen begins to keep idle legs waiting at the bridge. Each one that is
// paired is replaced at once; one that fails is dialled again after a growing
// pause, for ever, so that a bridge may restart at any time. It returns
// immediately; a Config that cannot work is reported by Accept.
//
// The listener closes when ctx is done.
func Listen(ctx context.Context, cfg *Config, idle int) *Listener {
	l := &Listener{sessions: make(map[*Conn]struct{}), waiting: make(map[*Transport]time.Time)}
	l.ctx, l.cancel = context.WithCancel(ctx)
	if l.cfg, l.cfgErr = cfg.prepare(RoleServer); l.cfgErr != nil {
		l.cfgErr = &Error{Kind: KindConfig, Bridge: cfg.Bridge, Err: l.cfgErr}
		l.stats.LastError, l.stats.LastErrorAt = l.cfgErr, time.Now()
		l.cancel()
		return l
	}
	l.log = Throttle(l.cfg.Log, 5, 10*time.Second)
	l.permits = make(chan struct{}, l.cfg.MaxHandshakes)
	l.ready = make(chan *Conn)
	for range max(idle, 1) {
		l.workers.Go(l.keepLeg)
	}
	return l
}

// Accept returns the next session, its inner handshake done and its peer
// named. It fails only when ctx is done (ctx's error), when the listener is
// closed (ErrClosed), or when its Config cannot work (an *Error).
func (l *Listener) Accept(ctx context.Context) (*Conn, error) {
	if l.cfgErr != nil {
		return nil, l.cfgErr
	}
	select {
	case conn := <-l.ready:
		l.count(func(s *Stats) { s.Accepted++ })
		return conn, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-l.ctx.Done():
		return nil, ErrClosed
	}
}

// Close drops the waiting legs and waits for the background work to end.
// Sessions that were accepted live on. It always returns nil.
func (l *Listener) Close() error {
	l.cancel()
	l.workers.Wait()
	return nil
}

// Stats returns a snapshot.
func (l *Listener) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.stats
	s.Waiting = len(l.waiting)
	for _, since := range l.waiting {
		if s.WaitingSince.IsZero() || since.Before(s.WaitingSince) {
			s.WaitingSince = since
		}
	}
	return s
}

func (l *Listener) count(change func(*Stats)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(&l.stats)
}

// keepLeg keeps one leg waiting until the listener closes.
func (l *Listener) keepLeg() {
	pause := backoff{min: l.cfg.RetryMin, max: l.cfg.RetryMax}
	for l.ctx.Err() == nil {
		began := time.Now()
		err := l.leg()
		if err == nil {
			pause.reset()
			continue
		}
		if l.ctx.Err() != nil {
			return
		}
		// A leg that waited for long was a success that ended, for example
		// with a restart of the bridge.
		if time.Since(began) > l.cfg.RetryMax {
			pause.reset()
		}
		wait := pause.next()
		l.count(func(s *Stats) { s.Failed++; s.LastError, s.LastErrorAt = err, time.Now() })
		l.log.Warn("no waiting connection to the bridge", "bridge", l.cfg.Bridge, "retry_in", wait, "error", err.Error())
		l.count(func(s *Stats) { s.Connecting++ })
		sleep(l.ctx, wait)
		l.count(func(s *Stats) { s.Connecting-- })
	}
}

// leg brings one leg to the bridge, waits for its partner, and starts the
// inner handshake in the background.
func (l *Listener) leg() error {
	transport, outer, err := l.register()
	if err != nil {
		return err
	}
	l.count(func(*Stats) { l.waiting[transport] = time.Now() })
	release := Bound(l.ctx, transport)
	ack, err := l.cfg.readAck(l.ctx, outer)
	l.count(func(*Stats) { delete(l.waiting, transport) })
	if !release() {
		err = ErrClosed
	}
	if err != nil {
		hangUp(outer, transport)
		return waitError(err)
	}
	// With all permits taken the slot is not refilled, and the bridge sees
	// fewer legs waiting: that is how load pushes back.
	select {
	case l.permits <- struct{}{}:
	case <-l.ctx.Done():
		hangUp(outer, transport)
		return ErrClosed
	}
	l.workers.Go(func() {
		defer func() { <-l.permits }()
		l.count(func(s *Stats) { s.Handshaking++ })
		defer l.count(func(s *Stats) { s.Handshaking-- })
		l.handshake(transport, outer, ack.Session)
	})
	return nil
}

// waitError rewords the end of a server's wait: that no partner came is an
// error to a client only.
func waitError(err error) error {
	var e *Error
	if errors.As(err, &e) && e.Kind == KindNoServer {
		return &Error{Kind: KindBridgeUnreachable, Bridge: e.Bridge, Err: e.Err}
	}
	return err
}

// register dials the bridge and says hello.
func (l *Listener) register() (transport *Transport, outer *tls.Conn, err error) {
	l.count(func(s *Stats) { s.Connecting++ })
	defer l.count(func(s *Stats) { s.Connecting-- })
	ctx, cancel := context.WithTimeout(l.ctx, l.cfg.Handshake)
	defer cancel()
	cfg, err := l.cfg.newest(RoleServer)
	if err != nil {
		return nil, nil, &Error{Kind: KindConfig, Bridge: l.cfg.Bridge, Err: err}
	}
	transport, err = cfg.dial(ctx)
	if err != nil {
		return nil, nil, cfg.sorted(ctx, err, kinds{unreachable: KindBridgeUnreachable, protocol: KindBridgeUnreachable})
	}
	release := Bound(ctx, transport)
	outer = tls.Client(transport, cfg.Outer)
	err = outer.Handshake()
	if err == nil {
		hello := NewHello(RoleServer).Encode()
		if _, err = outer.Write(hello[:]); err != nil {
			err = alertAfter(outer, err)
		}
	}
	if !release() && err == nil {
		err = context.DeadlineExceeded
	}
	if err != nil {
		_ = transport.Close()
		return nil, nil, cfg.bridgeError(ctx, err)
	}
	return transport, outer, nil
}

// handshake runs the inner handshake of a paired leg and hands it over.
func (l *Listener) handshake(transport *Transport, outer *tls.Conn, session SessionID) {
	ctx, cancel := context.WithTimeout(l.ctx, l.cfg.Handshake)
	defer cancel()
	inner, err := l.innerHandshake(ctx, transport, outer)
	if err != nil {
		l.count(func(s *Stats) { s.Refused++ })
		l.log.Warn("handshake with a client failed", "session", session.String(), "peer", claimedName(err), "error", err.Error())
		hangUp(outer, transport)
		return
	}
	conn := newConn(inner, outer, transport, session)
	l.keep(conn)
	select {
	case l.ready <- conn:
	case <-l.ctx.Done():
		_ = conn.Close()
	}
}

func (l *Listener) innerHandshake(ctx context.Context, transport *Transport, outer *tls.Conn) (*tls.Conn, error) {
	release := Bound(ctx, transport)
	cfg, err := l.cfg.newest(RoleServer)
	if err != nil {
		release()
		return nil, err
	}
	inner := tls.Server(innerTransport{outer}, cfg.Inner)
	err = inner.Handshake()
	if !release() && err == nil {
		err = context.DeadlineExceeded
	}
	return inner, err
}

// keep remembers a session until it is closed. The certificate may have been
// revoked while its handshake went on.
func (l *Listener) keep(conn *Conn) {
	conn.closed = func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.sessions, conn)
	}
	l.mu.Lock()
	l.sessions[conn] = struct{}{}
	l.mu.Unlock()
	l.cutRevoked([]*Conn{conn})
}

// CutRevoked cuts the sessions whose client's certificate is revoked by now and
// returns how many those are. It is to be called after Config.Settings began to
// know other revocation lists. Sessions whose certificate has merely expired or
// whose CA is trusted no more live on to their end.
func (l *Listener) CutRevoked() int {
	l.mu.Lock()
	sessions := slices.Collect(maps.Keys(l.sessions))
	l.mu.Unlock()
	return l.cutRevoked(sessions)
}

func (l *Listener) cutRevoked(sessions []*Conn) (cut int) {
	if l.cfgErr != nil || l.cfg.Settings == nil {
		return 0
	}
	cfg, err := l.cfg.newest(RoleServer)
	if err != nil { // the next handshake reports it
		return 0
	}
	for _, conn := range sessions {
		if err := cfg.Inner.VerifyConnection(conn.ConnectionState()); errors.Is(err, ErrRevoked) {
			cut++
			l.cfg.Log.Warn("cut a session", "session", conn.session.String(), "peer", conn.name, "reason", err.Error())
			_ = conn.transport.Close()
		}
	}
	return cut
}

// claimedName returns the name in a certificate that did not verify, for the
// log only. It is what the peer says of itself.
func claimedName(err error) string {
	var unverified *tls.CertificateVerificationError
	if !errors.As(err, &unverified) || len(unverified.UnverifiedCertificates) == 0 {
		return ""
	}
	name, nameErr := CertificateName(unverified.UnverifiedCertificates[0])
	if nameErr != nil {
		return ""
	}
	return fmt.Sprintf("unverified %q", name)
}

// backoff doubles a pause up to a maximum. Half of each pause is random, so
// that the legs of many servers do not return in step.
type backoff struct{ min, max, current time.Duration }

func (b *backoff) next() time.Duration {
	b.current = min(max(b.current*2, b.min), b.max)
	half := b.current / 2
	return half + rand.N(half+1)
}

func (b *backoff) reset() { b.current = 0 }

// sleep waits for d or until ctx is done.
func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
