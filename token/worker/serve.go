package worker

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"time"

	"chancery/token"
)

// LinkFD is the file descriptor of the link in a worker process.
const LinkFD = 3

// ExitHung is the exit code of a worker that ended itself because a call did not return.
const ExitHung = 75 // EX_TEMPFAIL of sysexits.h

const (
	// defaultSlots are the calls to sign at once where the token tells no number of sessions.
	defaultSlots = 16
	// lastWords bounds what a worker does before it ends.
	lastWords = 3 * time.Second
	// maxSlots bounds the calls to sign at once, whatever a token tells.
	maxSlots = 1024
	// maxRequests bounds what else a worker does at once.
	maxRequests = 1024
)

// Opener opens the token that a worker is for, in that worker. The specification is Config.Specification of the process
// that started it.
type Opener func(ctx context.Context, specification []byte, log *slog.Logger) (token.Token, error)

// opening is the body of kindOpen.
type opening struct {
	CallTimeout   time.Duration
	Derivations   int
	Specification []byte
	Unverified    bool
}

// opened is its result.
type opened struct {
	Slots int
}

// Serve runs a worker at the far end of a Process until that closes the link, and returns nil then. It has open open
// the token once, when it is told which. It is all that its program does: a call to the token that hangs ends that with ExitHung,
// the caller ends it when Serve has returned, whatever still runs, and SIGINT, SIGTERM and SIGHUP, which a terminal and systemd send
// to all processes of a service, are ignored, so that a worker is there until the process at the other end needs it no more.
func Serve(conn net.Conn, open Opener, log *slog.Logger) error {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	s := newServer(conn, log)
	s.alone = true
	return s.run(open)
}

// server is the worker's side of a link.
type server struct {
	link  *link
	log   *slog.Logger
	vault *Vault
	watch *watch
	slots int
	alone bool // nothing else runs in this process

	ending sync.Once
	ended  chan struct{}
	cause  error // once ended

	reading  sync.Mutex
	requests chan struct{} // held by what is asked for beside signatures

	mu      sync.Mutex
	asks    map[uint64]chan []byte        // answers awaited, by call
	batches map[uint64]context.CancelFunc // of more than one input, by call
}

func newServer(conn net.Conn, log *slog.Logger) *server {
	return &server{
		link: newLink(conn), log: log, watch: newWatch(), ended: make(chan struct{}),
		requests: make(chan struct{}, maxRequests),
		asks:     make(map[uint64]chan []byte), batches: make(map[uint64]context.CancelFunc),
	}
}

func (s *server) run(open Opener) error {
	defer s.link.conn.Close() // which ends all followers
	number, what, err := s.readOpening()
	if err != nil {
		return fmt.Errorf("worker: nobody says which token: %w", err)
	}
	go s.listen()
	opened := make(chan error, 1)
	go func() { opened <- s.open(number, what, open) }()
	select {
	case err := <-opened:
		if err != nil {
			s.end(err)
			return err
		}
	case <-s.ended:
		return s.cause
	}
	if s.alone {
		raiseProcs(s.slots + 2)
	}
	for range s.slots + 1 { // one more, so that one always reads
		go s.follow()
	}
	<-s.ended
	return errors.Join(s.cause, s.close())
}

// raiseProcs lets as many goroutines run as there are calls into a module, and two. A thread inside the module keeps its place, so
// that Go's scheduler need not take the place away from it and find it another one afterwards.
func raiseProcs(n int) {
	if os.Getenv("GOMAXPROCS") == "" && n > runtime.GOMAXPROCS(0) {
		runtime.GOMAXPROCS(n)
	}
}

// listen notices that the other end is gone while the token is being opened. What it says meanwhile waits.
func (s *server) listen() {
	s.reading.Lock()
	defer s.reading.Unlock()
	if err := s.link.await(); err != nil {
		s.end(err)
	}
}

// close gives the token some time to close.
func (s *server) close() error {
	closed := make(chan error, 1)
	go func() { closed <- s.vault.Close() }()
	select {
	case err := <-closed:
		return err
	case <-time.After(lastWords):
		return errors.New("worker: the token did not close")
	}
}

func (s *server) readOpening() (uint64, opening, error) {
	var what opening
	f, err := s.link.read()
	if err != nil {
		return 0, what, err
	}
	if f.kind != kindOpen {
		return 0, what, fmt.Errorf("%w: kind %d", errFrame, f.kind)
	}
	if err := json.Unmarshal(f.body, &what); err != nil {
		return 0, what, fmt.Errorf("%w: %w", errFrame, err)
	}
	if what.CallTimeout <= 0 {
		return 0, what, fmt.Errorf("%w: no time for a call", errFrame)
	}
	if what.Derivations < 1 {
		return 0, what, fmt.Errorf("%w: no passphrase may be derived", errFrame)
	}
	return f.call, what, nil
}

func (s *server) open(number uint64, what opening, open Opener) error {
	ctx := context.Background()
	t, err := open(ctx, what.Specification, s.log)
	if err != nil {
		return errors.Join(err, s.fail(number, err))
	}
	s.vault = NewVault(s.watch.over(t), s.log)
	s.vault.unverified, s.vault.derivations = what.Unverified, make(chan struct{}, what.Derivations)
	go s.watch.run(what.CallTimeout, s.ended, s.hung)
	info, err := s.vault.Info(ctx)
	if err != nil {
		return errors.Join(err, s.fail(number, err))
	}
	if s.slots = cmp.Or(info.Parallel, info.MaxSessions); s.slots < 1 {
		s.slots = defaultSlots
	}
	s.slots = min(s.slots, maxSlots)
	return s.reply(number, opened{Slots: s.slots})
}

// hung ends the process, since nothing else ends a call into a module.
func (s *server) hung(what string) {
	time.AfterFunc(lastWords, func() { os.Exit(ExitHung) }) // for nobody may read the log or the link either
	s.log.Error("a call to the token does not return: its process ends", "call", what)
	_ = s.link.writeBytes(kindHung, 0, []byte(what))
	os.Exit(ExitHung)
}

// follow takes its turns at reading.
func (s *server) follow() {
	for {
		s.reading.Lock()
		f, err := s.link.read()
		if err != nil {
			s.reading.Unlock()
			s.end(err)
			return
		}
		if f.kind == kindSign {
			number := f.call
			order, err := parseOrder(f.body)
			ctx, done := s.context(number, &order)
			s.reading.Unlock()
			if err == nil {
				err = s.sign(ctx, number, order)
				done()
			}
			if err != nil {
				s.end(err)
				return
			}
			continue
		}
		err = s.dispatch(f)
		s.reading.Unlock()
		if err != nil {
			s.end(err)
			return
		}
	}
}

// end ends the worker, once. The end of the link is in order.
func (s *server) end(err error) {
	s.ending.Do(func() {
		if !errors.Is(err, io.EOF) {
			s.cause = err
		}
		close(s.ended)
	})
}

// context is one that kindCancel ends, where that can be of use: a signature that has begun cannot be cancelled.
func (s *server) context(number uint64, order *Order) (context.Context, func()) {
	if len(order.Inputs) <= 1 {
		return context.Background(), func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.batches[number] = cancel
	return ctx, func() {
		cancel()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.batches, number)
	}
}

func (s *server) cancel(number uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if cancel, ok := s.batches[number]; ok {
		cancel()
	}
}

func (s *server) sign(ctx context.Context, number uint64, order Order) error {
	signatures, err := s.vault.Sign(ctx, order)
	if err != nil {
		return s.fail(number, err)
	}
	err = s.link.write(kindResult, number, listSize(signatures), func(b []byte) []byte { return appendList(b, signatures) })
	if errors.Is(err, errTooLarge) {
		return s.fail(number, err)
	}
	return err
}

// dispatch starts what a frame asks for. It keeps nothing of the frame's body.
func (s *server) dispatch(f frame) error {
	ctx, number := context.Background(), f.call
	switch f.kind {
	case kindPing:
		return s.link.write(kindResult, number, 0, nil)
	case kindClose:
		return io.EOF
	case kindInfo:
		return s.request(number, func() error { return s.respond(number, func() (any, error) { return s.vault.Info(ctx) }) })
	case kindKeys:
		return s.request(number, func() error { return s.respond(number, func() (any, error) { return s.listKeys(ctx) }) })
	case kindUnlock:
		unlock, err := parseUnlock(f.body)
		if err != nil {
			return err
		}
		accepted, err := s.accept(number, func() error { return s.unlock(ctx, number, unlock) })
		if !accepted {
			clear(unlock.Passphrase)
		}
		return err
	case kindLock:
		capability, err := parseCapability(f.body)
		if err != nil {
			return err
		}
		s.vault.Lock(capability)
	case kindCancel:
		s.cancel(number)
	case kindAnswer:
		s.answered(number, bytes.Clone(f.body))
	default:
		return fmt.Errorf("%w: kind %d", errFrame, f.kind)
	}
	return nil
}

// request is accept for what leaves nothing to clear.
func (s *server) request(number uint64, serve func() error) error {
	_, err := s.accept(number, serve)
	return err
}

// accept serves what may take its time beside the reading, unless too much is being served already.
func (s *server) accept(number uint64, serve func() error) (accepted bool, err error) {
	select {
	case s.requests <- struct{}{}:
	default:
		return false, s.fail(number, fmt.Errorf("worker: %d requests are under way: %w", maxRequests, token.ErrBusy))
	}
	go func() {
		defer func() { <-s.requests }()
		if err := serve(); err != nil {
			s.end(err)
		}
	}()
	return true, nil
}

// respond answers a call with what work returns.
func (s *server) respond(number uint64, work func() (any, error)) error {
	value, err := work()
	if err != nil {
		return s.fail(number, err)
	}
	return s.reply(number, value)
}

func (s *server) listKeys(ctx context.Context) ([]listedKey, error) {
	infos, err := s.vault.Keys(ctx)
	if err != nil {
		return nil, err
	}
	return listKeys(infos)
}

func (s *server) unlock(ctx context.Context, number uint64, unlock Unlock) error {
	defer clear(unlock.Passphrase)
	capability, err := s.vault.Unlock(ctx, unlock, &farLedger{server: s, call: number, tokenID: unlock.Token.ID})
	if err != nil {
		return s.fail(number, err)
	}
	return s.link.write(kindResult, number, capabilitySize, func(b []byte) []byte { return appendCapability(b, capability) })
}

func (s *server) reply(number uint64, value any) error {
	text, err := json.Marshal(value)
	if err != nil {
		return s.fail(number, err)
	}
	err = s.link.writeBytes(kindResult, number, text)
	if errors.Is(err, errTooLarge) {
		return s.fail(number, err)
	}
	return err
}

func (s *server) fail(number uint64, failure error) error {
	return s.link.writeBytes(kindFailure, number, encodeError(failure))
}
