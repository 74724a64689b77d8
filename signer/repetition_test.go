package signer

import (
	"testing"

	"chancery/tunnel/wire"
)

// repetitionWitness is a witness of repetitions as well.
type repetitionWitness struct{ witness }

func (w *repetitionWitness) Repeated(what Repetition) { w.note("repeated %s", what) }

func TestObserverHearsOfRepetitions(t *testing.T) {
	seen := &repetitionWitness{}
	w := newWorld(t, func(_ *world, c *Config) { c.Observer = seen })
	c, request := w.unlockedClient("p256"), keyed("text")
	for range 3 { // the first is none
		signatureOf(c, c.call(request))
	}
	another := keyed("another text")
	another.IdempotencyKey = request.IdempotencyKey
	if refused, ok := c.call(another).(*wire.Error); !ok || refused.Code != wire.CodeIdempotencyConflict {
		t.Errorf("%+v", refused)
	}
	if answered, conflicts := seen.count("repeated answered"), seen.count("repeated conflict"); answered != 2 || conflicts != 1 {
		t.Errorf("the observer heard of %d repetitions and %d conflicts", answered, conflicts)
	}
}
