package signer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"time"

	"chancery/tunnel/wire"
	"chancery/users"
)

// answer fills in the reply to one request, whatever happens.
func (t *session) answer(ctx context.Context, r *reply, request *wire.Request, fault error, m *member) {
	if request == nil {
		r.response = wire.Response{Session: t.id, ID: requestID(fault), Body: t.refuseUndecoded(ctx, r, fault)}
		return
	}
	allowance, cause := t.server.allowance(request.Body)
	ctx, cancel := context.WithTimeoutCause(ctx, allowance, cause)
	defer cancel()
	var body wire.ResponseBody
	err := t.guard(func() (err error) {
		defer m.leave() // before a refusal is recorded, which may take its time
		if err := t.limit(ctx, r); err != nil {
			return err
		}
		body, err = t.handle(ctx, request, m)
		return err
	})
	if err = because(ctx, err); err != nil {
		body = t.refuse(ctx, request, err)
	}
	r.response = wire.Response{Session: request.Session, ID: request.ID, Body: body}
}

// refuse records and logs why a request failed and returns what the peer learns of it.
// Where it cannot be recorded, the peer learns that instead: nobody guesses unseen.
func (t *session) refuse(ctx context.Context, request *wire.Request, err error) *wire.Error {
	if unrecorded := t.recordRefused(ctx, request, err); unrecorded != nil {
		err = fmt.Errorf("%w: refusing the request: %v", unrecorded, err)
	}
	key := clip(keyOf(request.Body))
	failure := toWire(err, key)
	log := t.refusalLog().With("request", request.ID, "kind", request.Body.Name(), "key", key, "code", string(failure.Code), "error", err)
	switch failure.Code {
	case wire.CodeInternal:
		log.Error("request failed")
	case codeSessionEnded:
		log.Info("request given up with its session")
	default:
		log.Warn("request refused")
	}
	return failure
}

// refuseUndecoded records and logs a request that the server does not know or does not take, and returns the answer. It counts
// against its user's limits like any other.
func (t *session) refuseUndecoded(ctx context.Context, r *reply, fault error) wire.ResponseBody {
	t.refusalLog().Info("request not supported", "error", fault)
	err := t.limit(ctx, r)
	if err == nil {
		err = tooMany(fault)
	}
	if unrecorded := t.recordUndecoded(ctx, requestID(fault), err); unrecorded != nil {
		err = unrecorded
	}
	if err != nil {
		return toWire(err, "")
	}
	return &wire.UnsupportedReply{}
}

// tooMany has a client whose batch is too long for the protocol ask for fewer signatures at once; nil for another fault.
func tooMany(fault error) error {
	if !errors.Is(fault, wire.ErrBatchTooLarge) {
		return nil
	}
	return fmt.Errorf("%w: %w", fault, wire.Errorf(wire.CodeBatchTooLarge, "a request may ask for %d signatures at most; ask for fewer at once", wire.MaxBatch))
}

// refusalLog is for one line that the peer can cause again and again.
func (t *session) refusalLog() *slog.Logger { return t.server.refusals.logger(t.userID, t.log) }

// clip cuts a name that no key can have, so that a peer does not choose how much is
// logged and answered.
func clip(name string) string {
	if len(name) <= users.MaxNameSize {
		return name
	}
	return strings.ToValidUTF8(name[:users.MaxNameSize], "") + "…"
}

// guard turns a panic into an error. Its stack goes to the log only.
func (t *session) guard(work func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			t.refusalLog().Error("panic while serving a request", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			err = errPanicked
		}
	}()
	return work()
}

func (t *session) handle(ctx context.Context, request *wire.Request, m *member) (wire.ResponseBody, error) {
	switch body := request.Body.(type) {
	case *wire.WhoAmI:
		return &wire.WhoAmIReply{User: t.user}, nil
	case *wire.ListKeys:
		return t.listKeys(time.Now())
	case *wire.GetKey:
		return t.getKey(body.Key, time.Now())
	case *wire.Unlock:
		defer body.Password.Wipe()
		return t.unlock(ctx, request.ID, body)
	case *wire.Sign:
		return t.once(ctx, body, m, func(ctx context.Context) (wire.ResponseBody, error) { return t.sign(ctx, request.ID, body, m) })
	case *wire.SignAll:
		return t.once(ctx, body, m, func(ctx context.Context) (wire.ResponseBody, error) { return t.signAll(ctx, request.ID, body) })
	}
	return nil, fmt.Errorf("request of type %T has no handler", request.Body)
}

// keyOf names the key that a request is about, for logs and answers.
func keyOf(body wire.RequestBody) string {
	switch body := body.(type) {
	case *wire.GetKey:
		return body.Key
	case *wire.Unlock:
		return body.Key
	case *wire.Sign:
		return body.Key
	case *wire.SignAll:
		return body.Key
	}
	return ""
}

// requestID returns the id of a request that could not be decoded.
func requestID(fault error) uint64 {
	var unsupported *wire.UnsupportedError
	if errors.As(fault, &unsupported) {
		return unsupported.RequestID
	}
	return 0
}
