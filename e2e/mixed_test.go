package e2e

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"chancery/client"
	"chancery/e2e/lab"
	"chancery/tunnel/wire"
)

// TestMixedVersions lets our client, bridge and server work with those of plain version 2, in every
// combination that has one of each. Both orders of headers and acks that are found on the wire are tried.
func TestMixedVersions(t *testing.T) {
	l := newLab(t, lab.Soft)
	l.CreateKey("release", "p256")
	l.CreateKey("kernel", "rsa2048")
	l.CreateKey("modern", "ed25519")
	l.Write("document", "x")
	for name, start := range map[string]func(*testing.T, *scene) (stop func()){
		"our bridge": func(_ *testing.T, l *scene) func() {
			l.StartBridge(l.Clients, l.Servers)
			return func() { l.Bridge.Terminate() }
		},
		"bridge 2": func(t *testing.T, l *scene) func() { return startBridge2(t, l).stop },
	} {
		l.Bridge.Terminate()
		t.Run(name+", our server", func(t *testing.T) {
			defer start(t, l)()
			l.Serve()
			defer l.Server.Terminate()
			t.Run("client 2", func(t *testing.T) { l.client2Signs(t, enumFirst) })
			t.Run("client 2, "+documentedOrder, func(t *testing.T) { l.client2Signs(t, documentedOrder) })
			t.Run("our client", func(t *testing.T) { l.ourClientSigns(t, true) })
		})
		for _, order := range []string{enumFirst, documentedOrder} {
			t.Run(name+", server 2, "+order, func(t *testing.T) {
				defer start(t, l)()
				server := startServer2(t, l, order)
				defer server.stop()
				t.Run("our client", func(t *testing.T) { l.ourClientSigns(t, false) })
				if server.batches.Load() == 0 {
					t.Error("no batch was asked for")
				}
				if order == enumFirst {
					t.Run("our program", func(t *testing.T) { l.ourProgramSigns(t) })
				}
				t.Run("client 2", func(t *testing.T) { l.client2Signs(t, order) })
			})
		}
	}
}

// client2Signs signs as a client of version 2 does, with each key that it can decode.
func (s *scene) client2Signs(t *testing.T, order string) {
	c := dialVersion2(s, t, hello2(order, 0))
	keys := c.keys()
	if len(keys) != 2 || keys["release"] == nil || keys["kernel"] == nil {
		t.Fatalf("a client of version 2 must see release and kernel, and sees %v", keys)
	}
	if got := c.ask(`{"get_key":{"key":"modern"}}`); got != `{"error":{"reason":"internal"}}` {
		t.Errorf("a key that version 2 cannot decode: %s", got)
	}
	digest, longer := sha256.Sum256([]byte("x")), sha512.Sum512([]byte("x"))
	if got := c.ask(`{"unlock":{"key":"release","password":"no"}}`); got != `{"error":{"reason":"internal"}}` {
		t.Errorf("wrong passphrase: %s", got)
	}
	for name, public := range keys {
		if got := c.ask(fmt.Sprintf(`{"unlock":{"key":%q,"password":%q}}`, name, lab.AlicePassphrase)); got != `{"unlock":{}}` {
			t.Errorf("unlock: %s", got)
		}
		one := c.ask(fmt.Sprintf(`{"sign":{"key":%q,"digest_algorithm":"Sha256","digest":"%X"}}`, name, digest))
		two := c.ask(fmt.Sprintf(`{"sign_all":{"key":%q,"digests":[["Sha512","%x"],["Sha256","%x"]]}}`, name, longer, digest))
		var got struct {
			Sign  struct{ Signature signature2 }    `json:"sign"`
			Batch struct{ Signatures []signature2 } `json:"sign_prehashed"`
		}
		if err := errors.Join(json.Unmarshal([]byte(one), &got), json.Unmarshal([]byte(two), &got)); err != nil || len(got.Batch.Signatures) != 2 {
			t.Fatalf("%v in %s, %s", err, one, two)
		}
		got.Sign.Signature.verify(t, public, crypto.SHA256, digest[:])
		got.Batch.Signatures[0].verify(t, public, crypto.SHA512, longer[:])
		got.Batch.Signatures[1].verify(t, public, crypto.SHA256, digest[:])
	}
	c.leave()
}

// keys lists the keys as strictly as that protocol's own client: an unknown algorithm would kill its connection.
func (c *version2) keys() map[string]crypto.PublicKey {
	c.t.Helper()
	var listed struct {
		ListKeys struct {
			Keys []struct {
				Name, Handle string
				Algorithm    string `json:"key_algorithm"`
				Public       string `json:"public_key"`
			}
		} `json:"list_keys"`
	}
	text := c.ask(`{"list_keys":{}}`)
	if err := json.Unmarshal([]byte(text), &listed); err != nil {
		c.t.Fatalf("%v in %s", err, text)
	}
	keys := make(map[string]crypto.PublicKey)
	for _, key := range listed.ListKeys.Keys {
		if !slices.Contains([]string{"Rsa2K", "Rsa4K", "P256"}, key.Algorithm) {
			c.t.Errorf("version 2 cannot decode %q", key.Algorithm)
		}
		block, _ := pem.Decode([]byte(key.Public))
		if block == nil || fmt.Sprintf("%X", sha256.Sum256(block.Bytes)) != key.Handle {
			c.t.Fatalf("key %q: public half and handle differ in %s", key.Name, text)
		}
		public, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			c.t.Fatal(err)
		}
		keys[key.Name] = public
	}
	return keys
}

// signature2 is a signature as version 2 answers it.
type signature2 struct {
	Signature map[string]string
	Digest    string
	Hash      string
}

func (s signature2) verify(t *testing.T, key crypto.PublicKey, hash crypto.Hash, digest []byte) {
	t.Helper()
	if want := map[crypto.Hash]string{crypto.SHA256: "Sha256", crypto.SHA512: "Sha512"}[hash]; s.Digest != want || !strings.EqualFold(s.Hash, fmt.Sprintf("%x", digest)) {
		t.Errorf("the request's digest is not repeated: %+v", s)
	}
	for tag, text := range s.Signature {
		signature, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			t.Error(err)
		}
		switch public := key.(type) {
		case *ecdsa.PublicKey:
			if tag != "P256" || !ecdsa.VerifyASN1(public, digest, signature) {
				t.Errorf("%s does not verify", tag)
			}
		case *rsa.PublicKey:
			if err := rsa.VerifyPKCS1v15(public, hash, digest, signature); err != nil || tag != "RSA" {
				t.Errorf("%s does not verify: %v", tag, err)
			}
		}
	}
	if len(s.Signature) != 1 {
		t.Errorf("one signature is expected in %+v", s)
	}
}

// ourClientSigns uses the library. It verifies each signature that it returns.
func (s *scene) ourClientSigns(t *testing.T, extended bool) {
	c, key := s.unlocked(t, "release")
	if c.Extended() != extended {
		t.Errorf("the server speaks chancery/1: %t", c.Extended())
	}
	if user, err := c.WhoAmI(t.Context()); err != nil || user != "alice" {
		t.Errorf("who_am_i: %q, %v", user, err)
	}
	keys, err := c.Keys(t.Context())
	if want := map[bool]int{true: 3, false: 2}[extended]; err != nil || len(keys) != want {
		t.Errorf("%d keys, %v", len(keys), err)
	}
	signEach(t, key, "mixed", 40) // more than a client has in flight, so that they queue, too
	if err := c.Unlock(t.Context(), "kernel", []byte(lab.AlicePassphrase)); err != nil {
		t.Fatal(err)
	}
	var digests []client.Digest
	for i := range 50 {
		sum := documentDigest("batch", i)
		digests = append(digests, client.Digest{Hash: crypto.SHA256, Sum: sum[:]})
	}
	if signatures, err := c.SignAll(t.Context(), "kernel", digests); err != nil || len(signatures) != len(digests) {
		t.Errorf("a batch: %d signatures, %v", len(signatures), err)
	}
	if extended {
		return
	}
	// What the server cannot decode is refused here, and it never sees it.
	sum := sha512.Sum384([]byte("x"))
	for _, d := range []client.Digest{{Hash: crypto.SHA384, Sum: sum[:]}, {Hash: crypto.SHA256, Sum: sum[:32], PSS: true}} {
		_, err := c.SignAll(t.Context(), "kernel", []client.Digest{d})
		var told *client.Error
		if !errors.As(err, &told) || told.Code != wire.CodeUnsupported {
			t.Errorf("%+v: %v", d, err)
		}
	}
	_, err = c.GetKey(t.Context(), "nonesuch")
	checkSentence(t, err, wire.CodeInternal)
	checkSentence(t, c.Unlock(t.Context(), "release", []byte("wrong")), wire.CodeInternal)
	signEach(t, key, "after errors", 2)
}

// checkSentence wants words for a user: version 2 tells no reason, but the user is told whom to ask.
func checkSentence(t *testing.T, err error, code wire.Code) {
	t.Helper()
	var told *client.Error
	if !errors.As(err, &told) || told.Code != code {
		t.Errorf("want %s, got %v", code, err)
		return
	}
	if len(strings.Fields(told.Message)) < 4 || goish.MatchString(told.Message+told.Hint) || strings.Contains(told.Message, "EOF") {
		t.Errorf("this is no sentence for a user: %q, %q", told.Message, told.Hint)
	}
}

// ourProgramSigns uses the command line with a server of version 2.
func (s *scene) ourProgramSigns(t *testing.T) {
	if out := s.Alice("whoami"); !strings.Contains(out, "alice") {
		t.Errorf("whoami: %s", out)
	}
	if out := s.Alice("keys"); !strings.Contains(out, "release") || !strings.Contains(out, "kernel") || strings.Contains(out, "modern") {
		t.Errorf("keys:\n%s", out)
	}
	for _, key := range []string{"release", "kernel"} {
		s.Alice("key", "export", key, "--force", "-o", "key.pem")
		s.Alice("sign", "raw", key, "document", "--force", "--quiet", "-o", "document.sig")
		s.Alice("verify", "raw", "document", "document.sig", "--key-file", "key.pem")
	}
	sign := []string{"sign", "raw", "kernel", "document", "--force", "-o", "refused.sig"}
	expectation{-1, "unsupported", "this server signs with"}.checkFailure(t, s.TryAs("alice", append(sign, "--scheme", "pss")...))
	expectation{-1, "unsupported", "this server signs with"}.checkFailure(t, s.TryAs("alice", append(sign, "--hash", "sha384")...))
	s.Write("wrong.passphrase", "not hers")
	s.Write("mixed.toml", strings.ReplaceAll(s.Read("alice.toml"), "alice.passphrase", "wrong.passphrase"))
	expectation{-1, "internal", "ask its operator"}.checkFailure(t, s.TryAs("mixed", sign...))
}

// checkFailure is check where any exit but 0 will do.
func (e expectation) checkFailure(t *testing.T, r lab.Result) {
	t.Helper()
	if r.Exit == 0 {
		t.Error("a success is told")
	}
	e.exit = r.Exit
	e.check(t, r)
}

// TestAServer2ThatBreaksOffIsNotAskedAgain: without idempotency keys a repetition could sign twice, so the
// caller is told that the request was interrupted, and decides. Our bridge passes each kind of end on at once.
func TestAServer2ThatBreaksOffIsNotAskedAgain(t *testing.T) {
	l := newLab(t, lab.Soft)
	l.Write("document", "x")
	l.knowsPassphrase("release")
	server := startServer2(t, l, enumFirst)
	half := func(frame []byte) []byte {
		return append(binary.BigEndian.AppendUint64(nil, uint64(len(frame))), frame[:len(frame)/2]...)
	}
	nothing := func([]byte) []byte { return nil }
	_, key := l.unlocked(t, "release")
	for name, end := range map[string]ending{
		"in order, without a reply":      {nothing, true},
		"in order, in mid-reply":         {half, true},
		"abruptly, without a reply":      {nothing, false},
		"abruptly, in mid-reply":         {half, false},
		"with a reply cut in its length": {func([]byte) []byte { return []byte{0, 0, 0} }, true},
		"with a reply that is no JSON":   {func(f []byte) []byte { return append(binary.BigEndian.AppendUint64(nil, 3), "{]}"...) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			digest := sha256.Sum256([]byte(name))
			asked := server.signs.Load()
			server.breakOff(1, end)
			ctx, cancel := context.WithTimeout(t.Context(), lab.Patience)
			defer cancel()
			_, err := key.SignContext(ctx, digest[:], crypto.SHA256)
			if !errors.Is(err, client.ErrInterrupted) {
				t.Errorf("the caller is told %v", err)
			}
			checkSentence(t, err, client.CodeInterrupted)
			if n := server.signs.Load() - asked; n != 1 {
				t.Errorf("the server was asked %d times", n)
			}
			if _, err := key.SignContext(ctx, digest[:], crypto.SHA256); err != nil {
				t.Errorf("asking again: %v", err)
			}
			// The program signs again, a few times, and says so.
			sign := []string{"sign", "raw", "release", "document", "--force", "-o", "broken.sig"}
			server.breakOff(1, end)
			asked = server.signs.Load()
			r := l.TryAs("alice", sign...)
			if n := server.signs.Load() - asked; r.Exit != 0 || n != 2 || !strings.Contains(r.Stderr, "may have been made; signing 1 again (1 of 3)") {
				t.Errorf("the program asked the server %d times, exit %d:\n%s", n, r.Exit, r.Stderr)
			}
			os.Remove(l.Path("broken.sig"))
			server.breakOff(100, end)
			asked = server.signs.Load()
			expectation{4, "interrupted", "may have been made"}.check(t, l.TryAs("alice", sign...))
			if n := server.signs.Load() - asked; n != 4 {
				t.Errorf("the program asked the server %d times", n)
			}
			server.breakOff(0, end)
			if _, err := os.Stat(l.Path("broken.sig")); err == nil {
				t.Error("an interrupted signature left a file")
			}
		})
	}
}

// knowsPassphrase tells alice's client which file opens a key that is not the lab's.
func (s *scene) knowsPassphrase(key string) {
	s.Write("alice.toml", fmt.Sprintf("%s[keys.%q]\npassphrase_file = %q\n", s.Read("alice.toml"), key, s.Path("alice.passphrase")))
}
