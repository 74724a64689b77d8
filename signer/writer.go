package signer

import (
	"context"
	"runtime"
	"time"

	"chancery/tunnel/wire"
)

// coalesce bounds how many bytes of replies wait for one write. A larger reply
// still goes out whole.
const coalesce = 64 << 10

// reply is the answer to one request: response is set when ready is closed.
type reply struct {
	response wire.Response
	received time.Time // its frame
	weight   int64
	noRoom   bool // the request was not admitted, and is answered so
	ready    chan struct{}
}

// isLarge tells whether the reply counts against the user's and the server's limits until it is written. Small
// ones are many, and the session's own limit is enough for them.
func (r *reply) isLarge() bool { return r.weight > 1 && !r.noRoom }

// isReady tells whether the reply can be written without waiting.
func (r *reply) isReady() bool {
	select {
	case <-r.ready:
		return true
	default:
		return false
	}
}

// write sends replies in the order in which they come, as many in one write as
// are ready. After a failure it ends the session and throws the rest away.
func (t *session) write(ctx context.Context) {
	var (
		out     outbox
		pending *reply
		open    = true
	)
	for open {
		if pending == nil {
			if pending, open = <-t.replies; !open {
				return
			}
		}
		<-pending.ready
		if t.server.inFlight.Load() > 0 {
			runtime.Gosched() // one sync of the audit log answers many requests at once: let all of them reply before this write
		}
		pending = t.collect(&out, pending)
		if err := t.flush(ctx, &out); err != nil {
			t.end(err)
			t.discard(pending)
			return
		}
	}
}

// outbox is what the next write sends.
type outbox struct {
	frames  []byte
	message []byte // reused
	weight  int64
	large   int64 // of it, of large replies
}

// collect appends the ready reply and those behind it that are ready too. It
// returns the first that is not, or nil.
func (t *session) collect(out *outbox, r *reply) *reply {
	for {
		out.message = wire.AppendResponse(out.message[:0], &r.response, t.extended)
		out.frames = wire.AppendFrame(out.frames, out.message)
		out.weight += r.weight
		if r.isLarge() {
			out.large += r.weight
		}
		if len(out.frames) >= coalesce {
			return nil
		}
		select {
		case next, open := <-t.replies:
			if !open {
				return nil
			}
			if !next.isReady() {
				return next
			}
			r = next
		default:
			return nil
		}
	}
}

// flush writes and makes room for as many requests. A session that was aborted
// writes nothing.
func (t *session) flush(ctx context.Context, out *outbox) error {
	defer func() { t.makeRoom(out.large); out.large = 0 }()
	if t.aborted(ctx) {
		return context.Cause(ctx)
	}
	err := t.writeDeadline(ctx)
	if err == nil {
		_, err = t.conn.Write(out.frames)
	}
	t.requests.Release(out.weight)
	out.weight = 0
	out.frames = out.frames[:0]
	if cap(out.frames) > 4*coalesce {
		out.frames, out.message = nil, nil
	}
	return err
}

// writeDeadline sets one, a short one when the session has been cancelled. That
// is looked at second, because cancelling sets a deadline that must not be lost.
func (t *session) writeDeadline(ctx context.Context) error {
	if err := t.conn.SetWriteDeadline(time.Now().Add(t.server.cfg.WriteTimeout)); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return t.conn.SetWriteDeadline(time.Now().Add(lastWords))
	}
	return nil
}

// discard waits for the handlers that are still running and drops their replies.
func (t *session) discard(pending *reply) {
	drop := func(r *reply) {
		if <-r.ready; r.isLarge() {
			t.makeRoom(r.weight)
		}
	}
	if pending != nil {
		drop(pending)
	}
	for r := range t.replies {
		drop(r)
	}
}
