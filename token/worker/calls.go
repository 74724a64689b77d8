package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"

	"chancery/token"
)

// pending is one call that waits for its result. It stays registered until that comes, whether somebody waits or not.
type pending struct {
	result  chan outcome
	slot    bool     // it holds one of Process.slots
	most    int      // bytes of a result; more are no result
	adviser *adviser // nil for all but Unlock
}

type outcome struct {
	body []byte
	err  error
}

func newPending() *pending { return &pending{result: make(chan outcome, 1), most: maxFrame} }

// maxSignature bounds a signature in bytes, far above every algorithm's: many calls may be under way, and a module chooses what it
// answers.
const maxSignature = 8 << 10

// awaited tells whether a result of so many bytes can be one to the call. What nobody waits for is dropped.
func (p *Process) awaited(number uint64, size int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	waiting := p.pending[number]
	return waiting == nil || size <= waiting.most
}

// begin registers a call and sends its request.
func (p *Process) begin(waiting *pending, kind byte, size int, fill func([]byte) []byte) (uint64, error) {
	number, err := p.register(waiting)
	if err != nil {
		p.settle(waiting, outcome{})
		return 0, err
	}
	err = p.link.write(kind, number, size, fill)
	if err == nil || p.take(number) == nil {
		return number, nil // also where the link broke when the result was there, or its end was told
	}
	p.settle(waiting, outcome{})
	if errors.Is(err, errTooLarge) {
		return 0, err
	}
	return 0, fmt.Errorf("%w: %w", ErrGone, err)
}

func (p *Process) register(waiting *pending) (uint64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pending == nil {
		return 0, p.ended
	}
	p.last++
	p.pending[p.last] = waiting
	return p.last, nil
}

func (p *Process) take(number uint64) *pending {
	p.mu.Lock()
	defer p.mu.Unlock()
	waiting := p.pending[number]
	delete(p.pending, number)
	return waiting
}

func (p *Process) deliver(number uint64, o outcome) {
	if waiting := p.take(number); waiting != nil {
		p.settle(waiting, o)
	}
}

// settle ends a call that is registered no more, once.
func (p *Process) settle(waiting *pending, o outcome) {
	if waiting.slot {
		<-p.slots
	}
	if waiting.adviser != nil {
		waiting.adviser.derived()
	}
	waiting.result <- o
}

// await returns the result. When ctx ends first the call is given up, and what it brings later is dropped.
func await(ctx context.Context, waiting *pending) ([]byte, error) {
	select {
	case o := <-waiting.result:
		return o.body, o.err
	case <-ctx.Done():
		return nil, unanswered(ctx)
	}
}

func unanswered(ctx context.Context) error {
	return fmt.Errorf("worker: the token has not answered yet: %w", context.Cause(ctx))
}

// misunderstood ends a process whose result is none.
func (p *Process) misunderstood(err error) error {
	p.distrust()
	return fmt.Errorf("%w: %w", ErrGone, err)
}

// ask makes a call whose body and result are JSON.
func (p *Process) ask(ctx context.Context, kind byte, body []byte, result any) error {
	waiting := newPending()
	if _, err := p.begin(waiting, kind, len(body), func(b []byte) []byte { return append(b, body...) }); err != nil {
		return err
	}
	reply, err := await(ctx, waiting)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(reply, result); err != nil {
		return p.misunderstood(fmt.Errorf("%w: %w", errFrame, err))
	}
	return nil
}

// Info implements Handler.
func (p *Process) Info(ctx context.Context) (info token.Info, err error) {
	err = p.ask(ctx, kindInfo, nil, &info)
	return info, err
}

// Keys implements Handler.
func (p *Process) Keys(ctx context.Context) ([]token.KeyInfo, error) {
	var listed []listedKey
	if err := p.ask(ctx, kindKeys, nil, &listed); err != nil {
		return nil, err
	}
	return unlistKeys(listed)
}

// Unlock implements Handler. When ctx ends first, the worker goes on: what it finds out of a PIN still reaches the ledger.
func (p *Process) Unlock(ctx context.Context, unlock Unlock, ledger Ledger) (Capability, error) {
	waiting := newPending()
	waiting.adviser, waiting.most = newAdviser(ledger, unlock.Token), capabilitySize
	text, err := json.Marshal(unlock)
	if err != nil {
		waiting.adviser.derived()
		return Capability{}, fmt.Errorf("worker: key %q: %w", unlock.Key.Name, err)
	}
	_, err = p.begin(waiting, kindUnlock, unlockSize(text, unlock.Passphrase), func(b []byte) []byte {
		return appendUnlock(b, text, unlock.Passphrase)
	})
	if err != nil {
		return Capability{}, err
	}
	select {
	case o := <-waiting.result:
		return p.capability(o)
	case <-ctx.Done():
		go func() {
			if late, err := p.capability(<-waiting.result); err == nil {
				p.Lock(late)
			}
		}()
		return Capability{}, unanswered(ctx)
	}
}

func (p *Process) capability(o outcome) (Capability, error) {
	if o.err != nil {
		return Capability{}, o.err
	}
	capability, err := parseCapability(o.body)
	if err != nil {
		return Capability{}, p.misunderstood(err)
	}
	return capability, nil
}

// Sign implements Handler. When ctx ends first the worker signs no further inputs; until it has said so, the call counts
// among those under way.
func (p *Process) Sign(ctx context.Context, order Order) ([][]byte, error) {
	w, err := wayOf(order.Options)
	if err != nil {
		return nil, err
	}
	if len(order.KeyID) > math.MaxUint16 {
		return nil, ErrCapability
	}
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", token.ErrBusy, context.Cause(ctx))
	}
	waiting := newPending()
	waiting.slot, waiting.most = true, 4+len(order.Inputs)*(inputOverhead+maxSignature)
	number, err := p.begin(waiting, kindSign, orderSize(&order), func(b []byte) []byte { return appendOrder(b, &order, w) })
	if err != nil {
		return nil, err
	}
	body, err := await(ctx, waiting)
	if err != nil {
		if ctx.Err() != nil {
			_ = p.link.write(kindCancel, number, 0, nil) // of a broken link the worker learns by itself
		}
		return nil, err
	}
	signatures, err := parseSignatures(body, len(order.Inputs))
	if err != nil {
		return nil, p.misunderstood(err)
	}
	return signatures, nil
}

// Lock implements Handler.
func (p *Process) Lock(capability Capability) {
	// A broken link has no capabilities left.
	_ = p.link.write(kindLock, 0, capabilitySize, func(b []byte) []byte { return appendCapability(b, capability) })
}
