// Package clienttest is a server for tests of what uses package client: it
// speaks the wire's language over any stream, keeps its keys in memory, and can
// be told to misbehave.
package clienttest

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"slices"
	"sync"
	"testing"

	"github.com/google/uuid"

	"chancery/tunnel"
	"chancery/tunnel/wire"
)

// Conn is what a session runs on; *tunnel.Conn is one.
type Conn interface {
	net.Conn
	Session() tunnel.SessionID
	Extended() bool
}

// Server answers requests. Fields are set before the first session.
type Server struct {
	User string
	// Hook, if not nil, sees each request first. It returns the answer, Silence,
	// or nil to have the request served as usual.
	Hook func(*Session, *wire.Request) wire.ResponseBody

	mu       sync.Mutex
	keys     []*Key
	sessions map[*Session]bool
	counts   map[string]int
	answers  map[uuid.UUID]wire.ResponseBody // successful ones, by idempotency key
	signed   int
}

// Key is one key of a server.
type Key struct {
	wire.Key
	Passphrase string
	Signer     crypto.Signer
}

type silence struct{ wire.ResponseBody }

// Silence is the answer of a server that gives none.
var Silence wire.ResponseBody = silence{}

// AddKey adds a key and returns its description, to which certificates may be added.
func (s *Server) AddKey(tb testing.TB, name, passphrase string, signer crypto.Signer) *Key {
	tb.Helper()
	der, err := x509.MarshalPKIXPublicKey(signer.Public())
	if err != nil {
		tb.Fatal(err)
	}
	algorithm, err := wire.KeyAlgorithmOf(signer.Public())
	if err != nil {
		tb.Fatal(err)
	}
	hardware := false
	key := &Key{Passphrase: passphrase, Signer: signer, Key: wire.Key{
		Name: name, Algorithm: algorithm, Handle: wire.Handle(der), Hardware: &hardware,
		PublicKey: string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})),
	}}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = append(s.keys, key)
	return key
}

// Count returns how many requests of this name have arrived.
func (s *Server) Count(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts[name]
}

// Signed returns how many signatures were made. A request that is repeated with its
// idempotency key gets those that were made before; what else it says is not compared.
func (s *Server) Signed() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.signed
}

// Sessions returns how many sessions are open.
func (s *Server) Sessions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions)
}

// Restart cuts all sessions.
func (s *Server) Restart() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for session := range s.sessions {
		_ = session.Conn.Close()
	}
}

// ForgetUnlocks does to all sessions what the restart of a token does.
func (s *Server) ForgetUnlocks() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for session := range s.sessions {
		clear(session.unlocked)
	}
}

// Accept serves a listener's sessions until ctx is done.
func (s *Server) Accept(ctx context.Context, l *tunnel.Listener) {
	for {
		conn, err := l.Accept(ctx)
		if err != nil {
			return
		}
		go s.Serve(conn)
	}
}

// Session is one client's connection.
type Session struct {
	Conn
	server   *Server
	writing  sync.Mutex
	unlocked map[string]bool // under server.mu
}

// Serve answers requests until the stream ends: all at once under chancery/1,
// and in their order in plain version 2.
func (s *Server) Serve(conn Conn) {
	session := &Session{Conn: conn, server: s, unlocked: make(map[string]bool)}
	s.mu.Lock()
	if s.sessions == nil {
		s.sessions, s.counts = make(map[*Session]bool), make(map[string]int)
		s.answers = make(map[uuid.UUID]wire.ResponseBody)
	}
	s.sessions[session] = true
	s.mu.Unlock()
	defer func() {
		_ = conn.Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.sessions, session)
	}()
	var answering sync.WaitGroup
	defer answering.Wait()
	reader := wire.NewReader(conn, wire.RequestLimit(conn.Extended()))
	for {
		frame, err := reader.Next()
		if err != nil {
			return
		}
		request, err := wire.DecodeRequest(frame, conn.Extended())
		var unsupported *wire.UnsupportedError
		switch {
		case errors.As(err, &unsupported):
			session.Reply(unsupported.RequestID, &wire.UnsupportedReply{})
		case err != nil:
			return
		case conn.Extended():
			answering.Go(func() { session.answer(request) })
		default:
			session.answer(request)
		}
	}
}

// Reply sends an answer.
func (s *Session) Reply(id uint64, body wire.ResponseBody) {
	response := &wire.Response{Session: uuid.UUID(s.Conn.Session()), ID: id, Body: body}
	s.Frame(wire.AppendResponse(nil, response, s.Extended()))
}

// Frame sends a frame with any payload.
func (s *Session) Frame(payload []byte) {
	s.writing.Lock()
	defer s.writing.Unlock()
	_, _ = s.Write(wire.AppendFrame(nil, payload))
}

func (s *Session) answer(request *wire.Request) {
	s.server.mu.Lock()
	s.server.counts[request.Body.Name()]++
	s.server.mu.Unlock()
	var body wire.ResponseBody
	if s.server.Hook != nil {
		body = s.server.Hook(s, request)
	}
	if body == nil {
		body = s.Answer(request)
	}
	if body != Silence {
		s.Reply(request.ID, body)
	}
}

// Answer serves a request as usual. A hook may call it and keep the answer to itself.
func (s *Session) Answer(request *wire.Request) wire.ResponseBody {
	s.server.mu.Lock()
	defer s.server.mu.Unlock()
	return s.serve(request.Body)
}

func (s *Session) serve(body wire.RequestBody) wire.ResponseBody {
	switch request := body.(type) {
	case *wire.WhoAmI:
		return &wire.WhoAmIReply{User: s.server.User}
	case *wire.ListKeys:
		reply := &wire.ListKeysReply{}
		for _, key := range s.server.keys {
			reply.Keys = append(reply.Keys, key.Key)
		}
		return reply
	case *wire.GetKey:
		return s.withKey(request.Key, func(key *Key) wire.ResponseBody { return &wire.GetKeyReply{Key: key.Key} })
	case *wire.Unlock:
		return s.withKey(request.Key, func(key *Key) wire.ResponseBody {
			if string(request.Password.Bytes()) != key.Passphrase {
				return wire.NewError(wire.CodeWrongPassphrase)
			}
			s.unlocked[key.Name] = true
			return &wire.UnlockReply{}
		})
	case *wire.Sign:
		return s.withKey(request.Key, func(key *Key) wire.ResponseBody {
			return s.once(key, request.Terms, func() wire.ResponseBody { return s.sign(key, request) })
		})
	case *wire.SignAll:
		return s.withKey(request.Key, func(key *Key) wire.ResponseBody {
			return s.once(key, request.Terms, func() wire.ResponseBody { return s.signAll(key, request) })
		})
	}
	return &wire.UnsupportedReply{}
}

func (s *Session) withKey(name string, do func(*Key) wire.ResponseBody) wire.ResponseBody {
	i := slices.IndexFunc(s.server.keys, func(key *Key) bool { return key.Name == name })
	if i < 0 {
		return wire.NewError(wire.CodeNoSuchKey)
	}
	return do(s.server.keys[i])
}

// once answers a repetition as its first.
func (s *Session) once(key *Key, terms wire.Terms, sign func() wire.ResponseBody) wire.ResponseBody {
	if !s.unlocked[key.Name] {
		return wire.NewError(wire.CodeNotUnlocked)
	}
	if answer, known := s.server.answers[terms.IdempotencyKey]; known {
		return answer
	}
	answer := sign()
	if _, failed := answer.(*wire.Error); !failed && terms.IdempotencyKey != uuid.Nil {
		s.server.answers[terms.IdempotencyKey] = answer
	}
	return answer
}

func (s *Session) sign(key *Key, request *wire.Sign) wire.ResponseBody {
	signature, failed := s.one(key, request.Scheme, request.Digest, request.Message)
	if failed != nil {
		return failed
	}
	return &wire.SignReply{Signature: *signature}
}

func (s *Session) signAll(key *Key, request *wire.SignAll) wire.ResponseBody {
	reply := &wire.SignAllReply{}
	for i := range max(len(request.Digests), len(request.Messages)) {
		var digest wire.Digest
		var message []byte
		if request.Messages != nil {
			message = request.Messages[i]
		} else {
			digest = request.Digests[i]
		}
		signature, failed := s.one(key, request.Scheme, digest, message)
		if failed != nil {
			return failed
		}
		reply.Signatures = append(reply.Signatures, *signature)
	}
	return reply
}

func (s *Session) one(key *Key, scheme wire.Scheme, digest wire.Digest, message []byte) (*wire.Signature, *wire.Error) {
	sum, options := message, crypto.SignerOpts(digest.Algorithm.Hash())
	_, wantsMessage := key.Signer.Public().(ed25519.PublicKey)
	if wantsMessage != (message != nil) {
		return nil, wire.NewError(wire.CodeAlgorithmMismatch)
	}
	if message == nil {
		decoded, err := digest.Bytes()
		if err != nil {
			return nil, wire.NewError(wire.CodeDigestInvalid)
		}
		sum = decoded
	}
	if scheme == wire.SchemePSS {
		options = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: options.HashFunc()}
	}
	raw, err := key.Signer.Sign(rand.Reader, sum, options)
	if err != nil {
		return nil, wire.NewError(wire.CodeInternal)
	}
	s.server.signed++
	return &wire.Signature{Tag: key.Algorithm.Tag(), Bytes: raw, Digest: digest.Algorithm, Hash: digest.Hex}, nil
}
