package client

import (
	"context"
	"errors"
	"io"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"chancery/tunnel"
	"chancery/tunnel/wire"
)

// writeSize is where the writer stops adding queued requests to one write: four TLS records.
const writeSize = 64 << 10

var (
	errIdle      = failure(CodeConnectionLost, "the connection was closed because it was idle")
	errServerEnd = failure(CodeConnectionLost, "the server ended the connection")
	errRetired   = failure(CodeConnectionLost, "the server asked for a new connection")
)

// call is one request on its way. Its frame and state are the connection's, under mu.
type call struct {
	id     uint64
	size   int
	frame  []byte
	secret bool // frame holds a passphrase and is wiped once written
	state  callState
	reply  chan wire.ResponseBody // buffered: the reader never waits for a caller
}

type callState int

const (
	callQueued callState = iota
	callWithdrawn
	callSent
)

// connection is one inner session. A goroutine writes what callers queue, and
// another hands replies to the callers who wait for them.
type connection struct {
	transport
	session  uuid.UUID
	extended bool
	limit    int // of a request, in bytes
	request  time.Duration
	idle     time.Duration

	queue   chan *call
	slots   chan struct{} // one per request without a reply
	unlocks unlocks
	ended   chan struct{} // closed once err is set
	writing sync.WaitGroup
	closing sync.Once
	lastID  atomic.Uint64

	mu       sync.Mutex
	pending  map[uint64]*call // sent, not answered
	order    []*call          // the same in the order of sending, for peers that answer in order
	deadline time.Time        // of the reader
	retired  bool             // takes no new requests
	err      error            // why it ended
	orderly  bool             // it ended with nothing on the way
}

func newConnection(t transport, cfg *Config) *connection {
	c := &connection{
		transport: t,
		session:   uuid.UUID(t.Session()),
		extended:  t.Extended(),
		limit:     wire.RequestLimit(t.Extended()),
		request:   cfg.RequestTimeout,
		idle:      cfg.IdleTimeout,
		queue:     make(chan *call),
		slots:     make(chan struct{}, cfg.InFlight),
		unlocks:   newUnlocks(),
		ended:     make(chan struct{}),
		pending:   make(map[uint64]*call),
	}
	c.setDeadline(c.idle)
	c.writing.Go(c.write)
	go c.read()
	return c
}

// usable tells whether new requests may be sent.
func (c *connection) usable() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err == nil && !c.retired
}

// roundTrip sends one request and waits for its reply, which is of the request's
// kind. Errors: *wire.Error as answered, *lostError, also when the context's deadline
// passed after the request was sent, a too large request, or the context's.
func (c *connection) roundTrip(ctx context.Context, body wire.RequestBody) (wire.ResponseBody, error) {
	select {
	case c.slots <- struct{}{}:
	case <-c.ended:
		return nil, c.lost(false)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	sent, err := c.prepare(body)
	if err != nil {
		<-c.slots
		return nil, err
	}
	select {
	case c.queue <- sent:
	case <-c.ended:
		c.withdraw(sent)
		return nil, c.lost(false)
	case <-ctx.Done():
		c.withdraw(sent)
		return nil, ctx.Err()
	}
	reply, err := c.await(ctx, sent)
	if err != nil {
		return nil, err
	}
	return c.outcome(body, reply)
}

// prepare encodes a request. One with a passphrase gets a buffer that need not
// grow, for growing leaves copies in memory.
func (c *connection) prepare(body wire.RequestBody) (*call, error) {
	sent := &call{id: c.lastID.Add(1), reply: make(chan wire.ResponseBody, 1)}
	var payload []byte
	if unlock, ok := body.(*wire.Unlock); ok {
		sent.secret = true
		payload = make([]byte, 0, 256+6*len(unlock.Key)+6*len(unlock.Password.Bytes()))
	}
	sent.frame = wire.AppendRequest(payload, &wire.Request{Session: c.session, ID: sent.id, Body: body})
	sent.size = len(sent.frame)
	if sent.size > c.limit {
		sent.wipe()
		return nil, failure(CodeTooLarge, "the request has %d bytes and the server accepts %d", sent.size, c.limit)
	}
	return sent, nil
}

// await waits for the reply to a request that the writer has taken over.
func (c *connection) await(ctx context.Context, sent *call) (wire.ResponseBody, error) {
	select {
	case reply := <-sent.reply:
		return reply, nil
	case <-ctx.Done():
	case <-c.ended:
	}
	select {
	case reply := <-sent.reply: // it came before the end
		return reply, nil
	default:
	}
	withdrawn := c.withdraw(sent)
	switch err := ctx.Err(); {
	case err == nil:
		return nil, c.lost(!withdrawn)
	case withdrawn, errors.Is(err, context.Canceled): // who cancels knows
		return nil, err
	default:
		return nil, &lostError{sent: true, cause: err}
	}
}

// outcome separates failures from replies, and ends the connection when a
// reply is of another kind than its request: then no other can be trusted to
// belong to its own.
func (c *connection) outcome(request wire.RequestBody, reply wire.ResponseBody) (wire.ResponseBody, error) {
	switch failed := reply.(type) {
	case *wire.Error:
		return nil, failed
	case *wire.UnsupportedReply:
		return nil, wire.NewError(wire.CodeUnsupported)
	}
	if answers(request, reply) {
		return reply, nil
	}
	cause := failure(CodeBadReply, "the server's reply does not answer the request %q", request.Name())
	c.fail(cause)
	return nil, &lostError{sent: true, cause: cause}
}

// answers tells whether a reply is one to this request.
func answers(request wire.RequestBody, reply wire.ResponseBody) bool {
	ok := false
	switch asked := request.(type) {
	case *wire.WhoAmI:
		_, ok = reply.(*wire.WhoAmIReply)
	case *wire.ListKeys:
		_, ok = reply.(*wire.ListKeysReply)
	case *wire.GetKey:
		got, is := reply.(*wire.GetKeyReply)
		ok = is && got.Key.Name == asked.Key
	case *wire.Unlock:
		_, ok = reply.(*wire.UnlockReply)
	case *wire.Sign:
		_, ok = reply.(*wire.SignReply)
	case *wire.SignAll:
		got, is := reply.(*wire.SignAllReply)
		ok = is && len(got.Signatures) == max(len(asked.Digests), len(asked.Messages))
	}
	return ok
}

// withdraw takes a request back unless it was sent, and tells whether that was
// so. A request that was sent keeps its slot until its reply arrives.
func (c *connection) withdraw(sent *call) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if sent.state == callSent {
		return false
	}
	if sent.state == callQueued {
		sent.state = callWithdrawn
		sent.wipe()
		<-c.slots
	}
	return true
}

func (s *call) wipe() {
	if s.secret {
		clear(s.frame)
	}
	s.frame = nil
}

func (c *connection) lost(sent bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &lostError{sent: sent, cause: c.err}
}

// write sends what is queued, as much as there is in one write.
func (c *connection) write() {
	var buffer []byte
	for {
		select {
		case first := <-c.queue:
			if len(c.slots) > 1 {
				runtime.Gosched() // callers whose replies came together ask together again
			}
			batch := c.gather(first)
			var secret bool
			buffer, secret = c.register(buffer[:0], batch)
			err := c.send(buffer)
			if secret {
				clear(buffer)
			}
			if err != nil {
				c.failAfterReader(err)
				return
			}
		case <-c.ended:
			return
		}
	}
}

// readerGrace is how long a failed write waits for the reader to learn the reason.
const readerGrace = time.Second

// failAfterReader ends the connection after a failed write. A server that hangs
// up says why in what it sends, an alert or an orderly end, which only the
// reader sees: so the reader gets to speak first.
func (c *connection) failAfterReader(cause error) {
	timer := time.NewTimer(readerGrace)
	defer timer.Stop()
	select {
	case <-c.ended:
	case <-timer.C:
		c.fail(cause)
	}
}

func (c *connection) send(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if err := c.SetWriteDeadline(time.Now().Add(c.request)); err != nil {
		return err
	}
	_, err := c.Write(b)
	return err
}

// gather takes what else is queued at this moment.
func (c *connection) gather(first *call) []*call {
	batch, size := []*call{first}, first.size
	for size < writeSize {
		select {
		case next := <-c.queue:
			batch = append(batch, next)
			size += next.size
		default:
			return batch
		}
	}
	return batch
}

// register appends the batch's frames to the buffer and from now on counts
// them as sent, all but those that were withdrawn.
func (c *connection) register(buffer []byte, batch []*call) (frames []byte, secret bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return buffer, false
	}
	size := 0
	for _, sent := range batch {
		size += 8 + sent.size
	}
	if cap(buffer) < size {
		buffer = make([]byte, 0, max(size, writeSize))
	}
	for _, sent := range batch {
		if sent.state != callQueued {
			continue
		}
		sent.state = callSent
		secret = secret || sent.secret
		buffer = wire.AppendFrame(buffer, sent.frame)
		sent.wipe()
		c.pending[sent.id] = sent
		if !c.extended {
			c.order = append(c.order, sent)
		}
	}
	c.setDeadlineLocked()
	return buffer, secret
}

// read hands out replies until the connection ends.
func (c *connection) read() {
	reader := wire.NewReader(c.transport, wire.MaxResponse)
	for {
		frame, err := reader.Next()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if err = c.timedOut(); err == nil {
				continue
			}
		}
		if err == nil {
			err = c.deliver(frame)
		}
		if err != nil {
			c.fail(readFailure(err))
			return
		}
	}
}

func readFailure(err error) error {
	var refused *tunnel.Error
	switch {
	case errors.As(err, &refused): // it may wrap io.EOF, but says more
		return refused
	case errors.Is(err, io.EOF), errors.Is(err, wire.ErrDone):
		return errServerEnd
	case errors.Is(err, wire.ErrMalformed), errors.Is(err, wire.ErrTooLarge):
		e := failure(CodeBadReply, "the server's reply cannot be understood; its version may be newer than the client's")
		e.Err = err
		return e
	}
	return err
}

// deliver gives one reply to the call that it answers.
func (c *connection) deliver(frame []byte) error {
	response, err := wire.DecodeResponse(frame)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	answered := c.take(response.ID)
	if answered == nil {
		return failure(CodeBadReply, "the server answered a request that was not made")
	}
	answered.reply <- response.Body
	<-c.slots
	c.setDeadlineLocked()
	if c.retired && len(c.pending) == 0 {
		return errRetired
	}
	return nil
}

// take removes the call that a reply belongs to: by id, or by order for peers
// of plain version 2.
func (c *connection) take(id uint64) *call {
	if c.extended {
		answered := c.pending[id]
		delete(c.pending, id)
		return answered
	}
	if len(c.order) == 0 {
		return nil
	}
	answered := c.order[0]
	c.order = c.order[1:]
	delete(c.pending, answered.id)
	return answered
}

// setDeadlineLocked lets the reader wait for the next reply, or for the end of idleness.
func (c *connection) setDeadlineLocked() {
	if len(c.pending) == 0 {
		c.setDeadline(c.idle)
		return
	}
	c.setDeadline(c.request)
}

func (c *connection) setDeadline(wait time.Duration) {
	c.deadline = time.Now().Add(wait)
	_ = c.SetReadDeadline(c.deadline) // it fails on a closed connection only, which the reader notices
}

// timedOut returns why the reader's deadline ends the connection, or nil when a
// request moved the deadline meanwhile.
func (c *connection) timedOut() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Now().Before(c.deadline) {
		return nil
	}
	if len(c.pending) == 0 {
		c.retired = true
		return errIdle
	}
	return failure(CodeTimeout, "the server has not answered for %s", c.request)
}

// retire lets the requests on the way finish and takes no new ones.
func (c *connection) retire() {
	c.mu.Lock()
	c.retired = true
	empty := len(c.pending) == 0
	c.mu.Unlock()
	if empty {
		c.fail(errRetired)
	}
}

// fail ends the connection, once; whoever waits is told the cause.
func (c *connection) fail(cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err, c.orderly = cause, len(c.pending) == 0
	close(c.ended)
	go c.hangUp()
}

// hangUp closes the transport, after the empty frame when nothing is on the way.
func (c *connection) hangUp() {
	c.closing.Do(func() {
		if c.orderly {
			c.writing.Wait()
			_ = c.SetWriteDeadline(time.Now().Add(time.Second))
			_, _ = c.Write(wire.AppendDone(nil))
		}
		_ = c.transport.Close()
	})
}

// close ends the connection and returns when the server has been told.
func (c *connection) close() {
	c.fail(ErrClosed)
	c.hangUp()
}
