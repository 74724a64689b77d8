// Package signer serves clients: it identifies a user by the certificate's
// common name, unlocks keys with the user's own passphrase, authorises each
// request from memory and has the token sign.
//
// # One session
//
// A reader takes frames off the connection and starts a goroutine for each
// request, within the limits of the session and of the server; where they are
// reached it stops reading, so that the peer feels it. A writer sends all
// finished replies in one write. Plain version 2 peers get replies in the order
// of their requests, chancery/1 peers as they are finished.
//
// # What a signature needs
//
// No database, no login and no search: the session has a capability for what it unlocked, which
// the token's process asks for (package worker), and the current snapshot of the store, which a poll keeps fresh, must still have
// the same grant in the same generation, with user and key enabled. What an operator
// revokes is therefore gone for live sessions within Config.PollEvery, and at once after Refresh.
//
// # What is recorded
//
// A signature leaves the server when its record is durable, and so does the answer to an
// unlock or a refusal. While the audit log cannot be written nothing is unlocked or signed; the
// records of these refusals try it again, so that signing goes on by itself once there is room.
// Of many refusals in a row most are only counted, so that nobody fills the disk with them.
//
// # What is repeated
//
// A request to sign that carries an idempotency key is served once. What repeats it, on
// whatever connection of the user's, gets the same signatures within Config.RepeatWindow, and
// waits for the first where that is still being served: a keyed request ends at its deadline, not
// with its connection. Failures are not kept.
//
// # What a peer learns
//
// Plain version 2 peers learn "internal" only. Others get a code, but nothing
// tells an unknown key from one that is not granted: neither the answer nor the
// time it takes. The log tells them apart.
package signer

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"chancery/access"
	"chancery/signer/queue"
	"chancery/token/worker"
	"chancery/tunnel"
	"chancery/users"
)

// Conn is a paired connection to one client; *tunnel.Conn is one. Reads and
// writes may run at once, Close ends it in order.
type Conn interface {
	net.Conn
	// PeerName is the first common name of the client's certificate.
	PeerName() string
	Session() tunnel.SessionID
	// PeerCertificate is the client's verified certificate.
	PeerCertificate() *x509.Certificate
	// Extended tells whether the peer speaks chancery/1.
	Extended() bool
}

// AcceptFunc waits for the next client, for example by tunnel.Listener.Accept.
// An error is tried again after a pause, unless the context has ended.
type AcceptFunc func(ctx context.Context) (Conn, error)

// Config says what a Server serves. Zero numbers mean the defaults.
type Config struct {
	Store users.Store
	// Open opens a registered token, without login, usually in a process of its own. It returns an error that
	// wraps token.ErrTokenAbsent when the token is not there; any error is tried again.
	Open func(ctx context.Context, record users.Token) (worker.Handler, error)
	// Audit keeps the record of what is signed, unlocked and refused. It must be set: without a
	// durable record no signature leaves the server. Close it after Serve has returned.
	Audit    AuditLog
	Log      *slog.Logger // default: slog.Default()
	Observer Observer     // default: nobody

	PollEvery time.Duration // default 1 s: how soon a change in the store takes effect

	MaxSessions        int           // default 256; further clients wait at the bridge
	MaxSessionsPerUser int           // default 64; a further one is told to come back later, and many further ones are closed
	SessionRequests    int           // default 256: requests in flight in one session, each 16 KiB of a frame or 64 signatures of a batch counting as one
	ServerRequests     int           // default 4096: the same for all sessions together
	UserRequests       int           // default a quarter of ServerRequests, or what one session may: those of one user's sessions together
	UserRate           int           // default 20000: requests of one user a second, and twice as many at once
	BatchConcurrency   int           // default 16: signatures of one sign_all asked from the token at once
	TokenQueue         int           // default 4096: requests that wait for one token
	TokenQueueUser     int           // default 1024: those of one user
	MaxDerivations     int           // default 2: passphrases being derived at once; each takes what its Argon2id parameters say
	RequestTimeout     time.Duration // default 30 s: from a request's arrival to its answer
	IdleTimeout        time.Duration // default 1 h: without a request, then an orderly close
	FrameTimeout       time.Duration // default 30 s: for the rest of a frame once its first byte is there
	WriteTimeout       time.Duration // default 30 s: for a peer to take in what was written
	DrainTimeout       time.Duration // default 15 s: for requests in flight once Serve's context has ended
	RefusalBurst       int           // default 20: refused requests of one user that are recorded one by one
	RefusalEvery       time.Duration // default 10 s: beyond these, one of a user in this time, and the number of the others
	FailurePause       time.Duration // default 1 s: after an unlock that failed, before the user's next one is looked at
	FailureMax         time.Duration // default 5 min: to this grows what a fourth wrong passphrase for one key and every further one cost; beginning with twice FailurePause, it doubles
	Lease              time.Duration // how long an unlock lasts where the grant does not say it; 0: as long as the session

	// Signatures are kept for requests that repeat one by its idempotency key. Where a limit is
	// reached, the user's oldest are forgotten, and for the last one those of the user who has
	// most: a repetition then signs anew. They are in memory, so that a restart forgets all.
	RepeatWindow    time.Duration // default 10 min: after a signature was made
	RepeatRequests  int           // default 65536: of one user
	RepeatUserBytes int           // default 32 MiB: of one user
	RepeatBytes     int           // default 128 MiB: of all users

	OpenTimeout  time.Duration // default 30 s: for opening a token and listing its keys
	ReopenMin    time.Duration // default 1 s: before an absent token is looked for again, doubling with each failure
	ReopenMax    time.Duration // default 15 s
	closeTimeout time.Duration // 5 s: for sessions to end once their requests were cancelled
}

// withDefaults returns a copy without zeros.
func (c Config) withDefaults() Config {
	number := func(n *int, value int) {
		if *n <= 0 {
			*n = value
		}
	}
	duration := func(d *time.Duration, value time.Duration) {
		if *d <= 0 {
			*d = value
		}
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Observer == nil {
		c.Observer = nobody{}
	}
	number(&c.MaxSessions, 256)
	number(&c.MaxSessionsPerUser, 64)
	number(&c.SessionRequests, 256)
	number(&c.ServerRequests, 4096)
	number(&c.UserRequests, max(c.ServerRequests/4, c.SessionRequests))
	number(&c.UserRate, 20_000)
	number(&c.BatchConcurrency, 16)
	number(&c.TokenQueue, queue.DefaultMaxWaiting)
	number(&c.TokenQueueUser, queue.DefaultMaxWaitingPerUser)
	number(&c.MaxDerivations, 2)
	number(&c.RefusalBurst, 20)
	number(&c.RepeatRequests, 1<<16)
	number(&c.RepeatUserBytes, 32<<20)
	number(&c.RepeatBytes, 128<<20)
	duration(&c.RepeatWindow, 10*time.Minute)
	duration(&c.RefusalEvery, 10*time.Second)
	duration(&c.PollEvery, time.Second)
	duration(&c.RequestTimeout, 30*time.Second)
	duration(&c.IdleTimeout, time.Hour)
	duration(&c.FrameTimeout, 30*time.Second)
	duration(&c.WriteTimeout, 30*time.Second)
	duration(&c.DrainTimeout, 15*time.Second)
	duration(&c.FailurePause, time.Second)
	duration(&c.FailureMax, 5*time.Minute)
	duration(&c.OpenTimeout, 30*time.Second)
	duration(&c.ReopenMin, time.Second)
	duration(&c.ReopenMax, 15*time.Second)
	duration(&c.closeTimeout, 5*time.Second)
	return c
}

// Server serves sessions. Make one with New and run it with Serve, once.
type Server struct {
	cfg       Config
	log       *slog.Logger
	snapshot  atomic.Pointer[users.Snapshot]
	catalogue atomic.Pointer[catalogue] // of the same, or for a moment of the next snapshot
	watcher   atomic.Pointer[users.Watcher]
	tokens    *tokens
	refusals  *refusals
	guesses   *guesses

	repetitions *repetitions

	places      chan struct{}       // one per session
	requests    *semaphore.Weighted // see requestWeight
	derivations chan struct{}       // one per Argon2id
	decoy       access.Parameters   // what is derived where there is no grant
	inFlight    atomic.Int64
	stalled     atomic.Int64 // requests that were read and wait for room
	deriving    atomic.Int64 // unlocks that wait for a place among derivations
	signing     atomic.Int64 // calls to tokens

	mu       sync.Mutex
	peers    map[int64]*peer // by user ID, of users who had a session
	sessions map[*session]bool
}

// New returns a server that has not opened anything yet.
func New(cfg Config) (*Server, error) {
	if cfg.Store == nil || cfg.Open == nil || cfg.Audit == nil {
		return nil, errors.New("signer: a store, an audit log and a way to open tokens are needed")
	}
	cfg = cfg.withDefaults()
	s := &Server{
		cfg: cfg, log: cfg.Log, tokens: newTokens(&cfg),
		places:      make(chan struct{}, cfg.MaxSessions),
		requests:    semaphore.NewWeighted(int64(cfg.ServerRequests)),
		derivations: make(chan struct{}, cfg.MaxDerivations),
		decoy:       access.NewParameters(),
		peers:       make(map[int64]*peer),
		sessions:    make(map[*session]bool),
	}
	s.refusals = newRefusals(&s.cfg, s.record)
	s.repetitions = newRepetitions(&s.cfg)
	s.guesses = newGuesses(&s.cfg)
	return s, nil
}

// Serve opens the tokens and serves what accept brings until ctx ends. Then it
// accepts no more, lets requests in flight finish within DrainTimeout, closes
// all sessions and tokens and returns nil. It returns an error when the store
// cannot be read at the start, or when something did not end.
func (s *Server) Serve(ctx context.Context, accept AcceptFunc) error {
	watching, stopWatching := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWatching()
	changed := func(next *users.Snapshot) {
		s.complain(next)
		s.catalogue.Store(newCatalogue(next))
		s.snapshot.Store(next)
		s.tokens.update(watching, next)
		s.lockVoid()
	}
	failed := func(err error) { s.log.Error("the store cannot be read; the last state stays in force", "error", err) }
	watcher, err := users.Watch(watching, s.cfg.Store, s.cfg.PollEvery, changed, failed)
	if err != nil {
		return fmt.Errorf("signer: read the store: %w", err)
	}
	s.watcher.Store(watcher)
	if err := s.guesses.load(watching, time.Now()); err != nil {
		return fmt.Errorf("signer: read the store: %w", err)
	}
	sessions, cancelSessions := context.WithCancelCause(watching)
	defer cancelSessions(nil)
	var running sync.WaitGroup
	s.acceptAll(ctx, accept, func(conn Conn) {
		running.Go(func() {
			defer func() { <-s.places }()
			s.serve(ctx, sessions, conn)
		})
	})
	ended := make(chan struct{})
	go func() { running.Wait(); close(ended) }()
	err = s.drain(ended, cancelSessions)
	s.refusals.close()
	stopWatching()
	return errors.Join(err, s.tokens.wait(s.cfg.closeTimeout))
}

// complain logs which rows of the store nobody can use, when they are not those of the snapshot before.
func (s *Server) complain(next *users.Snapshot) {
	known := make(map[string]bool)
	if before := s.snapshot.Load(); before != nil {
		for _, row := range before.Unreadable() {
			known[row.String()] = true
		}
	}
	if closed := next.Closed(); closed != nil {
		s.log.Error("the seal over the store does not open, so that nothing is signed", "error", closed)
	}
	for _, row := range next.Unreadable() {
		if !known[row.String()] {
			s.log.Error("a row of the store is left out, so that nobody can use it", "row", row.Kind, "id", row.ID, "error", row.Err)
		}
	}
}

// Refresh takes up what the store holds now, without waiting for the next poll:
// when it returns nil, what was revoked before is refused in live sessions.
// Before Serve there is nothing to refresh.
func (s *Server) Refresh(ctx context.Context) error {
	watcher := s.watcher.Load()
	if watcher == nil {
		return nil
	}
	if err := watcher.Refresh(ctx); err != nil {
		return fmt.Errorf("signer: read the store: %w", err)
	}
	return nil
}

// Reopen has every token closed and opened again, for example after its module was upgraded. It does not wait
// for that. Users have to unlock their keys again; PINs that a token has rejected are not tried again.
func (s *Server) Reopen() { s.tokens.reopen() }

// acceptAll starts a session for each client until ctx ends. A place is taken
// before a client is, so that clients beyond the limit wait at the bridge.
func (s *Server) acceptAll(ctx context.Context, accept AcceptFunc, start func(Conn)) {
	const minPause, maxPause = 10 * time.Millisecond, time.Second
	pause := minPause
	for {
		select {
		case s.places <- struct{}{}:
		case <-ctx.Done():
			return
		}
		conn, err := accept(ctx)
		if err == nil {
			pause = minPause
			start(conn)
			continue
		}
		<-s.places
		if ctx.Err() == nil {
			s.log.Warn("no client could be accepted", "error", err)
		}
		if !sleep(ctx, pause) {
			return
		}
		pause = min(2*pause, maxPause)
	}
}

// drain waits for the sessions to end by themselves, then makes them.
func (s *Server) drain(ended <-chan struct{}, cancel context.CancelCauseFunc) error {
	select {
	case <-ended:
		return nil
	case <-time.After(s.cfg.DrainTimeout):
	}
	cancel(errShuttingDown)
	select {
	case <-ended:
		return nil
	case <-time.After(s.cfg.closeTimeout):
		return fmt.Errorf("signer: %d sessions did not end", len(s.places))
	}
}

// sleep returns false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// acquire takes a place in a channel of them; the error is the context's.
func acquire(ctx context.Context, places chan<- struct{}) error {
	select {
	case places <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
