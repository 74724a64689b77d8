package signer

import (
	"cmp"
	"slices"
	"time"

	"chancery/signer/queue"
	"chancery/users"
)

// Status is what a server is doing at this moment.
type Status struct {
	Revision    int64             `json:"revision"` // of the store's state in force
	Store       StoreStatus       `json:"store"`
	Sessions    int               `json:"sessions"`
	InFlight    int               `json:"in_flight"` // requests
	Queued      int               `json:"queued"`    // requests that were read and wait for room among those in flight
	Signing     int               `json:"signing"`   // signatures asked from tokens and not yet made
	Derivations DerivationsStatus `json:"derivations"`
	Audit       string            `json:"audit_error,omitempty"` // why nothing can be recorded, and so nothing signed
	Seal        string            `json:"seal_error,omitempty"`  // why the seal over the store does not open, and so nothing is signed
	Tokens      []TokenStatus     `json:"tokens"`
}

// StoreStatus is how the latest look at the store went.
type StoreStatus struct {
	Looked time.Time `json:"looked"` // zero before Serve
	Good   time.Time `json:"good"`   // when it last could be read: as old is what is in force
	Error  string    `json:"error,omitempty"`
}

// DerivationsStatus counts the passphrases that are being turned into access keys.
type DerivationsStatus struct {
	Running int `json:"running"`
	Waiting int `json:"waiting"`
}

// TokenStatus is how a registered token is.
type TokenStatus struct {
	Name    string      `json:"name"`
	State   string      `json:"state"` // one of the State constants
	Since   time.Time   `json:"since"`
	Error   string      `json:"error,omitempty"`        // why it is absent
	Refused []string    `json:"refused_keys,omitempty"` // keys whose public half is not the registered one
	Opened  int         `json:"opened"`                 // how often it was opened since the start; each time after the first, it had failed or been reloaded
	Queue   QueueStatus `json:"queue"`
}

// QueueStatus is the queue of requests to sign before a token.
type QueueStatus struct {
	AtToken int           `json:"at_token"` // requests that the token works at
	Slots   int           `json:"slots"`    // as many may be there at once
	Waiting int           `json:"waiting"`
	Oldest  time.Duration `json:"oldest_ns"` // how long the one has waited that waits longest
	Refused uint64        `json:"refused"`   // since the start, because too many waited
}

// Status may be called at any time. It asks no token.
func (s *Server) Status() Status {
	status := Status{
		InFlight: int(s.inFlight.Load()), Queued: int(s.stalled.Load()), Signing: int(s.signing.Load()),
		Derivations: DerivationsStatus{Running: len(s.derivations), Waiting: int(s.deriving.Load())},
		Tokens:      s.tokens.status(),
	}
	if watcher := s.watcher.Load(); watcher != nil {
		status.Store = storeStatus(watcher.Looked())
	}
	if err := s.cfg.Audit.Err(); err != nil {
		status.Audit = err.Error()
	}
	if snapshot := s.snapshot.Load(); snapshot != nil {
		status.Revision = snapshot.Revision
		if closed := snapshot.Closed(); closed != nil {
			status.Seal = closed.Error()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.peers {
		status.Sessions += p.sessions + p.excess
	}
	return status
}

func storeStatus(look users.Look) StoreStatus {
	status := StoreStatus{Looked: look.At, Good: look.Good}
	if look.Err != nil {
		status.Error = look.Err.Error()
	}
	return status
}

func (m *tokens) status() []TokenStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]TokenStatus, 0, len(m.slots))
	for _, s := range m.slots {
		all = append(all, s.status())
	}
	slices.SortFunc(all, func(a, b TokenStatus) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

func queueStatus(q queue.Stats) QueueStatus {
	status := QueueStatus{AtToken: q.InUse, Slots: q.Slots, Oldest: q.Oldest, Refused: q.Refused}
	for _, waiting := range q.Waiting {
		status.Waiting += waiting
	}
	return status
}

func (s *slot) status() TokenStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	status := TokenStatus{Name: s.record.Name, State: s.state, Since: s.since, Opened: s.opened, Queue: queueStatus(s.queue.Stats())}
	if s.lastErr != nil {
		status.Error = s.lastErr.Error()
	}
	for _, key := range s.keys {
		if s.refused[key.ID] != nil {
			status.Refused = append(status.Refused, key.Name)
		}
	}
	return status
}
