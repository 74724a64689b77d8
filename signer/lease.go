package signer

import (
	"fmt"
	"sync/atomic"
	"time"

	"chancery/users"
)

// lease is what one unlock is good for.
type lease struct {
	ends    time.Time // by the monotonic clock; zero: with the session
	limited bool
	total   int64 // signatures, where limited
	left    atomic.Int64
}

// newLease begins a lease as the grant says, or else the configuration.
func (s *Server) newLease(grant *users.Grant, now time.Time) *lease {
	l := &lease{limited: grant.LeaseUses > 0, total: int64(grant.LeaseUses)}
	l.left.Store(l.total)
	if lasts := s.leaseTime(grant); lasts > 0 {
		l.ends = now.Add(lasts)
	}
	return l
}

// leaseTime is how long an unlock by this grant lasts; 0: as long as the session.
func (s *Server) leaseTime(grant *users.Grant) time.Duration {
	if grant.Lease != 0 {
		return grant.Lease
	}
	return s.cfg.Lease
}

func (l *lease) ended(now time.Time) bool { return !l.ends.IsZero() && !now.Before(l.ends) }

// take uses the lease for n signatures, or not at all, so that a batch has all that it needs before it begins. What a token
// then fails to sign is used up all the same: nobody knows what it did. What others took it for goes on when it is used up.
func (l *lease) take(n int) error {
	if !l.limited {
		return nil
	}
	if int64(n) > l.total {
		return fmt.Errorf("%w: %d signatures in one request", errBatchTooLarge, n)
	}
	for {
		left := l.left.Load()
		if left < int64(n) {
			return fmt.Errorf("%w: %d of %d are left, and %d are asked for", errLeaseUsed, left, l.total, n)
		}
		if l.left.CompareAndSwap(left, left-int64(n)) {
			return nil
		}
	}
}

// giveBack returns what was taken for n signatures that the token was never asked for.
func (l *lease) giveBack(n int) {
	if l.limited {
		l.left.Add(int64(n))
	}
}
