package worker

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"fmt"
	"sync/atomic"
	"time"

	"chancery/token"
)

// grip is what the vault knows of one capability.
type grip struct {
	secret  [32]byte
	holder  Holder
	keyID   []byte
	key     *heldKey
	ends    time.Time // zero: with Lock
	limited bool
	total   int64        // signatures, where limited
	left    atomic.Int64 // of these
	ended   atomic.Int64 // of those taken: signed or failed
	over    atomic.Bool
	timer   *time.Timer // nil without ends
}

func (g *grip) isOver() bool { return g.over.Load() }

func (g *grip) end() {
	g.over.Store(true)
	if g.timer != nil {
		g.timer.Stop()
	}
}

// maxCapabilities bounds those of one token.
const maxCapabilities = 1 << 16

// grip gives out a capability. The caller holds login.
func (v *Vault) grip(u Unlock, key *heldKey) (Capability, error) {
	g := &grip{holder: u.Holder, keyID: bytes.Clone(u.Key.ID), key: key, limited: u.Uses > 0, total: int64(u.Uses)}
	rand.Read(g.secret[:])
	g.left.Store(g.total)
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.isClosed() {
		return Capability{}, token.ErrClosed
	}
	if len(v.grips) >= maxCapabilities {
		return Capability{}, fmt.Errorf("worker: %d keys of the token are unlocked: %w", maxCapabilities, token.ErrBusy)
	}
	v.last++
	capability := Capability{Number: v.last, Secret: g.secret}
	v.grips[capability.Number] = g
	if lasts := u.lasts(time.Now()); lasts > 0 {
		g.ends = time.Now().Add(lasts)
		g.timer = time.AfterFunc(lasts, func() { v.Lock(capability) })
	}
	return capability, nil
}

// lasts is the capability's time: what was asked for, and not beyond the grant's expiry, which the wraps are bound to; 0: until Lock.
func (u *Unlock) lasts(now time.Time) time.Duration {
	if u.Grant.Binding.Expires.IsZero() {
		return u.Lasts
	}
	left := max(u.Grant.Binding.Expires.Sub(now), 1) // it was not over when the passphrase was shown
	if u.Lasts == 0 {
		return left
	}
	return min(u.Lasts, left)
}

// endAll ends all capabilities.
func (v *Vault) endAll() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for number, g := range v.grips {
		g.end()
		delete(v.grips, number)
	}
}

// take finds what an order's capability stands for and uses it, or refuses it.
func (v *Vault) take(order Order, now time.Time) (*grip, error) {
	g := v.find(order.Capability)
	if g == nil || g.isOver() || g.holder != order.Holder || !bytes.Equal(g.keyID, order.KeyID) {
		return nil, ErrCapability
	}
	if !g.ends.IsZero() && !now.Before(g.ends) {
		return nil, fmt.Errorf("%w: its time is over", ErrCapability)
	}
	if !g.use(int64(len(order.Inputs))) {
		return nil, fmt.Errorf("%w: its signatures are used up", ErrCapability)
	}
	return g, nil
}

// use takes n signatures, or none. What the token then fails to sign is used up all the same.
func (g *grip) use(n int64) bool {
	if !g.limited {
		return true
	}
	for {
		left := g.left.Load()
		if left < n {
			return false
		}
		if g.left.CompareAndSwap(left, left-n) {
			return true
		}
	}
}

// used says that n signatures that use has taken are made or failed, and tells whether they were the last ones.
func (g *grip) used(n int64) bool { return g.limited && g.ended.Add(n) == g.total }

// find compares the secret in constant time; the number is none.
func (v *Vault) find(capability Capability) *grip {
	v.mu.Lock()
	g := v.grips[capability.Number]
	v.mu.Unlock()
	if g == nil || subtle.ConstantTimeCompare(g.secret[:], capability.Secret[:]) != 1 {
		return nil
	}
	return g
}

// Lock implements Handler.
func (v *Vault) Lock(capability Capability) {
	g := v.find(capability)
	if g == nil {
		return
	}
	g.end()
	v.mu.Lock()
	delete(v.grips, capability.Number)
	unused := len(v.grips) == 0
	v.mu.Unlock()
	if unused {
		go v.lockUnused()
	}
}

// lockUnused waits for a login under way, which may be somebody's who gets a capability by it.
func (v *Vault) lockUnused() {
	if v.acquireLogin(context.Background()) != nil {
		return // closed
	}
	defer v.releaseLogin()
	v.forgetUnused(context.Background())
}
