package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Version is the only protocol version that a hello may name.
const Version = 2

// HelloSize and AckSize are the lengths in bytes of the two messages that are
// exchanged with the bridge in the outer session.
const (
	HelloSize = 13
	AckSize   = 17
)

// magic opens every hello of the documented order and follows the role byte in
// the other.
const magic = "SIGULDRY"

// Role is what a peer of the bridge wants to be.
type Role uint8

// The two roles, with their values on the wire.
const (
	RoleClient Role = 0
	RoleServer Role = 1
)

// String returns "client" or "server".
func (r Role) String() string {
	switch r {
	case RoleClient:
		return "client"
	case RoleServer:
		return "server"
	}
	return fmt.Sprintf("role %d", uint8(r))
}

// Order is the order of the fields in a hello or an ack. The protocol's text
// documents one and the programs that are deployed use the other, so both are
// read, and a bridge answers each peer in the order that the peer used.
type Order uint8

const (
	// EnumFirst is what deployed programs send, and what this package sends:
	// role, magic, version; and status, session id.
	EnumFirst Order = iota
	// Documented is the order of the protocol's text: magic, version, role;
	// and session id, status.
	Documented
)

// Status is the bridge's answer to a hello.
type Status uint8

// The statuses of an ack, with their values on the wire. Every dialler treats
// a status that it does not know as fatal, so new ones may be appended.
const (
	StatusOK         Status = 0
	StatusVersion    Status = 1 // the hello's version is not 2
	StatusRole       Status = 2 // the role does not belong on this port
	StatusNoName     Status = 3 // the certificate has no usable Common Name
	StatusMagic      Status = 4 // the hello's magic is wrong
	StatusNotAllowed Status = 5 // this name may not register as a server here
)

// String returns a few words for a log.
func (s Status) String() string {
	switch s {
	case StatusOK:
		return "ok"
	case StatusVersion:
		return "unsupported protocol version"
	case StatusRole:
		return "wrong role for this port"
	case StatusNoName:
		return "certificate without a usable common name"
	case StatusMagic:
		return "wrong magic"
	case StatusNotAllowed:
		return "name not allowed to register as a server"
	}
	return fmt.Sprintf("unknown status %d", uint8(s))
}

// ErrHello is returned for bytes that are no hello at all, to which the bridge
// sends no ack.
var ErrHello = errors.New("tunnel: not a hello")

// Hello is the first message of a peer to the bridge.
type Hello struct {
	Role    Role
	Magic   [8]byte // kept as received: a wrong one is answered, not dropped
	Version uint32
	Order   Order
}

// NewHello returns the hello of a peer with the given role, in the order that
// this package sends.
func NewHello(role Role) Hello {
	return Hello{Role: role, Magic: [8]byte([]byte(magic)), Version: Version, Order: EnumFirst}
}

// Encode returns the hello's bytes in the hello's own order.
func (h Hello) Encode() [HelloSize]byte {
	var b [HelloSize]byte
	body := b[1:]
	role := &b[0]
	if h.Order == Documented {
		body, role = b[:HelloSize-1], &b[HelloSize-1]
	}
	copy(body, h.Magic[:])
	binary.BigEndian.PutUint32(body[len(h.Magic):], h.Version)
	*role = byte(h.Role)
	return b
}

// DecodeHello reads a hello in either order: a first byte 0 or 1 is the role,
// and 'S' begins the magic. Anything else, and a role other than the two, is
// ErrHello. Magic and version are not judged here; see [Hello.Check].
func DecodeHello(b [HelloSize]byte) (Hello, error) {
	h := Hello{Order: EnumFirst}
	body, role := b[1:], b[0]
	if b[0] == magic[0] {
		h.Order = Documented
		body, role = b[:HelloSize-1], b[HelloSize-1]
	}
	if role > byte(RoleServer) {
		return Hello{}, fmt.Errorf("%w: role byte %#02x", ErrHello, role)
	}
	h.Role = Role(role)
	copy(h.Magic[:], body)
	h.Version = binary.BigEndian.Uint32(body[len(h.Magic):])
	return h, nil
}

// Check judges a hello that came in on the port of the given role, in the
// protocol's order: magic, version, role. The certificate's name comes after
// these and is the caller's to judge.
func (h Hello) Check(port Role) Status {
	switch {
	case string(h.Magic[:]) != magic:
		return StatusMagic
	case h.Version != Version:
		return StatusVersion
	case h.Role != port:
		return StatusRole
	}
	return StatusOK
}

// Ack is the bridge's answer to a hello.
type Ack struct {
	Status  Status
	Session SessionID
	Order   Order
}

// Encode returns the ack's bytes in the ack's own order.
func (a Ack) Encode() [AckSize]byte {
	var b [AckSize]byte
	if a.Order == Documented {
		copy(b[:], a.Session[:])
		b[AckSize-1] = byte(a.Status)
		return b
	}
	b[0] = byte(a.Status)
	copy(b[1:], a.Session[:])
	return b
}

// DecodeAck reads an ack in either order. The orders are told apart by what a
// session id can be: a UUIDv7 minted between 2004 and 2039 begins with the
// byte 1, and not with two of them after 2006. So 1 followed by 1 is status 1
// before a session id, 1 followed by anything else is a session id before a
// status, and every other first byte is a status.
func DecodeAck(b [AckSize]byte) Ack {
	if b[0] == 1 && b[1] != 1 {
		return Ack{Status: Status(b[AckSize-1]), Session: SessionID(b[:AckSize-1]), Order: Documented}
	}
	return Ack{Status: Status(b[0]), Session: SessionID(b[1:]), Order: EnumFirst}
}
