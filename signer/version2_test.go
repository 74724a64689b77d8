package signer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"chancery/token"
)

// plainClient speaks version 2 by its description alone, without package wire.
type plainClient struct {
	t    testing.TB
	conn net.Conn
	sid  string
}

func (w *world) plain(name string) plainClient {
	w.t.Helper()
	w.awaitToken(StateReady)
	c := w.connect(name, false)
	return plainClient{w.t, c.conn, c.session.String()}
}

func (c plainClient) frame(id int, request string) []byte {
	text := fmt.Sprintf(`{"session_id":"%s","request_id":%d,"request":%s}`, c.sid, id, request)
	return append(binary.BigEndian.AppendUint64(nil, uint64(len(text))), text...)
}

func (c plainClient) read() string {
	c.t.Helper()
	var header [8]byte
	if _, err := io.ReadFull(c.conn, header[:]); err != nil {
		c.t.Fatal(err)
	}
	text := make([]byte, binary.BigEndian.Uint64(header[:]))
	if _, err := io.ReadFull(c.conn, text); err != nil {
		c.t.Fatal(err)
	}
	return string(text)
}

func (c plainClient) write(b []byte) {
	c.t.Helper()
	if _, err := c.conn.Write(b); err != nil {
		c.t.Fatal(err)
	}
}

// exchange asserts the answer's very bytes.
func (c plainClient) exchange(id int, request, answer string) {
	c.t.Helper()
	c.write(c.frame(id, request))
	want := fmt.Sprintf(`{"session_id":"%s","request_id":%d,"response":%s}`, c.sid, id, answer)
	if got := c.read(); got != want {
		c.t.Fatalf("%s\nanswered %s\nwant     %s", request, got, want)
	}
}

const plainError = `{"error":{"reason":"internal"}}`

func (w *world) plainKey(a token.Algorithm, wireName string) string {
	w.t.Helper()
	for _, key := range w.store.keys {
		if key.Algorithm == a {
			text := strings.ReplaceAll(string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: key.Public})), "\n", `\n`)
			return fmt.Sprintf(`{"name":"%s","key_algorithm":"%s","handle":"%s","public_key":"%s","certificates":[{"certificate":"PEM\n","certificate_type":"X509","fingerprint":"AB","name":"%s-x509"}]}`,
				a, wireName, key.Handle, text, a)
		}
	}
	w.t.Fatal(a)
	return ""
}

func TestPlainVersion2Client(t *testing.T) {
	w := newWorld(t)
	c := w.plain("alice")
	sum := fmt.Sprintf("%X", sha256.Sum256([]byte("text")))
	c.exchange(0, `{"who_am_i":{}}`, `{"who_am_i":{"user":"alice"}}`)
	c.exchange(1, `{"list_keys":{}}`, `{"list_keys":{"keys":[`+w.plainKey(token.RSA2048, "Rsa2K")+`,`+w.plainKey(token.RSA4096, "Rsa4K")+`,`+w.plainKey(token.P256, "P256")+`]}}`)
	c.exchange(2, `{"get_key":{"key":"p256"}}`, `{"get_key":{"key":`+w.plainKey(token.P256, "P256")+`}}`)
	for _, refused := range []string{
		`{"get_key":{"key":"p384"}}`, `{"get_key":{"key":"nonsense"}}`,
		`{"unlock":{"key":"ed25519","password":"` + passphrase + `"}}`,
		`{"unlock":{"key":"p256","password":"wrong-passphrase"}}`,
		`{"sign":{"key":"p256","digest_algorithm":"Sha256","digest":"` + sum + `"}}`,
	} {
		c.exchange(3, refused, plainError)
	}
	c.exchange(4, `{"unlock":{"key":"rsa2048","password":"`+passphrase+`"}}`, `{"unlock":{}}`)
	c.exchange(5, `{"unlock":{"key":"rsa2048","password":"`+passphrase+`"}}`, `{"unlock":{}}`)
	c.exchange(6, `{"sign":{"key":"rsa2048","digest_algorithm":"Sha256","digest":"`+sum[2:]+`"}}`, plainError)
	c.exchange(7, `{"sign_all":{"key":"rsa2048","digests":[]}}`, `{"sign_prehashed":{"signatures":[]}}`)
	c.exchange(8, `{"sign":{"key":"rsa2048","digest_algorithm":"sha256","digest":"`+sum+`"}}`, `"unsupported"`)
	c.exchange(9, `{"sign":{"key":"rsa2048","message":"AA=="}}`, `"unsupported"`)
	c.exchange(10, `null`, `"unsupported"`)
	c.signs(w, sum)
	c.write(make([]byte, 8))
	if rest, err := io.ReadAll(c.conn); len(rest) > 0 || err != nil {
		t.Errorf("after the empty frame: %q, %v", rest, err)
	}
}

// signs checks that a scheme, which version 2 does not know, is ignored, and the signatures.
func (c plainClient) signs(w *world, sum string) {
	c.t.Helper()
	c.write(c.frame(11, `{"sign":{"key":"rsa2048","digest_algorithm":"Sha256","digest":"`+sum+`","scheme":"pss"}}`))
	c.verify(w, token.RSA2048, c.read(), sum)
	c.exchange(12, `{"unlock":{"key":"p256","password":"`+passphrase+`"}}`, `{"unlock":{}}`)
	c.write(c.frame(13, `{"sign":{"key":"p256","digest_algorithm":"Sha256","digest":"`+sum+`"}}`))
	c.verify(w, token.P256, c.read(), sum)
}

func (c plainClient) verify(w *world, a token.Algorithm, answer, sum string) {
	c.t.Helper()
	var decoded struct {
		Response struct {
			Sign struct {
				Signature struct {
					Signature    map[string]string
					Digest, Hash string
				}
			}
		}
	}
	if err := json.Unmarshal([]byte(answer), &decoded); err != nil {
		c.t.Fatal(err)
	}
	g := decoded.Response.Sign.Signature
	digest := sha256.Sum256([]byte("text"))
	valid := false
	switch public := w.keys[a].Public().(type) {
	case *rsa.PublicKey:
		signature, _ := base64.StdEncoding.DecodeString(g.Signature["RSA"])
		valid = rsa.VerifyPKCS1v15(public, crypto.SHA256, digest[:], signature) == nil
	case *ecdsa.PublicKey:
		signature, _ := base64.StdEncoding.DecodeString(g.Signature["P256"])
		valid = ecdsa.VerifyASN1(public, digest[:], signature)
	}
	if !valid || g.Digest != "Sha256" || g.Hash != sum {
		c.t.Errorf("%s: bad signature in %s", a, answer)
	}
}

func TestVersion2RepliesKeepTheOrderOfRequests(t *testing.T) {
	w := newWorld(t)
	c := w.plain("alice")
	sum := fmt.Sprintf("%x", sha256.Sum256([]byte("text")))
	release := make(chan struct{})
	w.keys[token.P256].before(waitFor(release))
	sign := `{"sign":{"key":"p256","digest_algorithm":"Sha256","digest":"` + sum + `"}}`
	// The unlock is a barrier: the signature pipelined behind it finds the key open.
	stream := append(c.frame(0, `{"unlock":{"key":"p256","password":"`+passphrase+`"}}`), c.frame(1, sign)...)
	stream = append(stream, c.frame(2, `{"who_am_i":{}}`)...)
	stream = append(stream, c.frame(3, sign)...)
	stream = append(stream, make([]byte, 8)...)
	c.write(stream)
	w.eventually("both signatures to be under way at once", func() bool { return w.keys[token.P256].busy.Load() == 2 })
	close(release)
	for id, want := range []string{`"unlock":{}`, `"sign":{"signature"`, `"user":"alice"`, `"sign":{"signature"`} {
		if got := c.read(); !strings.Contains(got, fmt.Sprintf(`"request_id":%d,`, id)) || !strings.Contains(got, want) {
			t.Errorf("reply %d is %s", id, got)
		}
	}
	if rest, err := io.ReadAll(c.conn); len(rest) > 0 || err != nil {
		t.Errorf("after the last reply: %q, %v", rest, err)
	}
}
