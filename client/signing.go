package client

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"

	"chancery/tunnel/wire"
)

// signing is one request to sign on its way through all attempts. Under
// chancery/1 they carry one idempotency key, so that the server signs once.
type signing struct {
	client *Client
	key    string
	body   wire.RequestBody // *wire.Sign or *wire.SignAll, without terms
	id     uuid.UUID        // the idempotency key
	keyed  bool             // the latest attempt carried it
	lost   *lostError       // why the latest attempt that was sent and not answered was not
}

// sign makes a request to sign. It is repeated if the server surely did not get
// it, answered that it did not do it, or knows a repetition by its key. A batch that
// the token had no time for is left to the caller.
func (c *Client) sign(ctx context.Context, key string, body wire.RequestBody) (wire.ResponseBody, error) {
	s := &signing{client: c, key: key, body: body, id: uuid.New()}
	reply, err := c.repeat(ctx, s.attempt)
	switch {
	case err == nil || s.lost == nil:
		return reply, err
	case s.deadlinePassed():
		return nil, s.interrupted(s.lost) // it came last, also where err is an answer before it
	case !settled(err):
		return nil, s.interrupted(err)
	}
	return nil, err
}

// deadlinePassed tells whether the caller's time ended while the server was signing.
func (s *signing) deadlinePassed() bool { return errors.Is(s.lost.cause, context.DeadlineExceeded) }

// attempt returns errTooMany for a batch that is to be halved.
func (s *signing) attempt(ctx context.Context) (wire.ResponseBody, error) {
	reply, err := s.client.request(ctx, s.key, s.compose(ctx))
	if _, many := s.body.(*wire.SignAll); many && (outOfTime(err) || errors.Is(err, wire.NewError(wire.CodeBatchTooLarge))) {
		return nil, errTooMany
	}
	var lost *lostError
	if !errors.As(err, &lost) || !lost.sent {
		return reply, err
	}
	s.lost = lost
	if !s.keyed {
		return nil, s.interrupted(lost)
	}
	return nil, err
}

func outOfTime(err error) bool {
	return errors.Is(err, wire.NewError(wire.CodeTokenBusy)) || errors.Is(err, wire.NewError(wire.CodeDeadlineExceeded))
}

// compose adds the key and the deadline where the server knows them. Where it does not, what
// may have been signed before is not asked for again.
func (s *signing) compose(ctx context.Context) composer {
	return func(conn *connection) (wire.RequestBody, error) {
		if s.keyed = conn.extended; !s.keyed {
			if s.lost != nil {
				return nil, s.interrupted(s.lost)
			}
			return s.body, nil
		}
		return wire.WithTerms(s.body, wire.Terms{IdempotencyKey: s.id, Deadline: s.client.patience(ctx)}), nil
	}
}

// patience is how long the server may take for a request. It is less than what ends the connection or the caller's
// time, so that a late server says in time that it has released nothing.
func (c *Client) patience(ctx context.Context) time.Duration {
	patience := c.cfg.RequestTimeout
	if deadline, ok := ctx.Deadline(); ok {
		patience = min(patience, time.Until(deadline))
	}
	return max(patience-patience/10, time.Millisecond)
}

// settled tells whether a failure leaves no doubt about earlier attempts, or was the caller's wish.
func settled(err error) bool {
	var answer *wire.Error
	return errors.As(err, &answer) || errors.Is(err, errTooMany) || errors.Is(err, ErrInterrupted) || errors.Is(err, context.Canceled)
}

// interrupted says that what was sent may have been signed. last is what ended the attempts.
func (s *signing) interrupted(last error) error {
	interrupted := *ErrInterrupted
	if s.deadlinePassed() {
		interrupted.Message = "the time ran out while the server was signing; the signature may have been made"
	}
	interrupted.Err = s.lost.cause
	interrupted.Hint = lostText(s.lost.cause)
	if other := sorted(last); !errors.Is(last, s.lost.cause) {
		interrupted.Hint += ", and then: " + other.Message
	}
	interrupted.Hint += "; sign again if a second signature does no harm"
	return &interrupted
}
