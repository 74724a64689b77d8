package signer

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	_ "crypto/sha3"
	_ "crypto/sha512"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"chancery/token"
	"chancery/tunnel/wire"
)

var allHashes = []wire.DigestAlgorithm{wire.SHA256, wire.SHA384, wire.SHA512, wire.SHA3_256, wire.SHA3_512}

// verified checks a signature as any outsider would.
func verified(public crypto.PublicKey, scheme wire.Scheme, d wire.Digest, message, signature []byte) error {
	if key, ok := public.(ed25519.PublicKey); ok {
		if !ed25519.Verify(key, message, signature) {
			return errors.New("bad Ed25519 signature")
		}
		return nil
	}
	sum, err := d.Bytes()
	if err != nil {
		return err
	}
	switch key := public.(type) {
	case *rsa.PublicKey:
		if scheme == wire.SchemePSS {
			return rsa.VerifyPSS(key, d.Algorithm.Hash(), sum, signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
		}
		return rsa.VerifyPKCS1v15(key, d.Algorithm.Hash(), sum, signature)
	case *ecdsa.PublicKey:
		if !ecdsa.VerifyASN1(key, sum, signature) {
			return errors.New("bad ECDSA signature")
		}
		return nil
	}
	return fmt.Errorf("key of type %T", public)
}

func TestEveryAlgorithmSigns(t *testing.T) {
	w := newWorld(t)
	for _, a := range token.Algorithms() {
		t.Run(string(a), func(t *testing.T) {
			c := w.unlockedClient(string(a))
			if a == token.Ed25519 {
				got := want[*wire.SignReply](c, c.call(&wire.Sign{Key: string(a), Message: []byte("text")})).Signature
				if err := verified(w.keys[a].Public(), "", wire.Digest{}, []byte("text"), got.Bytes); err != nil || got.Tag != wire.TagEd25519 || got.Digest != "" {
					t.Errorf("signature %+v: %v", got, err)
				}
				return
			}
			for _, hash := range allHashes {
				d := digestOf(hash, "text")
				got := want[*wire.SignReply](c, c.call(&wire.Sign{Key: string(a), Digest: d})).Signature
				if err := verified(w.keys[a].Public(), "", d, nil, got.Bytes); err != nil || got.Tag != algorithms[a].Tag() || got.Digest != hash || got.Hash != d.Hex {
					t.Errorf("%s: signature %+v: %v", hash, got, err)
				}
			}
		})
	}
}

func TestPSS(t *testing.T) {
	w := newWorld(t)
	c := w.unlockedClient("rsa2048", "p256", "ed25519")
	for _, hash := range []wire.DigestAlgorithm{wire.SHA256, wire.SHA384, wire.SHA512} {
		d := digestOf(hash, "text")
		got := want[*wire.SignReply](c, c.call(&wire.Sign{Key: "rsa2048", Scheme: wire.SchemePSS, Digest: d})).Signature
		if err := verified(w.keys[token.RSA2048].Public(), wire.SchemePSS, d, nil, got.Bytes); err != nil {
			t.Errorf("%s: %v", hash, err)
		}
	}
	c.refused(&wire.Sign{Key: "rsa2048", Scheme: wire.SchemePSS, Digest: digestOf(wire.SHA3_256, "text")}, wire.CodeAlgorithmMismatch)
	c.refused(&wire.Sign{Key: "p256", Scheme: wire.SchemePSS, Digest: digestOf(wire.SHA256, "text")}, wire.CodeAlgorithmMismatch)
	c.refused(&wire.Sign{Key: "ed25519", Scheme: wire.SchemePSS, Message: []byte("text")}, wire.CodeAlgorithmMismatch)
}

func TestWhatDoesNotFitTheKeyIsRefused(t *testing.T) {
	w := newWorld(t)
	c := w.unlockedClient("p256", "ed25519")
	c.refused(signRequest("ed25519"), wire.CodeAlgorithmMismatch)
	c.refused(&wire.Sign{Key: "p256", Message: []byte("text")}, wire.CodeAlgorithmMismatch)
	c.refused(&wire.SignAll{Key: "p256", Messages: [][]byte{{}}}, wire.CodeAlgorithmMismatch)
	c.refused(&wire.Sign{Key: "p256", Digest: wire.Digest{Algorithm: wire.SHA512, Hex: digestOf(wire.SHA256, "").Hex}}, wire.CodeDigestInvalid)
	c.refused(&wire.Sign{Key: "p256", Digest: wire.Digest{Algorithm: wire.SHA256, Hex: "zz"}}, wire.CodeDigestInvalid)
	want[*wire.SignReply](c, c.call(&wire.Sign{Key: "ed25519", Message: []byte{}}))
}

// TestABadDigestIsToldAsSuch: whatever is wrong with a digest, the answer on the wire is the same code, of a batch too.
func TestABadDigestIsToldAsSuch(t *testing.T) {
	w := newWorld(t)
	c := w.unlockedClient("p256", "rsa2048")
	good := digestOf(wire.SHA256, "text")
	for name, text := range map[string]string{
		"not hexadecimal": strings.Repeat("zz", 32), "half a byte": good.Hex[1:], "a byte less": good.Hex[2:],
		"a byte more": good.Hex + "00", "of another function": digestOf(wire.SHA512, "text").Hex, "empty": "",
	} {
		bad := wire.Digest{Algorithm: wire.SHA256, Hex: text}
		for _, key := range []string{"p256", "rsa2048"} {
			for _, request := range []wire.RequestBody{&wire.Sign{Key: key, Digest: bad}, &wire.SignAll{Key: key, Digests: []wire.Digest{good, bad}}} {
				if got := c.refused(request, wire.CodeDigestInvalid); got.Retry != wire.RetryNo || !strings.Contains(got.Message, string(wire.SHA256)+" digest") {
					t.Errorf("%s: %+v", name, got)
				}
			}
		}
	}
}

func TestABatchKeepsItsOrder(t *testing.T) {
	const entries = 500
	w := newWorld(t, func(_ *world, cfg *Config) { cfg.BatchConcurrency = 3 })
	c := w.unlockedClient("p256", "ed25519")
	request := &wire.SignAll{Key: "p256"}
	for i := range entries {
		request.Digests = append(request.Digests, digestOf(allHashes[i%len(allHashes)], fmt.Sprint(i)))
	}
	var calls atomic.Int64
	w.keys[token.P256].before(func(context.Context, []byte) error {
		time.Sleep(time.Duration(calls.Add(1)%3) * 100 * time.Microsecond)
		return nil
	})
	got := want[*wire.SignAllReply](c, c.call(request)).Signatures
	if len(got) != entries {
		t.Fatalf("%d signatures", len(got))
	}
	for i, s := range got {
		d := request.Digests[i]
		if err := verified(w.keys[token.P256].Public(), "", d, nil, s.Bytes); err != nil || s.Hash != d.Hex || s.Digest != d.Algorithm {
			t.Fatalf("entry %d: %+v: %v", i, s, err)
		}
	}
	if most := w.keys[token.P256].maxBusy.Load(); most < 2 || most > 3 {
		t.Errorf("%d signatures at once, want up to 3", most)
	}
	messages := want[*wire.SignAllReply](c, c.call(&wire.SignAll{Key: "ed25519", Messages: [][]byte{[]byte("a"), {}}})).Signatures
	if len(messages) != 2 || verified(w.keys[token.Ed25519].Public(), "", wire.Digest{}, []byte("a"), messages[0].Bytes) != nil {
		t.Errorf("messages: %+v", messages)
	}
	if empty := want[*wire.SignAllReply](c, c.call(&wire.SignAll{Key: "p256", Digests: []wire.Digest{}})); len(empty.Signatures) != 0 {
		t.Errorf("an empty batch: %+v", empty)
	}
}

func TestOneBadEntryFailsTheBatchBeforeAnythingIsSigned(t *testing.T) {
	w := newWorld(t)
	c := w.unlockedClient("p256")
	good := signRequest("p256").Digest
	c.refused(&wire.SignAll{Key: "p256", Digests: []wire.Digest{good, good, {Algorithm: wire.SHA256, Hex: "00"}}}, wire.CodeDigestInvalid)
	if signed := w.keys[token.P256].signed.Load(); signed != 0 {
		t.Errorf("%d signatures were made", signed)
	}
	var calls atomic.Int64
	w.keys[token.P256].before(func(context.Context, []byte) error {
		if calls.Add(1) == 2 {
			return fmt.Errorf("fake: %w", token.ErrBusy)
		}
		return nil
	})
	many := make([]wire.Digest, 300)
	for i := range many {
		many[i] = good
	}
	c.refused(&wire.SignAll{Key: "p256", Digests: many}, wire.CodeTokenBusy)
	if made := calls.Load(); made > 200 {
		t.Errorf("after a failure the token was asked %d times", made)
	}
}

func TestSigningSearchesForNothing(t *testing.T) {
	w := newWorld(t)
	c := w.unlockedClient("p256")
	other := w.unlockedClient("p256")
	for range 50 {
		want[*wire.SignReply](c, c.call(signRequest("p256")))
		want[*wire.SignReply](other, other.call(signRequest("p256")))
	}
	if fetched, tries := w.keys[token.P256].fetched.Load(), len(w.token.sent()); fetched != 1 || tries != 1 {
		t.Errorf("100 signatures took %d searches and %d logins", fetched, tries)
	}
}
