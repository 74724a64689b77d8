package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"chancery/e2e/lab"
)

// version2 is a client of protocol version 2 written from its description alone: nothing of ours but the certificates.
type version2 struct {
	t     *testing.T
	inner *tls.Conn
	next  uint64
}

// dialVersion2 connects as that protocol's own client does: outer TLS, hello, ack, inner TLS without ALPN.
func dialVersion2(l *scene, t *testing.T, hello []byte) *version2 {
	t.Helper()
	certificate, err := tls.LoadX509KeyPair(l.Path("pki/alice.crt"), l.Path("pki/alice.key"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(l.Read("pki/ca.crt")))
	settings := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, Certificates: []tls.Certificate{certificate}, ServerName: "localhost"}
	ctx, cancel := context.WithTimeout(t.Context(), lab.Patience)
	defer cancel()
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", l.Clients)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close() })
	raw.SetDeadline(time.Now().Add(lab.Patience))
	outer := tls.Client(raw, settings)
	if _, err := outer.Write(hello); err != nil {
		t.Fatal(err)
	}
	ack := make([]byte, 17)
	if _, err := io.ReadFull(outer, ack); err != nil {
		t.Fatal(err)
	}
	if status := ack[0]; status != 0 && hello[0] == 0 || hello[0] == 'S' && ack[16] != 0 {
		t.Fatalf("ack % x", ack)
	}
	settings = settings.Clone()
	settings.ServerName = "server.lab"
	inner := tls.Client(outer, settings)
	if err := inner.Handshake(); err != nil {
		t.Fatal(err)
	}
	return &version2{t: t, inner: inner}
}

// send writes one frame, length and JSON in two writes as that protocol's server does.
func (c *version2) send(request string) {
	c.t.Helper()
	message := fmt.Sprintf(`{"session_id":"019f1c6e-7a40-7c31-9f02-3d5e8a1b6c70","request_id":%d,"request":%s}`, c.next, request)
	c.next++
	if err := binary.Write(c.inner, binary.BigEndian, uint64(len(message))); err != nil {
		c.t.Fatal(err)
	}
	if _, err := io.WriteString(c.inner, message); err != nil {
		c.t.Fatal(err)
	}
}

// receive reads one frame and returns the text of its response field.
func (c *version2) receive() string {
	c.t.Helper()
	var length uint64
	if err := binary.Read(c.inner, binary.BigEndian, &length); err != nil {
		c.t.Fatal(err)
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(c.inner, body); err != nil {
		c.t.Fatal(err)
	}
	var envelope struct {
		Response json.RawMessage `json:"response"`
	}
	if err := json.Unmarshal(body, &envelope); err != nil {
		c.t.Fatalf("%v in %s", err, body)
	}
	return string(envelope.Response)
}

func (c *version2) ask(request string) string {
	c.t.Helper()
	c.send(request)
	return c.receive()
}

func TestPlainVersion2ClientSigns(t *testing.T) {
	l := newLab(t, drivers()[0])
	l.CreateKey("release", "p256")
	l.CreateKey("modern", "ed25519")
	l.Serve()
	l.Write("document", "x")
	l.Alice("key", "export", "release", "-o", "key.pem")

	for name, hello := range map[string][]byte{
		"enum first":       append([]byte{0}, "SIGULDRY\x00\x00\x00\x02"...),
		"documented order": append([]byte("SIGULDRY\x00\x00\x00\x02"), 0),
	} {
		t.Run(name, func(t *testing.T) {
			c := dialVersion2(l, t, hello)
			if got := c.ask(`{"who_am_i":{}}`); got != `{"who_am_i":{"user":"alice"}}` {
				t.Errorf("who_am_i: %s", got)
			}
			var listed struct {
				ListKeys struct {
					Keys []struct{ Name string }
				} `json:"list_keys"`
			}
			if err := json.Unmarshal([]byte(c.ask(`{"list_keys":{}}`)), &listed); err != nil || len(listed.ListKeys.Keys) != 1 || listed.ListKeys.Keys[0].Name != "release" {
				t.Errorf("list_keys must leave out what version 2 cannot decode: %+v, %v", listed, err)
			}
			digest := sha256.Sum256([]byte("x"))
			sign := fmt.Sprintf(`{"sign":{"key":"release","digest_algorithm":"Sha256","digest":"%x"}}`, digest)
			const internal = `{"error":{"reason":"internal"}}`
			if got := c.ask(sign); got != internal {
				t.Errorf("sign before unlock: %s", got)
			}
			if got := c.ask(`{"unlock":{"key":"release","password":"no"}}`); got != internal {
				t.Errorf("wrong passphrase: %s", got)
			}
			if got := c.ask(`{"sign":{"key":"release","digest_algorithm":"sha256","digest":"00"}}`); got != `"unsupported"` {
				t.Errorf("wrong case: %s", got)
			}
			// Pipelined: the signatures must see the unlock, and answers keep the order.
			c.send(`{"unlock":{"key":"release","password":"` + lab.AlicePassphrase + `"}}`)
			c.send(sign)
			c.send(fmt.Sprintf(`{"sign_all":{"key":"release","digests":[["Sha256","%x"],["Sha512","%0128x"]]}}`, digest, 7))
			c.send(`{"who_am_i":{}}`)
			if got := c.receive(); got != `{"unlock":{}}` {
				t.Fatalf("unlock: %s", got)
			}
			checkVersion2Signature(t, l, digest[:], c.receive())
			if got := c.receive(); !bytes.HasPrefix([]byte(got), []byte(`{"sign_prehashed":{"signatures":[{"signature":{"P256":"`)) {
				t.Errorf("sign_all: %s", got)
			}
			if got := c.receive(); got != `{"who_am_i":{"user":"alice"}}` {
				t.Errorf("order: %s", got)
			}
			c.leave()
		})
	}
	logged := l.recorded()
	if digest := sha256.Sum256([]byte("x")); logged[fmt.Sprintf("release:%x", digest)] != 2 || logged[fmt.Sprintf("release:Sha256:%x", digest)] != 2 || logged[fmt.Sprintf("release:Sha512:%0128x", 7)] != 2 {
		t.Errorf("recorded %v", logged)
	}
	failed := make(map[string]int)
	for _, r := range append(l.records("--kind", "refused"), l.records("--kind", "unlock_failed")...) {
		failed[r.Outcome]++
	}
	if failed["not_unlocked"] != 2 || failed["wrong_passphrase"] != 2 || failed["unsupported"] != 2 {
		t.Errorf("recorded as refused: %v", failed)
	}
}

// leave ends the connection in order: the empty frame, then both layers.
func (c *version2) leave() {
	c.t.Helper()
	if err := binary.Write(c.inner, binary.BigEndian, uint64(0)); err != nil {
		c.t.Fatal(err)
	}
	if err := c.inner.CloseWrite(); err != nil {
		c.t.Fatal(err)
	}
	if rest, err := io.ReadAll(c.inner); err != nil || len(rest) > 0 {
		c.t.Errorf("after the empty frame came % x, %v", rest, err)
	}
}

func checkVersion2Signature(t *testing.T, l *scene, digest []byte, response string) {
	t.Helper()
	var answer struct {
		Sign struct {
			Signature struct {
				Signature struct{ P256 string }
				Digest    string
				Hash      string
			}
		}
	}
	if err := json.Unmarshal([]byte(response), &answer); err != nil {
		t.Fatalf("%v in %s", err, response)
	}
	signature, err := base64.StdEncoding.DecodeString(answer.Sign.Signature.Signature.P256)
	if err != nil {
		t.Fatalf("%v in %s", err, response)
	}
	text, err := os.ReadFile(l.Path("key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if !ecdsa.VerifyASN1(public.(*ecdsa.PublicKey), digest, signature) {
		t.Errorf("the signature does not verify: %s", response)
	}
	if answer.Sign.Signature.Hash != hex.EncodeToString(digest) || answer.Sign.Signature.Digest != "Sha256" {
		t.Errorf("the request's digest is not repeated: %s", response)
	}
}
