package signer

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"chancery/audit"
	"chancery/token"
	"chancery/tunnel/wire"
)

// AuditLog is the part of an *audit.Log that a Server needs.
type AuditLog interface {
	// Append returns when the records are durable. After an error, what they record must not be done.
	Append(ctx context.Context, records ...audit.Record) (audit.Position, error)
	// Err returns why the last write failed, and nil if it did not.
	Err() error
}

const (
	// refusalPatience bounds how long the answer to a refused request waits for its record.
	refusalPatience = 2 * time.Second
	// maxDigestText bounds the digests of one record, in bytes; audit.MaxLine is for the whole of it.
	maxDigestText = audit.MaxLine - 64<<10
)

// recordable says whether the audit log is in order. Where it is not, nothing is unlocked
// or signed; the record of the refusal then tries whether the log works again.
func (s *Server) recordable() error {
	if err := s.cfg.Audit.Err(); err != nil {
		return fmt.Errorf("%w: %w", errUnaudited, err)
	}
	return nil
}

// record returns when the records are durable. An error that is not errUnaudited says that the request ended first, which is no
// fault of the log's; where the log took longer than the server's own patience, it is.
func (s *Server) record(ctx context.Context, records ...audit.Record) error {
	_, err := s.cfg.Audit.Append(ctx, records...)
	if err == nil {
		return nil
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.DeadlineExceeded) && errors.Is(err, cause) {
		return err
	}
	return fmt.Errorf("%w: %w", errUnaudited, err)
}

// origin says where a connection comes from. The address is the bridge's, whose log has the
// client's under the same session.
func origin(conn Conn) *audit.Peer {
	peer := &audit.Peer{}
	if address := conn.RemoteAddr(); address != nil {
		peer.Address = address.String()
	}
	if certificate := conn.PeerCertificate(); certificate != nil {
		sum := sha256.Sum256(certificate.Raw)
		peer.Serial, peer.Fingerprint = certificate.SerialNumber.Text(16), hex.EncodeToString(sum[:])
	}
	return peer
}

// entry begins the record of one request.
func (t *session) entry(kind audit.Kind, request uint64, key string) audit.Record {
	return audit.Record{
		Kind: kind, Outcome: audit.OutcomeOK, User: t.user, Key: key,
		Session: t.id.String(), Request: &request, Peer: t.origin,
	}
}

// recordSigned makes durable what was signed. Until then no signature leaves the server.
func (t *session) recordSigned(ctx context.Context, request uint64, made signed) error {
	return t.server.record(ctx, t.signedRecords(request, made)...)
}

// signedRecords says what one request made the token sign: one record, or several where that is too much for one.
func (t *session) signedRecords(request uint64, made signed) []audit.Record {
	record := t.entry(audit.KindSign, request, made.key)
	record.IdempotencyKey = keyText(made.terms)
	record.Handle, record.Scheme = made.opened.handle, schemeOf(made.opened.algorithm, made.scheme)
	hash, digests := digestsOf(made.jobs)
	record.DigestAlgorithm = hash
	parts := split(digests)
	records := make([]audit.Record, len(parts))
	for i, part := range parts {
		records[i] = record
		records[i].Digests = part
		if len(parts) > 1 {
			records[i].Details = map[string]string{"part": fmt.Sprintf("%d/%d", i+1, len(parts))}
		}
	}
	return records
}

// keyText is an idempotency key as the audit log has it, "" for none.
func keyText(terms wire.Terms) string {
	if terms.IdempotencyKey == uuid.Nil {
		return ""
	}
	return terms.IdempotencyKey.String()
}

// signed is what one request made the token sign.
type signed struct {
	key    string
	opened unlocked
	scheme wire.Scheme
	jobs   []job
	terms  wire.Terms
}

// digestsOf returns the name of the hash function and what identifies each input: its
// digest, and for a whole message the SHA-256 of it. Where the functions differ, each digest
// stands behind the name of its own.
func digestsOf(jobs []job) (hash string, digests []string) {
	digests = make([]string, len(jobs))
	for i, j := range jobs {
		name := string(j.digest.Algorithm)
		if name == "" {
			name = string(wire.SHA256)
			sum := sha256.Sum256(j.input)
			digests[i] = hex.EncodeToString(sum[:])
		} else {
			digests[i] = hex.EncodeToString(j.input)
		}
		if i > 0 && name != hash {
			return "mixed", mixedDigests(jobs)
		}
		hash = name
	}
	return hash, digests
}

// mixedDigests is for digests alone: a request does not mix them with messages.
func mixedDigests(jobs []job) []string {
	digests := make([]string, len(jobs))
	for i, j := range jobs {
		digests[i] = string(j.digest.Algorithm) + ":" + hex.EncodeToString(j.input)
	}
	return digests
}

// split cuts a list so that each part fits one record: short messages in one large frame have
// digests that are longer than themselves.
func split(digests []string) [][]string {
	const quotes = 3 // and the comma
	parts, size := [][]string{}, 0
	from := 0
	for i, digest := range digests {
		if size += len(digest) + quotes; size > maxDigestText {
			parts = append(parts, digests[from:i])
			from, size = i, len(digest)+quotes
		}
	}
	return append(parts, digests[from:])
}

// schemeOf names the signature scheme that the request came to.
func schemeOf(algorithm token.Algorithm, scheme wire.Scheme) string {
	switch {
	case algorithm == token.Ed25519:
		return "ed25519"
	case algorithm.RSABits() == 0:
		return "ecdsa"
	case scheme == wire.SchemePSS:
		return "pss"
	}
	return "pkcs1v15"
}

// recordRefused records why a request was not carried out, with the reason that its peer is not told.
func (t *session) recordRefused(ctx context.Context, request *wire.Request, cause error) error {
	body := request.Body
	record := t.entry(audit.KindRefused, request.ID, keyOf(body))
	record.IdempotencyKey = keyText(wire.TermsOf(body))
	if errors.Is(cause, errUnlockFailed) {
		record.Kind = audit.KindUnlockFailed
	}
	if key, ok := t.server.snapshot.Load().Key(record.Key); ok {
		record.Handle = key.Handle
	}
	if sign, ok := body.(*wire.Sign); ok && sign.Message == nil {
		record.DigestAlgorithm, record.Digests = string(sign.Digest.Algorithm), []string{clipDigest(sign.Digest.Hex)}
	}
	record.Outcome = outcomeOf(cause)
	record.Details = map[string]string{"request": body.Name(), "error": cause.Error()}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), refusalPatience)
	defer cancel()
	if record.Kind == audit.KindUnlockFailed || errors.Is(cause, errUnaudited) {
		return t.server.record(ctx, record)
	}
	return t.server.refusals.record(ctx, t.userID, record)
}

// clipDigest cuts what no digest can be, so that a peer does not choose how much is recorded.
func clipDigest(text string) string {
	const longest = 2 * sha512.Size // hexadecimal
	if len(text) <= longest {
		return text
	}
	return strings.ToValidUTF8(text[:longest], "") + "…"
}

// recordUndecoded records a request that the server does not know, or for which reason it does not take it.
func (t *session) recordUndecoded(ctx context.Context, id uint64, reason error) error {
	record := t.entry(audit.KindRefused, id, "")
	record.Outcome = string(wire.CodeUnsupported)
	if reason != nil {
		record.Outcome = outcomeOf(reason)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), refusalPatience)
	defer cancel()
	return t.server.refusals.record(ctx, t.userID, record)
}

// recordTurnedAway records a connection whose user may not have a session.
func (s *Server) recordTurnedAway(conn Conn, userID int64, outcome string) error {
	ctx, cancel := context.WithTimeout(context.Background(), refusalPatience)
	defer cancel()
	return s.refusals.record(ctx, userID, audit.Record{
		Kind: audit.KindRefused, Outcome: outcome, User: conn.PeerName(), Session: conn.Session().String(), Peer: origin(conn),
		Details: map[string]string{"request": "session"},
	})
}
