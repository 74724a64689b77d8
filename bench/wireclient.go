package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"time"

	"github.com/google/uuid"

	"chancery/client"
	"chancery/tunnel"
	"chancery/tunnel/wire"
)

// wireClient is a client that does as little as a client can: it writes as many
// requests as replies came, in one write, and looks into one reply a measurement.
// What it leaves of the machine's two cores is the chain's.
type wireClient struct {
	conn     *tunnel.Conn
	frames   *wire.Reader
	next     uint64
	unlocked map[string]crypto.PublicKey
	out      []byte
	payload  []byte
}

func dialWire(ctx context.Context, cfg *tunnel.Config) (*wireClient, error) {
	conn, err := tunnel.Dial(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return newWireClient(conn), nil
}

func newWireClient(conn *tunnel.Conn) *wireClient {
	return &wireClient{conn: conn, frames: wire.NewReader(conn, wire.MaxResponse), unlocked: make(map[string]crypto.PublicKey)}
}

// queue adds a request to the next write.
func (w *wireClient) queue(body wire.RequestBody) {
	w.next++
	request := wire.Request{Session: uuid.UUID(w.conn.Session()), ID: w.next, Body: body}
	w.payload = wire.AppendRequest(w.payload[:0], &request)
	w.out = wire.AppendFrame(w.out, w.payload)
}

func (w *wireClient) flush() error {
	if len(w.out) == 0 {
		return nil
	}
	_, err := w.conn.Write(w.out)
	w.out = w.out[:0]
	return err
}

// ask makes one request and waits for its reply.
func (w *wireClient) ask(body wire.RequestBody) (wire.ResponseBody, error) {
	w.queue(body)
	if err := w.flush(); err != nil {
		return nil, err
	}
	frame, err := w.frames.Next()
	if err != nil {
		return nil, err
	}
	response, err := wire.DecodeResponse(frame)
	if err != nil {
		return nil, err
	}
	if failed, ok := response.Body.(*wire.Error); ok {
		return nil, failed
	}
	return response.Body, nil
}

// unlock opens a key and learns its public half, once.
func (w *wireClient) unlock(key, passphrase string) error {
	if _, done := w.unlocked[key]; done {
		return nil
	}
	if _, err := w.ask(&wire.Unlock{Key: key, Password: wire.NewSecret([]byte(passphrase))}); err != nil {
		return err
	}
	reply, err := w.ask(&wire.GetKey{Key: key})
	if err != nil {
		return err
	}
	block, _ := pem.Decode([]byte(reply.(*wire.GetKeyReply).Key.PublicKey))
	if block == nil {
		return fmt.Errorf("the public half of %q is not PEM", key)
	}
	w.unlocked[key], err = x509.ParsePKIXPublicKey(block.Bytes)
	return err
}

// sign keeps Parallel requests in flight as long as the load goes on, then takes in the rest. It returns the number of
// signatures, and of those in the steady part. The first reply is decoded and, if verify is set, its signature verified; all
// others must only be replies of the right kind.
func (w *wireClient) sign(o order, load span, verify bool) (count, steady int, err error) {
	body, each := signatureRequest(o)
	send, inFlight := max(o.Parallel, 1), 0
	for send+inFlight > 0 {
		for range send {
			w.queue(body)
		}
		inFlight, send = inFlight+send, 0
		if err := w.flush(); err != nil {
			return count, steady, err
		}
		for first := true; first || inFlight > 0 && w.frames.Ready(); first = false {
			frame, err := w.frames.Next()
			if err != nil {
				return count, steady, err
			}
			if err := w.check(frame, o.Key, verify && count == 0); err != nil {
				return count, steady, err
			}
			inFlight--
			count += each
			now := time.Now()
			if load.goesOn(now) {
				send++
			}
			if load.isSteady(now) {
				steady += each
			}
		}
	}
	return count, steady, nil
}

// signatureRequest returns what is sent, and how many signatures it asks for.
func signatureRequest(o order) (wire.RequestBody, int) {
	one := wire.NewDigest("Sha256", document(0))
	switch {
	case o.Batch == 0 && o.Key == "ed25519":
		return &wire.Sign{Key: o.Key, Message: document(0)}, 1
	case o.Batch == 0:
		return &wire.Sign{Key: o.Key, Digest: one}, 1
	case o.Key == "ed25519":
		messages := make([][]byte, o.Batch)
		for i := range messages {
			messages[i] = document(i)
		}
		return &wire.SignAll{Key: o.Key, Messages: messages}, o.Batch
	}
	digests := make([]wire.Digest, o.Batch)
	for i := range digests {
		digests[i] = wire.NewDigest("Sha256", document(i))
	}
	return &wire.SignAll{Key: o.Key, Digests: digests}, o.Batch
}

// check looks whether a reply is one to a signature request, and where asked to,
// whether its first signature is valid.
func (w *wireClient) check(frame []byte, key string, verify bool) error {
	if !verify && bytes.Contains(frame, []byte(`"signature"`)) {
		return nil
	}
	response, err := wire.DecodeResponse(frame)
	if err != nil {
		return err
	}
	var signature []byte
	switch reply := response.Body.(type) {
	case *wire.SignReply:
		signature = reply.Signature.Bytes
	case *wire.SignAllReply:
		signature = reply.Signatures[0].Bytes
	case *wire.Error:
		return reply
	default:
		return fmt.Errorf("the reply %T holds no signature", reply)
	}
	digest := client.Digest{Hash: documentHash, Sum: document(0)}
	if key == "ed25519" {
		digest.Hash = 0
	}
	return digest.Verify(w.unlocked[key], signature)
}
