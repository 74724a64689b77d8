package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"chancery/users"
)

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

// ask waits for the ledger's answer, which the process at the other end bounds.
func (s *server) ask(number uint64, q question) (answer, error) {
	waiting := make(chan []byte, 1)
	s.mu.Lock()
	s.asks[number] = waiting
	s.mu.Unlock()
	text, err := json.Marshal(q)
	if err != nil {
		return answer{}, err
	}
	if err := s.link.writeBytes(kindAsk, number, text); err != nil {
		return answer{}, err
	}
	select {
	case body := <-waiting:
		return parseAnswer(body)
	case <-s.ended:
		return answer{}, ErrGone
	}
}

func parseAnswer(body []byte) (answer, error) {
	var a answer
	if err := json.Unmarshal(body, &a); err != nil {
		return answer{}, fmt.Errorf("%w: %w", errFrame, err)
	}
	if a.Error == nil {
		return a, nil
	}
	failure, err := parseError(a.Error)
	return answer{}, errors.Join(failure, err)
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

// consultTimeout bounds a question to the ledger.
const consultTimeout = 30 * time.Second

// adviser answers a worker's questions to the ledger, about the token of one unlock and no other: the module in the
// worker's process is somebody else's code.
type adviser struct {
	ledger  Ledger
	token   int64
	version int64
	derived func() // Ledger.Derived, at most once

	mu    sync.Mutex
	busy  bool // one question at a time
	asked int
}

// maxQuestions bounds the questions of one unlock, which are a dozen at most: each reads or changes the store.
const maxQuestions = 32

func newAdviser(ledger Ledger, record users.Token) *adviser {
	return &adviser{ledger: ledger, token: record.ID, version: record.PINVersion, derived: sync.OnceFunc(ledger.Derived)}
}

// begin tells whether a question may be asked now.
func (a *adviser) begin() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.busy || a.asked >= maxQuestions {
		return false
	}
	a.busy, a.asked = true, a.asked+1
	return true
}

func (a *adviser) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.busy = false
}

// answer has the ledger of a call answer the worker's question.
func (p *Process) answer(number uint64, body []byte) error {
	p.mu.Lock()
	waiting := p.pending[number]
	p.mu.Unlock()
	var q question
	if err := json.Unmarshal(body, &q); err != nil || waiting == nil || waiting.adviser == nil || !waiting.adviser.begin() {
		return fmt.Errorf("%w: a question", errFrame)
	}
	go func() {
		a, err := waiting.adviser.consult(q)
		if err != nil {
			a = answer{Error: encodeError(err)}
		}
		waiting.adviser.end()
		text, err := json.Marshal(a)
		if err != nil {
			text = nil // a malformed answer is a failure there
		}
		_ = p.link.writeBytes(kindAnswer, number, text)
	}()
	return nil
}

func (a *adviser) consult(q question) (answer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), consultTimeout)
	defer cancel()
	if q.About == askDerived {
		a.derived()
		return answer{}, nil
	}
	if q.TokenID != a.token || q.About != askToken && q.Version != a.version {
		return answer{}, fmt.Errorf("%w: a question about another token", errFrame)
	}
	switch q.About {
	case askCommit:
		return answer{}, a.ledger.CommitPIN(ctx, q.TokenID, q.Version)
	case askReject:
		return answer{}, a.ledger.RejectPIN(ctx, q.TokenID, q.Version, q.Staged)
	case askToken:
		snapshot, err := a.ledger.Snapshot(ctx)
		if err != nil {
			return answer{}, err
		}
		record, _ := snapshot.TokenByID(q.TokenID)
		return answer{Token: record}, nil
	}
	return answer{}, fmt.Errorf("%w: a question about %q", errFrame, q.About)
}
