package bridge

import (
	"context"
	"errors"
	"os"
	"time"

	"chancery/tunnel"
)

// Observer is told what a Bridge does, for metrics. Many goroutines call it, so
// that its methods must not block. Nothing is told of the bytes while they pass:
// Stats counts them.
type Observer interface {
	// Refused reports a connection on a port that never came to wait.
	Refused(port tunnel.Role, why Reason)
	// Left reports a connection that stopped waiting without a partner.
	Left(port tunnel.Role, waited time.Duration, why Reason)
	// Paired reports a pair, and for how long each side had waited.
	Paired(client, server time.Duration)
	// Ended reports the end of a pair.
	Ended(took time.Duration, why Reason)
}

// Reason says in one word why something ended.
type Reason string

// Why a connection was refused. After ReasonTLS the peer had no valid certificate, in any way.
const (
	ReasonTooFast    Reason = "too_fast"    // too many connections from one address
	ReasonShed       Reason = "shed"        // too slow while others wanted its place
	ReasonTLS        Reason = "tls"         // the handshake failed
	ReasonTimeout    Reason = "timeout"     // handshake and hello took too long
	ReasonHello      Reason = "hello"       // none, or not one of this protocol
	ReasonRole       Reason = "role"        // a client on the servers' port, or the other way about
	ReasonName       Reason = "name"        // the certificate has no usable Common Name
	ReasonNotAllowed Reason = "not_allowed" // a server that is not configured
	ReasonFull       Reason = "full"        // of connections that wait
	ReasonPerClient  Reason = "per_client"  // the client has too many connections
)

// Why a connection stopped waiting, or a pair ended.
const (
	ReasonClosed   Reason = "closed"    // by a peer, in order
	ReasonNoServer Reason = "no_server" // none became free in time
	ReasonProtocol Reason = "protocol"  // it sent what it may not send while it waits
	ReasonPartner  Reason = "partner"   // lost while they were being paired
	ReasonNoAnswer Reason = "no_answer" // a server's that was paired and did not answer its client
	ReasonRevoked  Reason = "revoked"   // its certificate is
	ReasonStalled  Reason = "stalled"   // a peer took in nothing for too long
	ReasonIdle     Reason = "idle"      // no byte passed for too long
	ReasonLinger   Reason = "linger"    // one direction outlived the other for too long
	ReasonShutdown Reason = "shutdown"  // of the bridge
	ReasonFailed   Reason = "failed"    // anything else, mostly a lost connection
)

// reasons says which error means what; the first match counts.
var reasons = []struct {
	err  error
	word Reason
}{
	{errTooFast, ReasonTooFast},
	{errShed, ReasonShed},
	{errFull, ReasonFull},
	{errPerClient, ReasonPerClient},
	{errDrained, ReasonShutdown},
	{context.Canceled, ReasonShutdown},
	{errNobody, ReasonNoServer},
	{errSpoke, ReasonProtocol},
	{errTooMuch, ReasonProtocol},
	{errClosed, ReasonClosed},
	{errAck, ReasonPartner},
	{errPartner, ReasonPartner},
	{errSilent, ReasonNoAnswer},
	{tunnel.ErrRevoked, ReasonRevoked},
	{errStall, ReasonStalled},
	{errIdle, ReasonIdle},
	{errLinger, ReasonLinger},
	{context.DeadlineExceeded, ReasonTimeout},
	{os.ErrDeadlineExceeded, ReasonTimeout},
	{errNoHello, ReasonHello},
	{tunnel.ErrHello, ReasonHello},
}

// wordFor returns the word for an error, otherwise where it is none of those with a word.
func wordFor(err error, otherwise Reason) Reason {
	var answered answer
	if errors.As(err, &answered) {
		return answered.word()
	}
	for _, reason := range reasons {
		if errors.Is(err, reason.err) {
			return reason.word
		}
	}
	return otherwise
}

// answer is the status that a refused peer was told.
type answer tunnel.Status

func (a answer) Error() string { return "answered \"" + tunnel.Status(a).String() + "\"" }

func (a answer) word() Reason {
	switch tunnel.Status(a) {
	case tunnel.StatusRole:
		return ReasonRole
	case tunnel.StatusNoName:
		return ReasonName
	case tunnel.StatusNotAllowed:
		return ReasonNotAllowed
	default:
		return ReasonHello
	}
}

// nobody observes nothing.
type nobody struct{}

func (nobody) Refused(tunnel.Role, Reason)             {}
func (nobody) Left(tunnel.Role, time.Duration, Reason) {}
func (nobody) Paired(time.Duration, time.Duration)     {}
func (nobody) Ended(time.Duration, Reason)             {}

// ErrNotServing is returned by Alive unless both ports are being served.
var ErrNotServing = errors.New("bridge: not serving on both ports")

// Alive returns nil while the bridge accepts on both ports and can pair, or drains after
// that. It waits for the bridge's locks: one that does not return is not alive either.
func (b *Bridge) Alive() error {
	b.Stats()
	if b.accepting.Load() == 2 || b.draining.Load() {
		return nil
	}
	return ErrNotServing
}
