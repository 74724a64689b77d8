// Package canary asks the running server for a signature, as a client would: through a
// session, with a user's passphrase, past every limit and the audit log, down to
// the token, and verifies what comes back. Only the network is left out.
//
// The key is made for this and nothing else. What it signs is always the words
// "chancery canary", the moment, and random bytes, or their digest.
package canary

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/google/uuid"

	"chancery/tunnel/wire"
)

// ErrSilenced is returned without asking for anything, for a while after the passphrase was
// refused: the daemon does not guess, and its failures do not hold up the user's other sessions.
var ErrSilenced = errors.New("canary: its passphrase was refused a short while ago")

// silence is how long that is.
const silence = time.Minute

// Config says who signs what.
type Config struct {
	User, Key string
	// Passphrase returns the user's passphrase for the key; the canary overwrites it after use.
	Passphrase func() ([]byte, error)
	// Accept hands the far end of a new connection to the server, or returns the context's error.
	Accept func(context.Context, *Conn) error
	// Deadline is how long the server may try to make the signature.
	Deadline time.Duration
}

// Canary signs now and then. One goroutine uses it at a time.
type Canary struct {
	cfg     Config
	session *session // nil unless one is open
	refused time.Time
}

// New returns one that has not yet asked for anything.
func New(cfg Config) *Canary { return &Canary{cfg: cfg} }

// session is a connection with the key unlocked.
type session struct {
	conn   net.Conn
	frames *wire.Reader
	id     uuid.UUID
	last   uint64 // request
	key    wire.Key
	public crypto.PublicKey
}

// Sign has one signature made and verifies it. ctx bounds how long it waits to be accepted. Once
// a request is under way Sign waits for its answer, however long that takes, so that a token
// that hangs has no second request of the canary.
func (c *Canary) Sign(ctx context.Context) error {
	if c.session == nil {
		if err := c.open(ctx); err != nil {
			return err
		}
	}
	err := c.session.sign(c.cfg)
	if errors.Is(err, wire.NewError(wire.CodeNotUnlocked)) { // the lease is over, or the token was opened anew
		if err = c.unlock(); err == nil {
			err = c.session.sign(c.cfg)
		}
	}
	if err != nil {
		c.Close()
		return fmt.Errorf("canary: %s%w", c.naming(err), err)
	}
	return nil
}

// Close ends the session; the next Sign opens another.
func (c *Canary) Close() {
	if c.session != nil {
		_ = c.session.conn.Close()
		c.session = nil
	}
}

// open makes a session with the key unlocked.
func (c *Canary) open(ctx context.Context) error {
	if time.Since(c.refused) < silence {
		return ErrSilenced
	}
	near, far := newConn(c.cfg.User)
	if err := c.cfg.Accept(ctx, far); err != nil {
		return errors.Join(fmt.Errorf("canary: the server takes no session: %w", err), near.Close(), far.Close())
	}
	c.session = &session{conn: near, frames: wire.NewReader(near, wire.MaxResponse), id: uuid.UUID(far.session)}
	err := c.session.describe(c.cfg.Key)
	if err == nil {
		err = c.unlock()
	}
	if err != nil {
		c.Close()
		return fmt.Errorf("canary: user %q: %s%w", c.cfg.User, c.naming(err), err)
	}
	return nil
}

// naming is what stands before an error so that it names the key once: most of the server's answers do by themselves.
func (c *Canary) naming(err error) string {
	named := fmt.Sprintf("key %q: ", c.cfg.Key)
	if strings.HasPrefix(err.Error(), named) {
		return ""
	}
	return named
}

func (c *Canary) unlock() error {
	passphrase, err := c.cfg.Passphrase()
	if err != nil {
		return err
	}
	secret := wire.NewSecret(passphrase)
	defer secret.Wipe()
	_, err = call[*wire.UnlockReply](c.session, &wire.Unlock{Key: c.cfg.Key, Password: secret})
	if errors.Is(err, wire.NewError(wire.CodeWrongPassphrase)) {
		c.refused = time.Now()
	}
	return err
}

// describe asks for the public half, with which signatures are verified.
func (s *session) describe(name string) error {
	reply, err := call[*wire.GetKeyReply](s, &wire.GetKey{Key: name})
	if err != nil {
		return err
	}
	block, _ := pem.Decode([]byte(reply.Key.PublicKey))
	if block == nil {
		return errors.New("the server's public key is no PEM")
	}
	s.key = reply.Key
	s.public, err = x509.ParsePKIXPublicKey(block.Bytes)
	return err
}

func (s *session) sign(cfg Config) error {
	message := fmt.Appendf(nil, "chancery canary %s %s", time.Now().UTC().Format(time.RFC3339Nano), rand.Text())
	request := &wire.Sign{Key: cfg.Key, Terms: wire.Terms{Deadline: cfg.Deadline}}
	hash := hashFor(s.key.Algorithm)
	signed := message
	if hash == 0 {
		request.Message = message
	} else {
		sum := hash.New()
		sum.Write(message)
		signed = sum.Sum(nil)
		algorithm, err := wire.DigestAlgorithmOf(hash)
		if err != nil {
			return err
		}
		request.Digest = wire.NewDigest(algorithm, signed)
	}
	reply, err := call[*wire.SignReply](s, request)
	if err != nil {
		return err
	}
	if !verify(s.public, hash, signed, reply.Signature.Bytes) {
		return errors.New("the signature does not verify with the key's public half")
	}
	return nil
}

// call sends one request and waits for its answer.
func call[R wire.ResponseBody](s *session, body wire.RequestBody) (reply R, err error) {
	s.last++
	frame := make([]byte, 0, 4<<10) // roomy: growing would leave copies of a passphrase behind
	message := wire.AppendRequest(make([]byte, 0, 4<<10), &wire.Request{Session: s.id, ID: s.last, Body: body})
	frame = wire.AppendFrame(frame, message)
	defer clear(frame)
	defer clear(message)
	if _, err := s.conn.Write(frame); err != nil {
		return reply, fmt.Errorf("the server ended the session: %w", err)
	}
	answer, err := s.frames.Next()
	if err != nil {
		return reply, fmt.Errorf("the server ended the session: %w", err)
	}
	response, err := wire.DecodeResponse(answer)
	if err != nil {
		return reply, err
	}
	if failure, failed := response.Body.(*wire.Error); failed {
		return reply, failure
	}
	reply, fits := response.Body.(R)
	if !fits || response.ID != s.last {
		return reply, fmt.Errorf("the server answered request %d with a %T for request %d", s.last, response.Body, response.ID)
	}
	return reply, nil
}
