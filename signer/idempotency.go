package signer

import (
	"context"
	"crypto/sha256"
	"sync"
	"time"

	"github.com/google/uuid"

	"chancery/tunnel/wire"
)

// once has a request to sign served once for each idempotency key: what repeats it gets
// the same signatures, without a token's work or a record in the audit log, and waits where they
// are still being made. Whoever repeats is authorised like the first, each time.
func (t *session) once(ctx context.Context, body wire.RequestBody, m *member, sign func(context.Context) (wire.ResponseBody, error)) (wire.ResponseBody, error) {
	key := wire.TermsOf(body).IdempotencyKey
	if key == uuid.Nil {
		return sign(ctx)
	}
	for {
		opened, err := t.authorise(keyOf(body), time.Now())
		if err != nil {
			return nil, err
		}
		known, first, err := t.server.repetitions.begin(t.userID, key, fingerprint(opened, body))
		if err != nil {
			t.server.observeRepetition(RepetitionConflict)
			return nil, err
		}
		if first {
			return t.lead(ctx, known, body, sign)
		}
		m.leave()
		select {
		case <-known.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if known.reply != nil {
			return t.release(known, body)
		}
	}
}

// lead serves the first request under its key. Losing the connection does not end it, so
// that the result is there when the client comes back; its deadline does, and the server's end.
func (t *session) lead(ctx context.Context, r *repetition, body wire.RequestBody, sign func(context.Context) (wire.ResponseBody, error)) (reply wire.ResponseBody, err error) {
	defer func() { t.server.repetitions.end(r, reply) }()
	ctx, cancel := t.outlive(ctx, body)
	defer cancel()
	reply, err = sign(ctx)
	return reply, because(ctx, err)
}

// outlive returns a context for what goes on when the connection is lost: it ends at the request's deadline, which is ctx's, and
// with the server.
func (t *session) outlive(ctx context.Context, body wire.RequestBody) (context.Context, context.CancelFunc) {
	deadline, _ := ctx.Deadline()
	_, cause := t.server.allowance(body)
	return context.WithDeadlineCause(t.serving, deadline, cause)
}

// release answers a repetition, after another look at what its user may do and at the key that now has the name: waiting
// takes time.
func (t *session) release(r *repetition, body wire.RequestBody) (wire.ResponseBody, error) {
	opened, err := t.authorise(keyOf(body), time.Now())
	if err != nil {
		return nil, err
	}
	if fingerprint(opened, body) != r.body {
		t.server.observeRepetition(RepetitionConflict)
		return nil, errConflict
	}
	t.server.observeRepetition(RepetitionAnswered)
	t.log.Debug("answered a repetition", "key", keyOf(body), "idempotency_key", r.name.key.String())
	return r.reply, nil
}

// Repetition says what became of a request under an idempotency key that was known.
type Repetition string

// What became of it.
const (
	RepetitionAnswered Repetition = "answered" // with the signatures of the first
	RepetitionConflict Repetition = "conflict" // the key was another request's
)

// RepetitionObserver is an Observer that is told of repetitions as well.
type RepetitionObserver interface {
	// Repeated reports a repetition when its answer is ready.
	Repeated(what Repetition)
}

func (s *Server) observeRepetition(what Repetition) {
	if o, ok := s.cfg.Observer.(RepetitionObserver); ok {
		o.Repeated(what)
	}
}

// allowance is how long a request may take, and what its context says when that is over.
func (s *Server) allowance(body wire.RequestBody) (time.Duration, error) {
	if deadline := wire.TermsOf(body).Deadline; deadline > 0 && deadline < s.cfg.RequestTimeout {
		return deadline, errDeadline
	}
	return s.cfg.RequestTimeout, nil
}

// fingerprint identifies what is asked for and the key that would sign it: its name may
// have passed to another one.
func fingerprint(opened unlocked, body wire.RequestBody) [sha256.Size]byte {
	text := wire.AppendRequest([]byte(opened.handle), &wire.Request{Body: wire.WithTerms(body, wire.Terms{})})
	return sha256.Sum256(text)
}

// repetitions remembers requests by their idempotency keys: those being served, and the
// answers of those that succeeded. It is bounded, and one user's flood forgets their own answers.
type repetitions struct {
	cfg *Config

	mu    sync.Mutex
	users map[int64]*remembered
	bytes int       // of all users
	swept time.Time // the last look for answers that are too old
}

// remembered are the requests of one user.
type remembered struct {
	byKey map[uuid.UUID]*repetition
	order []*repetition // those with an answer, the oldest first
	bytes int           // of these
}

// repetition is one request and all that repeat it.
type repetition struct {
	name struct {
		user int64
		key  uuid.UUID
	}
	body  [sha256.Size]byte
	done  chan struct{}
	reply wire.ResponseBody // set when done is closed; nil after a failure
	made  time.Time         // the reply
	bytes int               // it takes about
}

func newRepetitions(cfg *Config) *repetitions {
	return &repetitions{cfg: cfg, users: make(map[int64]*remembered), swept: time.Now()}
}

// begin returns the request that the key names. It is the caller's to serve, and to end,
// where it is the first. The error says that the key is another request's.
func (r *repetitions) begin(user int64, key uuid.UUID, body [sha256.Size]byte) (known *repetition, first bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sweep(time.Now())
	u, ok := r.users[user]
	if !ok {
		u = &remembered{byKey: make(map[uuid.UUID]*repetition)}
		r.users[user] = u
	}
	known, ok = u.byKey[key]
	if ok && known.body != body {
		return nil, false, errConflict
	}
	if ok {
		return known, false, nil
	}
	known = &repetition{body: body, done: make(chan struct{})}
	known.name.user, known.name.key = user, key
	u.byKey[key] = known
	return known, true, nil
}

// end keeps the answer, or forgets a request that failed, and lets those who wait go on.
func (r *repetitions) end(known *repetition, reply wire.ResponseBody) {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer close(known.done)
	u := r.users[known.name.user]
	if reply == nil {
		delete(u.byKey, known.name.key)
		r.release(known.name.user)
		return
	}
	known.reply, known.made, known.bytes = reply, time.Now(), sizeOf(reply)
	u.order = append(u.order, known)
	u.bytes += known.bytes
	r.bytes += known.bytes
	for len(u.order) > r.cfg.RepeatRequests || u.bytes > r.cfg.RepeatUserBytes {
		r.forgetOldest(known.name.user)
	}
	for r.bytes > r.cfg.RepeatBytes {
		r.forgetOldest(r.largest())
	}
}

// sweep forgets, now and then, what is older than the window.
func (r *repetitions) sweep(now time.Time) {
	if now.Sub(r.swept) < r.cfg.RepeatWindow/32 {
		return
	}
	r.swept = now
	for user, u := range r.users {
		for len(u.order) > 0 && now.Sub(u.order[0].made) >= r.cfg.RepeatWindow {
			r.forgetOldest(user)
		}
	}
}

func (r *repetitions) forgetOldest(user int64) {
	u := r.users[user]
	oldest := u.order[0]
	u.order[0] = nil
	u.order = u.order[1:]
	u.bytes -= oldest.bytes
	r.bytes -= oldest.bytes
	delete(u.byKey, oldest.name.key)
	r.release(user)
}

// release forgets a user of whom nothing is remembered.
func (r *repetitions) release(user int64) {
	if len(r.users[user].byKey) == 0 {
		delete(r.users, user)
	}
}

// largest is the user whose answers take most, so that nobody who keeps less than others
// loses anything to them.
func (r *repetitions) largest() (user int64) {
	most := -1
	for id, u := range r.users {
		if u.bytes > most {
			user, most = id, u.bytes
		}
	}
	return user
}

// sizeOf estimates the memory of an answer and what surrounds it.
func sizeOf(reply wire.ResponseBody) int {
	const request, signature = 400, 96
	size := request
	each := func(s wire.Signature) { size += signature + len(s.Bytes) + len(s.Hash) }
	switch reply := reply.(type) {
	case *wire.SignReply:
		each(reply.Signature)
	case *wire.SignAllReply:
		for _, s := range reply.Signatures {
			each(s)
		}
	}
	return size
}
