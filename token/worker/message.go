package worker

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"

	"chancery/token"
)

// A request to sign: number u64, secret 32 bytes, session 16 bytes, user u64, hash u8 (crypto.Hash), scheme u8,
// key's identifier u16 and bytes, inputs u32, each u32 and bytes. Its result: signatures u32, each u32 and bytes.

// The schemes of a request to sign.
const (
	schemePlain byte = iota // PKCS #1 v1.5, ECDSA, Ed25519
	schemePSS               // with a salt of the hash's length
)

const (
	// inputOverhead is what an input takes beside its bytes.
	inputOverhead = 4
	// orderOverhead is what a request to sign takes beside the key's identifier and the inputs.
	orderOverhead = 8 + 32 + 16 + 8 + 1 + 1 + 2 + 4
)

// way is how a request to sign says the options of crypto.Signer.
type way struct {
	hash   byte
	scheme byte
}

// wayOf refuses with token.ErrUnsupported what a way cannot say, for another signature would be made than was asked for.
func wayOf(options crypto.SignerOpts) (way, error) {
	var w way
	switch o := options.(type) {
	case crypto.Hash:
	case *ed25519.Options:
		if o == nil || o.Context != "" {
			return w, fmt.Errorf("worker: ed25519 with a context string: %w", token.ErrUnsupported)
		}
	case *rsa.PSSOptions:
		if o == nil || o.SaltLength != rsa.PSSSaltLengthEqualsHash && o.SaltLength != rsa.PSSSaltLengthAuto &&
			(!o.Hash.Available() || o.SaltLength != o.Hash.Size()) {
			return w, fmt.Errorf("worker: RSA-PSS with a salt of another length than the hash's: %w", token.ErrUnsupported)
		}
		w.scheme = schemePSS
	default:
		return w, fmt.Errorf("worker: signing with options of type %T: %w", options, token.ErrUnsupported)
	}
	hash := options.HashFunc()
	if hash > math.MaxUint8 {
		return w, fmt.Errorf("worker: hash number %d: %w", uint(hash), token.ErrUnsupported)
	}
	w.hash = byte(hash)
	return w, nil
}

func (w way) options() (crypto.SignerOpts, bool) {
	switch w.scheme {
	case schemePlain:
		return crypto.Hash(w.hash), true
	case schemePSS:
		return &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.Hash(w.hash)}, true
	}
	return nil, false
}

func orderSize(order *Order) int {
	return orderOverhead - 4 + len(order.KeyID) + listSize(order.Inputs)
}

func appendOrder(b []byte, order *Order, w way) []byte {
	b = binary.BigEndian.AppendUint64(b, order.Capability.Number)
	b = append(b, order.Capability.Secret[:]...)
	b = append(b, order.Session[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(order.User))
	b = append(b, w.hash, w.scheme)
	b = binary.BigEndian.AppendUint16(b, uint16(len(order.KeyID)))
	b = append(b, order.KeyID...)
	return appendList(b, order.Inputs)
}

func listSize(list [][]byte) int {
	size := 4 + inputOverhead*len(list)
	for _, entry := range list {
		size += len(entry)
	}
	return size
}

func appendList(b []byte, list [][]byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(list)))
	for _, entry := range list {
		b = binary.BigEndian.AppendUint32(b, uint32(len(entry)))
		b = append(b, entry...)
	}
	return b
}

// parser takes a body apart. After a failure it gives zeros.
type parser struct {
	rest   []byte
	failed bool
}

func (p *parser) take(n int) []byte {
	if p.failed || n < 0 || n > len(p.rest) {
		p.failed = true
		return nil
	}
	taken := p.rest[:n:n]
	p.rest = p.rest[n:]
	return taken
}

func (p *parser) u8() byte {
	if b := p.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (p *parser) u16() uint16 {
	if b := p.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (p *parser) u32() uint32 {
	if b := p.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (p *parser) u64() uint64 {
	if b := p.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (p *parser) list() [][]byte {
	n := int(p.u32())
	if p.failed || n > len(p.rest)/inputOverhead {
		p.failed = true
		return nil
	}
	list := make([][]byte, n)
	for i := range list {
		list[i] = p.take(int(p.u32()))
	}
	return list
}

func (p *parser) end() error {
	if p.failed || len(p.rest) > 0 {
		return errFrame
	}
	return nil
}

// parseOrder keeps nothing of body, which is read over.
func parseOrder(body []byte) (Order, error) {
	p := &parser{rest: bytes.Clone(body)}
	var order Order
	order.Capability.Number = p.u64()
	copy(order.Capability.Secret[:], p.take(len(order.Capability.Secret)))
	copy(order.Session[:], p.take(len(order.Session)))
	order.User = int64(p.u64())
	w := way{hash: p.u8(), scheme: p.u8()}
	order.KeyID = p.take(int(p.u16()))
	order.Inputs = p.list()
	options, known := w.options()
	if !known {
		p.failed = true
	}
	order.Options = options
	return order, p.end()
}

// parseSignatures gives parts of body, which must hold n signatures.
func parseSignatures(body []byte, n int) ([][]byte, error) {
	if len(body) < 4 || int(binary.BigEndian.Uint32(body)) != n {
		return nil, errFrame
	}
	p := &parser{rest: body}
	signatures := p.list()
	return signatures, p.end()
}

// A capability: number u64 and secret.

const capabilitySize = 8 + 32

func appendCapability(b []byte, c Capability) []byte {
	return append(binary.BigEndian.AppendUint64(b, c.Number), c.Secret[:]...)
}

func parseCapability(body []byte) (c Capability, err error) {
	p := &parser{rest: body}
	c.Number = p.u64()
	copy(c.Secret[:], p.take(len(c.Secret)))
	return c, p.end()
}

// An unlock: length of JSON u32, JSON, and the passphrase.

func unlockSize(text, passphrase []byte) int { return 4 + len(text) + len(passphrase) }

func appendUnlock(b []byte, text, passphrase []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(text)))
	b = append(b, text...)
	return append(b, passphrase...)
}

// parseUnlock gives a passphrase that the caller clears.
func parseUnlock(body []byte) (Unlock, error) {
	p := &parser{rest: body}
	text := p.take(int(p.u32()))
	var u Unlock
	if p.failed {
		return u, errFrame
	}
	if err := json.Unmarshal(text, &u); err != nil {
		return u, fmt.Errorf("%w: %w", errFrame, err)
	}
	u.Passphrase = bytes.Clone(p.rest)
	return u, nil
}

// listedKey is a token.KeyInfo as JSON.
type listedKey struct {
	ID        []byte
	Label     string
	Algorithm token.Algorithm
	Public    []byte // DER
}

func listKeys(infos []token.KeyInfo) ([]listedKey, error) {
	listed := make([]listedKey, len(infos))
	for i, info := range infos {
		public, err := x509.MarshalPKIXPublicKey(info.Public)
		if err != nil {
			return nil, fmt.Errorf("worker: key %x: %w", info.ID, err)
		}
		listed[i] = listedKey{ID: info.ID, Label: info.Label, Algorithm: info.Algorithm, Public: public}
	}
	return listed, nil
}

func unlistKeys(listed []listedKey) ([]token.KeyInfo, error) {
	infos := make([]token.KeyInfo, len(listed))
	for i, key := range listed {
		public, err := x509.ParsePKIXPublicKey(key.Public)
		if err != nil {
			return nil, fmt.Errorf("worker: key %x: %w", key.ID, err)
		}
		infos[i] = token.KeyInfo{ID: key.ID, Label: key.Label, Algorithm: key.Algorithm, Public: public}
	}
	return infos, nil
}
