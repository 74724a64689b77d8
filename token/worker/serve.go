package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"chancery/token"
	"chancery/users"
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
)

// Opener opens the token that a worker is for, in that worker. The specification is Config.Specification of the process
// that started it.
type Opener func(ctx context.Context, specification []byte, log *slog.Logger) (token.Token, error)

// opening is the body of kindOpen.
type opening struct {
	CallTimeout   time.Duration
	Specification []byte
}

// opened is its result.
type opened struct {
	Slots int
}

// Serve runs a worker at the far end of a Process until that closes the link, and returns nil then. It has open open
// the token once, when it is told which. A call to the token that hangs ends the whole program with ExitHung.
func Serve(conn net.Conn, open Opener, log *slog.Logger) error {
	s := &server{link: newLink(conn), log: log, watch: newWatch(), ended: make(chan error, 1), asks: make(map[uint64]chan []byte)}
	first, err := s.link.read()
	if err != nil {
		return fmt.Errorf("worker: nobody says which token: %w", err)
	}
	if err := s.open(first, open); err != nil {
		return err
	}
	for range s.slots + 1 { // one more, so that one always reads
		go s.follow()
	}
	err = <-s.ended
	closed := make(chan error, 1)
	go func() { closed <- s.vault.Close() }()
	select {
	case closeErr := <-closed:
		return errors.Join(err, closeErr)
	case <-time.After(lastWords):
		return errors.Join(err, errors.New("worker: the token did not close"))
	}
}

// server is the worker's side of a link.
type server struct {
	link  *link
	log   *slog.Logger
	vault *Vault
	watch *watch
	slots int
	ended chan error

	reading sync.Mutex

	mu   sync.Mutex
	asks map[uint64]chan []byte // answers awaited, by call
}

func (s *server) open(f frame, open Opener) error {
	var what opening
	if f.kind != kindOpen {
		return errFrame
	}
	if err := json.Unmarshal(f.body, &what); err != nil {
		return fmt.Errorf("%w: %w", errFrame, err)
	}
	ctx := context.Background()
	t, err := open(ctx, what.Specification, s.log)
	if err != nil {
		return errors.Join(s.fail(f.call, err), err)
	}
	s.vault = NewVault(&watched{t, s.watch}, s.log)
	go s.watch.run(what.CallTimeout, s.hung)
	info, err := s.vault.Info(ctx)
	if err != nil {
		return errors.Join(s.fail(f.call, err), err)
	}
	if s.slots = info.MaxSessions; s.slots < 1 {
		s.slots = defaultSlots
	}
	return s.reply(f.call, opened{Slots: s.slots})
}

// hung ends the process, since nothing else ends a call into a module.
func (s *server) hung(what string) {
	s.log.Error("a call to the token does not return: its process ends", "call", what)
	told := make(chan struct{})
	go func() {
		defer close(told)
		_ = s.link.write(kindHung, 0, func(b []byte) []byte { return append(b, what...) })
	}()
	select {
	case <-told:
	case <-time.After(lastWords):
	}
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
			call := f.call
			order, err := parseOrder(f.body)
			s.reading.Unlock()
			s.sign(call, order, err)
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

// end ends the worker. The end of the link is in order.
func (s *server) end(err error) {
	if errors.Is(err, io.EOF) {
		err = nil
	}
	select {
	case s.ended <- err:
	default:
	}
}

func (s *server) sign(number uint64, order Order, err error) {
	var signatures [][]byte
	if err == nil {
		signatures, err = s.vault.Sign(context.Background(), order)
	}
	if err != nil {
		err = s.fail(number, err)
	} else {
		err = s.link.write(kindResult, number, func(b []byte) []byte { return appendList(b, signatures) })
	}
	if err != nil {
		s.end(err)
	}
}

// dispatch starts what a frame asks for. It keeps nothing of the frame's body.
func (s *server) dispatch(f frame) error {
	ctx, number := context.Background(), f.call
	switch f.kind {
	case kindPing:
		return s.link.write(kindResult, number, nil)
	case kindClose:
		return io.EOF
	case kindInfo:
		go s.respond(number, func() (any, error) { return s.vault.Info(ctx) })
	case kindKeys:
		go s.respond(number, func() (any, error) {
			infos, err := s.vault.Keys(ctx)
			if err != nil {
				return nil, err
			}
			return listKeys(infos)
		})
	case kindUnlock:
		unlock, err := parseUnlock(f.body)
		if err != nil {
			return err
		}
		go s.unlock(ctx, number, unlock)
	case kindLock:
		capability, err := parseCapability(f.body)
		if err != nil {
			return err
		}
		s.vault.Lock(capability)
	case kindAnswer:
		s.answered(number, append([]byte(nil), f.body...))
	default:
		return fmt.Errorf("%w: kind %d", errFrame, f.kind)
	}
	return nil
}

// respond answers a call with what work returns.
func (s *server) respond(number uint64, work func() (any, error)) {
	value, err := work()
	if err != nil {
		err = s.fail(number, err)
	} else {
		err = s.reply(number, value)
	}
	if err != nil {
		s.end(err)
	}
}

func (s *server) unlock(ctx context.Context, number uint64, unlock Unlock) {
	defer clear(unlock.Passphrase)
	capability, err := s.vault.Unlock(ctx, unlock, &farLedger{server: s, call: number, tokenID: unlock.Token.ID})
	if err != nil {
		err = s.fail(number, err)
	} else {
		err = s.link.write(kindResult, number, func(b []byte) []byte { return appendCapability(b, capability) })
	}
	if err != nil {
		s.end(err)
	}
}

func (s *server) reply(number uint64, value any) error {
	text, err := json.Marshal(value)
	if err != nil {
		return s.fail(number, err)
	}
	return s.link.write(kindResult, number, func(b []byte) []byte { return append(b, text...) })
}

func (s *server) fail(number uint64, failure error) error {
	return s.link.write(kindFailure, number, func(b []byte) []byte { return appendError(b, failure) })
}

// The questions of a worker to the ledger.
const (
	askDerived = "derived"
	askToken   = "token"
	askCommit  = "commit"
	askReject  = "reject"
)

type question struct {
	About   string
	TokenID int64 `json:",omitempty"`
	Version int64 `json:",omitempty"`
	Staged  bool  `json:",omitempty"`
}

// answer has neither where the ledger has done what was asked.
type answer struct {
	Token *users.Token    `json:",omitempty"`
	Error json.RawMessage `json:",omitempty"`
}

func (s *server) answered(number uint64, body []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if waiting, ok := s.asks[number]; ok {
		waiting <- body
		delete(s.asks, number)
	}
}

// ask waits for the ledger's answer. The process at the other end bounds it, and its end ends the worker.
func (s *server) ask(number uint64, q question) (answer, error) {
	waiting := make(chan []byte, 1)
	s.mu.Lock()
	s.asks[number] = waiting
	s.mu.Unlock()
	text, err := json.Marshal(q)
	if err != nil {
		return answer{}, err
	}
	if err := s.link.write(kindAsk, number, func(b []byte) []byte { return append(b, text...) }); err != nil {
		return answer{}, err
	}
	var a answer
	if err := json.Unmarshal(<-waiting, &a); err != nil {
		return answer{}, errFrame
	}
	if a.Error != nil {
		return answer{}, parseError(a.Error)
	}
	return a, nil
}

// farLedger is the ledger at the other end of the link, for one call.
type farLedger struct {
	server  *server
	call    uint64
	tokenID int64
}

// Derived implements Ledger. Its failure is met again by the next question.
func (l *farLedger) Derived() { _, _ = l.server.ask(l.call, question{About: askDerived}) }

// Snapshot returns one that holds the call's token and nothing else.
func (l *farLedger) Snapshot(context.Context) (*users.Snapshot, error) {
	a, err := l.server.ask(l.call, question{About: askToken, TokenID: l.tokenID})
	if err != nil {
		return nil, err
	}
	var records []users.Token
	if a.Token != nil {
		records = append(records, *a.Token)
	}
	return users.NewSnapshot(0, nil, records, nil, nil), nil
}

// CommitPIN implements users.Ledger.
func (l *farLedger) CommitPIN(_ context.Context, tokenID, version int64) error {
	_, err := l.server.ask(l.call, question{About: askCommit, TokenID: tokenID, Version: version})
	return err
}

// RejectPIN implements users.Ledger.
func (l *farLedger) RejectPIN(_ context.Context, tokenID, version int64, staged bool) error {
	_, err := l.server.ask(l.call, question{About: askReject, TokenID: tokenID, Version: version, Staged: staged})
	return err
}
