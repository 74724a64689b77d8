package client

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"chancery/tunnel"
	"chancery/tunnel/wire"
)

// Client is one user's connection to a server. All its methods may be called
// from many goroutines.
type Client struct {
	cfg     *Config
	ctx     context.Context // done once Close is called
	cancel  context.CancelFunc
	secrets passphrases

	mu      sync.Mutex
	current *connection
	dialing *dialing // nil: nobody is
	keys    map[string]*KeyInfo
}

// dialing is one attempt to connect, which all who need a connection share.
type dialing struct {
	done chan struct{}
	conn *connection
	err  error
}

// Connect checks cfg and connects. A failure to reach the bridge or a server is
// retried as cfg says; every other one is returned at once.
func Connect(ctx context.Context, cfg *Config) (*Client, error) {
	prepared, err := cfg.prepare()
	if err != nil {
		return nil, told("connect", "", failure(CodeSettings, "%s", err))
	}
	c := &Client{cfg: prepared, keys: make(map[string]*KeyInfo)}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	_, err = c.repeat(ctx, func(ctx context.Context) (wire.ResponseBody, error) {
		_, err := c.connection(ctx)
		return nil, err
	})
	if err != nil {
		c.cancel()
		return nil, told("connect", "", err)
	}
	return c, nil
}

// Close ends the connection and wipes the passphrases. Calls in progress fail,
// with ErrInterrupted where a signature was on its way. It returns nil.
func (c *Client) Close() error {
	c.mu.Lock()
	c.cancel()
	c.secrets.wipe()
	current := c.current
	c.mu.Unlock()
	if current != nil {
		current.close()
	}
	return nil
}

// Extended tells whether the server speaks chancery/1, as of the latest
// connection. With one that does not, a request to sign is never repeated.
func (c *Client) Extended() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current.extended
}

// connection returns the connection in use, or makes one. It tries once.
func (c *Client) connection(ctx context.Context) (*connection, error) {
	c.mu.Lock()
	if c.ctx.Err() != nil {
		c.mu.Unlock()
		return nil, ErrClosed
	}
	if c.current != nil && c.current.usable() {
		defer c.mu.Unlock()
		return c.current, nil
	}
	attempt := c.dialing
	if attempt == nil {
		attempt = &dialing{done: make(chan struct{})}
		c.dialing = attempt
		go c.dial(attempt)
	}
	c.mu.Unlock()
	select {
	case <-attempt.done:
		return attempt.conn, attempt.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// dial runs one attempt. It does not end with the call that began it, since
// others wait for it as well.
func (c *Client) dial(attempt *dialing) {
	defer close(attempt.done)
	t, err := c.cfg.dial(c.ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dialing = nil
	if c.ctx.Err() != nil {
		if err == nil {
			_ = t.Close()
		}
		attempt.err = ErrClosed
		return
	}
	if err != nil {
		c.cfg.Log.Debug("cannot connect", "error", err.Error())
		attempt.err = err
		return
	}
	c.cfg.Log.Debug("connected", "session", t.Session().String(), "extended", t.Extended())
	attempt.conn = newConnection(t, c.cfg)
	c.current = attempt.conn
}

// composer makes a request for the connection that is to carry it.
type composer func(*connection) (wire.RequestBody, error)

// request makes one call: it sends what compose makes when a connection is
// there and key, if not empty, is unlocked on it.
func (c *Client) request(ctx context.Context, key string, compose composer) (wire.ResponseBody, error) {
	conn, err := c.connection(ctx)
	if err != nil {
		return nil, err
	}
	if key == "" {
		return conn.ask(ctx, compose)
	}
	return c.askUnlocked(ctx, conn, key, compose)
}

// askUnlocked unlocks the key where it is not, and again when the server has forgotten that: the
// token was restarted, or what one unlock is good for is used up. The latter may happen to one of many requests time
// and again, so that it goes on for as long as unlocking is of use to any of them.
func (c *Client) askUnlocked(ctx context.Context, conn *connection, key string, compose composer) (wire.ResponseBody, error) {
	served := conn.unlocks.servedBy(key)
	for fruitless := 0; ; fruitless++ {
		number, err := c.ensureUnlocked(ctx, conn, key)
		if err != nil {
			return nil, err
		}
		reply, err := conn.ask(ctx, compose)
		if err == nil {
			conn.unlocks.serve(key)
		}
		if number == 0 || !errors.Is(err, wire.NewError(wire.CodeNotUnlocked)) {
			return reply, err
		}
		conn.unlocks.expired(key, number)
		if now := conn.unlocks.servedBy(key); now != served {
			served, fruitless = now, 0
		}
		if fruitless > 1 { // once, the answers to others may still be on their way
			return reply, err
		}
	}
}

// ask is roundTrip for a connection that the server may want replaced.
func (c *connection) ask(ctx context.Context, compose composer) (wire.ResponseBody, error) {
	body, err := compose(c)
	if err != nil {
		return nil, err
	}
	reply, err := c.roundTrip(ctx, body)
	var answer *wire.Error
	if errors.As(err, &answer) && answer.Retry == wire.RetryReconnect {
		c.retire()
	}
	return reply, err
}

// read makes a call that is safe to repeat.
func (c *Client) read(ctx context.Context, body wire.RequestBody) (wire.ResponseBody, error) {
	return c.repeat(ctx, func(ctx context.Context) (wire.ResponseBody, error) {
		return c.request(ctx, "", func(*connection) (wire.RequestBody, error) { return body, nil })
	})
}

// repeat calls try until it succeeds, fails for good, or has had its chances.
func (c *Client) repeat(ctx context.Context, try func(context.Context) (wire.ResponseBody, error)) (wire.ResponseBody, error) {
	pause := backoff{min: c.cfg.RetryMin, max: c.cfg.RetryMax}
	began := time.Now()
	var reason error // of the attempt before
	for attempt := 1; ; {
		reply, err := try(ctx)
		if err == nil {
			return reply, nil
		}
		if reason != nil && errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil {
			return nil, reason // what used the time up says more
		}
		reason = err
		wait, kind := c.advice(err)
		switch kind {
		case giveUp:
			return nil, err
		case tryAgain:
			if attempt++; attempt > c.cfg.Attempts {
				return nil, err
			}
		}
		if wait == 0 {
			wait = pause.next() // the server gave no advice
		}
		wait = jittered(max(wait, c.cfg.RetryMin))
		if kind == whileBusy && time.Since(began)+wait > c.cfg.BusyTimeout || !c.sleep(ctx, wait) {
			return nil, canceledOr(ctx, err)
		}
		c.cfg.Log.Debug("trying again", "after", wait, "error", err.Error())
	}
}

type decision int

const (
	giveUp    decision = iota
	tryAgain           // the connection failed: a few times
	whileBusy          // the server asked to come back: until the time is up
)

// advice says whether a failed attempt may be followed by another, and after
// which pause at least.
func (c *Client) advice(err error) (time.Duration, decision) {
	var (
		known  *Error
		answer *wire.Error
		dialed *tunnel.Error
		lost   *lostError
	)
	switch {
	case errors.As(err, &answer):
		return answer.RetryAfter, answerAdvice(answer)
	case errors.Is(err, context.Canceled), errors.As(err, &known) && known.Code != CodeConnectionLost && known.Code != CodeTimeout && known.Code != CodeBadReply:
		return 0, giveUp
	case errors.As(err, &dialed):
		if dialed.Retry() {
			return 0, tryAgain
		}
		return 0, giveUp
	case errors.As(err, &lost):
		return 0, tryAgain
	}
	return 0, giveUp
}

// answerAdvice follows the server's advice, except that a missing token is
// reported at once: it may take somebody to plug it in.
func answerAdvice(answer *wire.Error) decision {
	if answer.Code == wire.CodeTokenAbsent {
		return giveUp
	}
	if slices.Contains([]wire.Retry{wire.RetryLater, wire.RetryReconnect}, answer.Retry) {
		return whileBusy
	}
	return giveUp
}

// sleep pauses, and tells whether there is time left for another attempt.
func (c *Client) sleep(ctx context.Context, wait time.Duration) bool {
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= wait {
		return false
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
	case <-c.ctx.Done():
	}
	return false
}

// canceledOr prefers the caller's own cancelation to the failure before it.
func canceledOr(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return ctx.Err()
	}
	return err
}

// backoff doubles a pause up to a maximum.
type backoff struct{ min, max, current time.Duration }

func (b *backoff) next() time.Duration {
	b.current = min(max(b.current*2, b.min), b.max)
	return b.current
}

// jittered adds up to half, so that many clients do not return in step.
func jittered(wait time.Duration) time.Duration {
	return wait + rand.N(wait/2+1)
}
