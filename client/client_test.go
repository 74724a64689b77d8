package client

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode"

	"chancery/client/clienttest"
	"chancery/tunnel"
	"chancery/tunnel/wire"
)

const passphrase = "correct horse battery"

// pipe is one end of a session that needs no network.
type pipe struct {
	net.Conn
	session  tunnel.SessionID
	extended bool
}

func (p pipe) Session() tunnel.SessionID { return p.session }
func (p pipe) Extended() bool            { return p.extended }

// world is a server, and how a client reaches it.
type world struct {
	*clienttest.Server
	plain   bool
	dials   atomic.Int32
	dialing func() error // fails the dial if it returns an error
}

func newWorld(t *testing.T) *world {
	w := &world{Server: &clienttest.Server{User: "alice"}}
	w.AddKey(t, "p256", passphrase, newECDSA(t, elliptic.P256()))
	return w
}

func newECDSA(t *testing.T, curve elliptic.Curve) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (w *world) dial(context.Context) (transport, error) {
	w.dials.Add(1)
	if w.dialing != nil {
		if err := w.dialing(); err != nil {
			return nil, err
		}
	}
	ours, theirs := net.Pipe()
	session := tunnel.NewSessionID()
	go w.Serve(pipe{theirs, session, !w.plain})
	return pipe{ours, session, !w.plain}, nil
}

func (w *world) config() *Config {
	return &Config{
		dial: w.dial, RetryMin: time.Millisecond, RetryMax: 5 * time.Millisecond,
		RequestTimeout: 20 * time.Second, BusyTimeout: 20 * time.Second,
	}
}

func (w *world) connect(t *testing.T, change ...func(*Config)) *Client {
	t.Helper()
	cfg := w.config()
	for _, c := range change {
		c(cfg)
	}
	c, err := Connect(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func unlock(t *testing.T, c *Client, key string) {
	t.Helper()
	if err := c.Unlock(t.Context(), key, []byte(passphrase)); err != nil {
		t.Fatal(err)
	}
}

func digest(text string) Digest {
	sum := sha256.Sum256([]byte(text))
	return Digest{Hash: crypto.SHA256, Sum: sum[:]}
}

func digests(count int) []Digest {
	all := make([]Digest, count)
	for i := range all {
		all[i] = digest(fmt.Sprint(i))
	}
	return all
}

func wantCode(t *testing.T, err error, code wire.Code) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Code != code {
		t.Fatalf("got %v, want code %q", err, code)
	}
}

func TestReads(t *testing.T) {
	c := newWorld(t).connect(t)
	user, err := c.WhoAmI(t.Context())
	if err != nil || user != "alice" {
		t.Fatalf("%q, %v", user, err)
	}
	keys, err := c.Keys(t.Context())
	if err != nil || len(keys) != 1 || keys[0].Name != "p256" || keys[0].Public == nil || *keys[0].Hardware {
		t.Fatalf("%+v, %v", keys, err)
	}
	_, err = c.GetKey(t.Context(), "other")
	wantCode(t, err, wire.CodeNoSuchKey)
}

func TestSignerWithEveryKindOfKey(t *testing.T) {
	w := newWorld(t)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, _ := ed25519.GenerateKey(rand.Reader)
	w.AddKey(t, "rsa", passphrase, rsaKey)
	w.AddKey(t, "p384", passphrase, newECDSA(t, elliptic.P384()))
	w.AddKey(t, "p521", passphrase, newECDSA(t, elliptic.P521()))
	w.AddKey(t, "ed", passphrase, edKey)
	c := w.connect(t)
	sum := digest("x").Sum
	for name, try := range map[string]struct {
		key    string
		opts   crypto.SignerOpts
		refuse wire.Code
	}{
		"PKCS #1 v1.5":       {"rsa", crypto.SHA256, ""},
		"PSS":                {"rsa", &rsa.PSSOptions{Hash: crypto.SHA256, SaltLength: rsa.PSSSaltLengthEqualsHash}, ""},
		"PSS, odd salt":      {"rsa", &rsa.PSSOptions{Hash: crypto.SHA256, SaltLength: 11}, wire.CodeAlgorithmMismatch},
		"RSA without hash":   {"rsa", crypto.Hash(0), wire.CodeAlgorithmMismatch},
		"P-256":              {"p256", crypto.SHA256, ""},
		"P-384":              {"p384", crypto.SHA3_256, ""},
		"P-521":              {"p521", crypto.SHA256, ""},
		"wrong length":       {"p256", crypto.SHA384, wire.CodeDigestInvalid},
		"SHA-1":              {"p256", crypto.SHA1, wire.CodeAlgorithmMismatch},
		"ECDSA with PSS":     {"p256", &rsa.PSSOptions{Hash: crypto.SHA256}, wire.CodeAlgorithmMismatch},
		"Ed25519":            {"ed", crypto.Hash(0), ""},
		"Ed25519 prehashed":  {"ed", crypto.SHA512, wire.CodeAlgorithmMismatch},
		"Ed25519 in context": {"ed", &ed25519.Options{Context: "c"}, wire.CodeAlgorithmMismatch},
	} {
		unlock(t, c, try.key)
		key, err := c.Key(t.Context(), try.key)
		if err != nil {
			t.Fatal(err)
		}
		signature, err := key.Sign(nil, sum, try.opts)
		if try.refuse != "" {
			wantCode(t, err, try.refuse)
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		_, pss := try.opts.(*rsa.PSSOptions)
		if err := (Digest{Hash: try.opts.HashFunc(), Sum: sum, PSS: pss}).Verify(key.Public(), signature); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRepliesOutOfOrderFindTheirCalls(t *testing.T) {
	w := newWorld(t)
	const many = 20
	release := make(chan struct{})
	var waiting atomic.Int32
	w.Hook = func(_ *clienttest.Session, r *wire.Request) wire.ResponseBody {
		get, ok := r.Body.(*wire.GetKey)
		if !ok || get.Key == "p256" {
			return nil
		}
		if waiting.Add(1) == many {
			close(release)
		}
		<-release // the first request is answered only after the last arrived
		return wire.Errorf(wire.CodeNoSuchKey, "%s", get.Key)
	}
	c := w.connect(t)
	var group sync.WaitGroup
	for i := range many {
		group.Go(func() {
			name := fmt.Sprint("key", i)
			_, err := c.GetKey(t.Context(), name)
			var e *Error
			if !errors.As(err, &e) || e.Message != name {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	group.Wait()
	if w.dials.Load() != 1 {
		t.Errorf("%d connections", w.dials.Load())
	}
}

func TestPlainVersion2(t *testing.T) {
	w := newWorld(t)
	w.plain = true
	c := w.connect(t, func(cfg *Config) { cfg.BatchSize = 1 << 20 })
	unlock(t, c, "p256")
	signatures, err := c.SignAll(t.Context(), "p256", digests(1000)) // several frames of 32 KiB
	if err != nil || slices.ContainsFunc(signatures, func(s []byte) bool { return s == nil }) {
		t.Fatal(err)
	}
	if w.Count("sign_all") < 3 {
		t.Errorf("%d batches", w.Count("sign_all"))
	}
	_, err = c.SignAll(t.Context(), "p256", []Digest{{Hash: crypto.SHA384, Sum: make([]byte, 48)}})
	wantCode(t, err, wire.CodeUnsupported)
	err = c.Unlock(t.Context(), "p256", []byte("wrong passphrase"))
	wantCode(t, err, wire.CodeInternal) // version 2 knows no other
}

func TestManyDigestsInBatches(t *testing.T) {
	w := newWorld(t)
	c := w.connect(t)
	unlock(t, c, "p256")
	key, err := c.Key(t.Context(), "p256")
	if err != nil {
		t.Fatal(err)
	}
	all := digests(500)
	all[77] = Digest{Hash: crypto.SHA3_512, Sum: make([]byte, 64)}
	signatures, err := c.SignAll(t.Context(), "p256", all)
	if err != nil {
		t.Fatal(err)
	}
	for i, d := range all {
		if err := d.Verify(key.Public(), signatures[i]); err != nil {
			t.Fatalf("%d: %v", i, err)
		}
	}
	if none, err := c.SignAll(t.Context(), "p256", nil); err != nil || len(none) != 0 {
		t.Errorf("nothing to sign: %v, %v", none, err)
	}
}

func TestMessagesAreCutByFrameSize(t *testing.T) {
	w := newWorld(t)
	_, edKey, _ := ed25519.GenerateKey(rand.Reader)
	w.AddKey(t, "ed", passphrase, edKey)
	c := w.connect(t)
	unlock(t, c, "ed")
	messages := []Digest{{Sum: make([]byte, MaxMessage)}, {Sum: make([]byte, MaxMessage)}, {Sum: nil}, {Sum: []byte("x")}}
	if _, err := c.SignAll(t.Context(), "ed", messages); err != nil {
		t.Fatal(err)
	}
	_, err := c.SignAll(t.Context(), "ed", []Digest{{Sum: make([]byte, 1<<20)}})
	wantCode(t, err, CodeTooLarge)
}

func TestReconnectUnlocksAgain(t *testing.T) {
	w := newWorld(t)
	c := w.connect(t)
	unlock(t, c, "p256")
	for range 3 {
		w.Restart()
		if _, err := c.SignAll(t.Context(), "p256", digests(1)); err != nil && !errors.Is(err, ErrInterrupted) {
			t.Fatal(err)
		}
	}
	if _, err := c.SignAll(t.Context(), "p256", digests(100)); err != nil {
		t.Fatal(err)
	}
	if w.Count("unlock") < 2 || w.dials.Load() < 2 {
		t.Errorf("%d unlocks, %d connections", w.Count("unlock"), w.dials.Load())
	}
}

func TestTokenRestartUnlocksAgainOnce(t *testing.T) {
	w := newWorld(t)
	c := w.connect(t)
	_, err := c.SignAll(t.Context(), "p256", digests(1))
	wantCode(t, err, wire.CodeNotUnlocked) // no passphrase is known yet
	unlock(t, c, "p256")
	w.ForgetUnlocks()
	if _, err := c.SignAll(t.Context(), "p256", digests(300)); err != nil {
		t.Fatal(err)
	}
	if n := w.Count("unlock"); n != 2 {
		t.Errorf("%d unlocks for one restart", n)
	}
}

func TestChangedPassphraseIsForgotten(t *testing.T) {
	w := newWorld(t)
	key := w.AddKey(t, "other", passphrase, newECDSA(t, elliptic.P256()))
	c := w.connect(t)
	unlock(t, c, "other")
	key.Passphrase = "changed meanwhile"
	w.ForgetUnlocks()
	_, err := c.SignAll(t.Context(), "other", digests(1))
	wantCode(t, err, wire.CodeWrongPassphrase)
	_, err = c.SignAll(t.Context(), "other", digests(1))
	wantCode(t, err, wire.CodeNotUnlocked)
	if n := w.Count("unlock"); n != 2 {
		t.Errorf("a passphrase that is wrong was sent %d times", n-1)
	}
}

func TestSignInFlightIsNeverRepeatedToAVersion2Server(t *testing.T) {
	w := newWorld(t)
	w.plain = true
	w.Hook = func(s *clienttest.Session, r *wire.Request) wire.ResponseBody {
		if r.Body.Name() != "sign" {
			return nil
		}
		_ = s.Close()
		return clienttest.Silence
	}
	c := w.connect(t)
	unlock(t, c, "p256")
	_, err := c.SignAll(t.Context(), "p256", digests(1))
	if !errors.Is(err, ErrInterrupted) {
		t.Fatalf("got %v", err)
	}
	if n := w.Count("sign"); n != 1 {
		t.Errorf("sent %d times", n)
	}
}

func TestPartialResultsSurvive(t *testing.T) {
	w := newWorld(t)
	var batches atomic.Int32
	w.Hook = func(s *clienttest.Session, r *wire.Request) wire.ResponseBody {
		if r.Body.Name() == "sign_all" && batches.Add(1) == 3 {
			return wire.NewError(wire.CodeKeyDisabled)
		}
		return nil
	}
	c := w.connect(t, func(cfg *Config) { cfg.InFlight, cfg.BatchSize = 1, 10 })
	unlock(t, c, "p256")
	signatures, err := c.SignAll(t.Context(), "p256", digests(100))
	wantCode(t, err, wire.CodeKeyDisabled)
	if signatures[0] == nil || signatures[19] == nil || signatures[20] != nil || signatures[99] != nil {
		t.Error("not the first two batches, and only they, were signed")
	}
}

func TestReadsAreRepeatedButNotForEver(t *testing.T) {
	for name, bad := range map[string]func(*clienttest.Session, uint64){
		"hang up":     func(s *clienttest.Session, _ uint64) { _ = s.Close() },
		"not JSON":    func(s *clienttest.Session, _ uint64) { s.Frame([]byte("{")) },
		"other id":    func(s *clienttest.Session, id uint64) { s.Reply(id+1000, &wire.WhoAmIReply{User: "x"}) },
		"other reply": func(s *clienttest.Session, id uint64) { s.Reply(id, &wire.UnlockReply{}) },
		"empty frame": func(s *clienttest.Session, _ uint64) { s.Frame(nil) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			var left atomic.Int32
			w.Hook = func(s *clienttest.Session, r *wire.Request) wire.ResponseBody {
				if left.Add(-1) < 0 {
					return nil
				}
				bad(s, r.ID)
				return clienttest.Silence
			}
			c := w.connect(t)
			left.Store(2)
			if _, err := c.WhoAmI(t.Context()); err != nil {
				t.Errorf("after two failures: %v", err)
			}
			left.Store(1000)
			before := w.Count("who_am_i")
			if _, err := c.WhoAmI(t.Context()); err == nil {
				t.Error("no error")
			}
			if n := w.Count("who_am_i") - before; n != DefaultAttempts {
				t.Errorf("tried %d times", n)
			}
		})
	}
}

func TestBusyServerIsAskedAgain(t *testing.T) {
	w := newWorld(t)
	var busy atomic.Int32
	w.Hook = func(_ *clienttest.Session, r *wire.Request) wire.ResponseBody {
		if r.Body.Name() != "sign" || busy.Add(-1) < 0 {
			return nil
		}
		return &wire.Error{Code: wire.CodeBusy, Message: "busy", Retry: wire.RetryLater, RetryAfter: time.Millisecond}
	}
	c := w.connect(t)
	unlock(t, c, "p256")
	busy.Store(6) // more often than Attempts: a busy server is patient work
	if _, err := c.SignAll(t.Context(), "p256", digests(1)); err != nil {
		t.Fatal(err)
	}
	busy.Store(1 << 30)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := c.SignAll(ctx, "p256", digests(1))
	wantCode(t, err, wire.CodeBusy)
}

func TestBatchTooSlowForTheTokenIsHalved(t *testing.T) {
	w := newWorld(t)
	w.Hook = func(_ *clienttest.Session, r *wire.Request) wire.ResponseBody {
		if all, ok := r.Body.(*wire.SignAll); ok && len(all.Digests) > 3 {
			return wire.NewError(wire.CodeTokenBusy)
		}
		return nil
	}
	c := w.connect(t)
	unlock(t, c, "p256")
	signatures, err := c.SignAll(t.Context(), "p256", digests(50))
	if err != nil || slices.ContainsFunc(signatures, func(s []byte) bool { return s == nil }) {
		t.Fatal(err)
	}
}

func TestShutdownMovesToANewConnection(t *testing.T) {
	w := newWorld(t)
	var once sync.Once
	w.Hook = func(*clienttest.Session, *wire.Request) (reply wire.ResponseBody) {
		once.Do(func() {
			reply = &wire.Error{Code: wire.CodeShuttingDown, Message: "later", Retry: wire.RetryReconnect, RetryAfter: time.Millisecond}
		})
		return reply
	}
	c := w.connect(t)
	if _, err := c.WhoAmI(t.Context()); err != nil || w.dials.Load() != 2 {
		t.Errorf("%v after %d connections", err, w.dials.Load())
	}
}

func TestAbsentTokenIsToldAtOnce(t *testing.T) {
	w := newWorld(t)
	w.Hook = func(_ *clienttest.Session, r *wire.Request) wire.ResponseBody {
		if r.Body.Name() == "unlock" {
			return wire.NewError(wire.CodeTokenAbsent)
		}
		return nil
	}
	err := w.connect(t).Unlock(t.Context(), "p256", []byte(passphrase))
	wantCode(t, err, wire.CodeTokenAbsent)
	if w.Count("unlock") != 1 {
		t.Errorf("asked %d times", w.Count("unlock"))
	}
}

func TestBadSignatureIsRefused(t *testing.T) {
	w := newWorld(t)
	for name, reply := range map[string]wire.Signature{
		"zeros":     {Tag: wire.TagP256, Bytes: make([]byte, 70)},
		"other tag": {Tag: wire.TagRSA, Bytes: make([]byte, 256)},
	} {
		w.Hook = func(_ *clienttest.Session, r *wire.Request) wire.ResponseBody {
			if r.Body.Name() == "sign" {
				return &wire.SignReply{Signature: reply}
			}
			return nil
		}
		c := w.connect(t)
		unlock(t, c, "p256")
		signatures, err := c.SignAll(t.Context(), "p256", digests(1))
		if err == nil || signatures[0] != nil {
			t.Errorf("%s: accepted", name)
		}
		if name == "zeros" && !errors.Is(err, ErrBadSignature) {
			t.Errorf("%s: %v", name, err)
		}
		_ = c.Close()
	}
}

func TestKeyMustFitItsHandleAndPin(t *testing.T) {
	w := newWorld(t)
	bent := w.AddKey(t, "bent", passphrase, newECDSA(t, elliptic.P256()))
	bent.Handle = "00" + bent.Handle[2:]
	renamed := w.AddKey(t, "renamed", passphrase, newECDSA(t, elliptic.P256()))
	renamed.Algorithm = wire.P384
	pinned := w.AddKey(t, "pinned", passphrase, newECDSA(t, elliptic.P256()))
	pin := pinned.Handle
	c := w.connect(t, func(cfg *Config) {
		cfg.Pin = func(key string) string {
			if key == "pinned" {
				return pin
			}
			return ""
		}
	})
	_, err := c.Key(t.Context(), "bent")
	wantCode(t, err, CodeBadReply)
	_, err = c.Key(t.Context(), "renamed")
	wantCode(t, err, CodeBadReply)
	if _, err = c.GetKey(t.Context(), "pinned"); err != nil {
		t.Fatal(err)
	}
	pin = "AA" + pin[2:]
	if _, err = c.Key(t.Context(), "pinned"); !errors.Is(err, ErrHandleMismatch) {
		t.Fatalf("got %v", err)
	}
	if _, err = c.SignAll(t.Context(), "pinned", digests(1)); !errors.Is(err, ErrHandleMismatch) {
		t.Fatalf("got %v", err)
	}
}

func TestOnlyTheCheckedPublicHalfIsPassedOn(t *testing.T) {
	w := newWorld(t)
	key := w.AddKey(t, "key", passphrase, newECDSA(t, elliptic.P256()))
	text := key.PublicKey
	other := w.AddKey(t, "other", passphrase, newECDSA(t, elliptic.P256()))
	key.PublicKey = "\x1b[2J\n" + text + other.PublicKey
	info, err := w.connect(t).GetKey(t.Context(), "key")
	if err != nil {
		t.Fatal(err)
	}
	if info.PublicPEM != text {
		t.Errorf("passed on %q", info.PublicPEM)
	}
}

func TestUnknownAlgorithmIsListedAndNotUsed(t *testing.T) {
	w := newWorld(t)
	w.AddKey(t, "new", passphrase, newECDSA(t, elliptic.P256())).Algorithm = "MlDsa65"
	c := w.connect(t)
	keys, err := c.Keys(t.Context())
	if err != nil || len(keys) != 2 || keys[1].Public != nil {
		t.Fatalf("%+v, %v", keys, err)
	}
	_, err = c.Key(t.Context(), "new")
	wantCode(t, err, wire.CodeAlgorithmMismatch)
}

func TestCanceledCallLeavesTheConnectionUsable(t *testing.T) {
	for _, plain := range []bool{false, true} {
		w := newWorld(t)
		w.plain = plain
		arrived, release := make(chan struct{}), make(chan struct{})
		var once sync.Once
		w.Hook = func(*clienttest.Session, *wire.Request) wire.ResponseBody {
			once.Do(func() {
				close(arrived)
				<-release
			})
			return nil
		}
		c := w.connect(t)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-arrived
			cancel()
		}()
		_, err := c.Keys(ctx)
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v", err)
		}
		close(release)
		if user, err := c.WhoAmI(t.Context()); err != nil || user != "alice" || w.dials.Load() != 1 {
			t.Errorf("%q, %v, %d connections", user, err, w.dials.Load())
		}
	}
}

func TestSilentServerIsGivenUp(t *testing.T) {
	w := newWorld(t)
	var mute atomic.Bool
	w.Hook = func(*clienttest.Session, *wire.Request) wire.ResponseBody {
		if mute.Load() {
			return clienttest.Silence
		}
		return nil
	}
	c := w.connect(t, func(cfg *Config) { cfg.RequestTimeout = 50 * time.Millisecond })
	unlock(t, c, "p256")
	if _, err := c.Key(t.Context(), "p256"); err != nil {
		t.Fatal(err)
	}
	mute.Store(true)
	_, err := c.SignAll(t.Context(), "p256", digests(1))
	if !errors.Is(err, ErrInterrupted) {
		t.Fatalf("got %v", err)
	}
	_, err = c.WhoAmI(t.Context())
	wantCode(t, err, CodeTimeout)
}

func TestIdleConnectionIsClosedAndComesBack(t *testing.T) {
	w := newWorld(t)
	c := w.connect(t, func(cfg *Config) { cfg.IdleTimeout = 20 * time.Millisecond })
	unlock(t, c, "p256")
	for deadline := time.Now().Add(10 * time.Second); w.Sessions() > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("still connected")
		}
	}
	if _, err := c.SignAll(t.Context(), "p256", digests(1)); err != nil {
		t.Fatal(err)
	}
}

func TestConnectRetriesWhatCanPass(t *testing.T) {
	w := newWorld(t)
	w.dialing = func() error { return &tunnel.Error{Kind: tunnel.KindNoServer, Bridge: "b:1"} }
	_, err := Connect(t.Context(), w.config())
	wantCode(t, err, CodeNoServer)
	if n := w.dials.Load(); n != DefaultAttempts {
		t.Errorf("dialled %d times", n)
	}
	w.dials.Store(0)
	w.dialing = func() error { return &tunnel.Error{Kind: tunnel.KindBridgeUntrusted, Bridge: "b:1"} }
	_, err = Connect(t.Context(), w.config())
	wantCode(t, err, CodeBridgeUntrusted)
	if n := w.dials.Load(); n != 1 {
		t.Errorf("dialled %d times", n)
	}
	_, err = Connect(t.Context(), &Config{})
	wantCode(t, err, CodeSettings)
}

func TestWaitersShareOneDial(t *testing.T) {
	w := newWorld(t)
	c := w.connect(t)
	w.Restart()
	gate := make(chan struct{})
	w.dialing = func() error { <-gate; return nil }
	var group sync.WaitGroup
	for range 20 {
		group.Go(func() {
			if _, err := c.WhoAmI(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	time.Sleep(20 * time.Millisecond)
	close(gate)
	group.Wait()
	if n := w.dials.Load(); n > 3 {
		t.Errorf("dialled %d times", n)
	}
}

func TestCloseDuringUse(t *testing.T) {
	w := newWorld(t)
	c := w.connect(t)
	unlock(t, c, "p256")
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for {
				if _, err := c.SignAll(t.Context(), "p256", digests(3)); err != nil {
					if !errors.Is(err, ErrClosed) && !errors.Is(err, ErrInterrupted) {
						t.Errorf("got %v", err)
					}
					return
				}
			}
		})
	}
	time.Sleep(10 * time.Millisecond)
	_ = c.Close()
	group.Wait()
	if _, err := c.WhoAmI(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
	if err := c.Unlock(t.Context(), "p256", []byte(passphrase)); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
	if len(c.secrets.byKey) != 0 {
		t.Error("a passphrase outlived Close")
	}
	_ = c.Close() // twice does no harm
}

func TestErrorsTellNoSecretAndNoStruct(t *testing.T) {
	w := newWorld(t)
	c := w.connect(t)
	err := c.Unlock(t.Context(), "p256", []byte("hunter2hunter2"))
	want := `client: unlock "p256": the passphrase does not open this key; check that it is the one for this key`
	if err == nil || err.Error() != want {
		t.Errorf("got %v", err)
	}
}

// TestAForeignCertificateWritesNoLinesOfItsOwn: whoever is on the path chooses what it says.
func TestAForeignCertificateWritesNoLinesOfItsOwn(t *testing.T) {
	names := slices.Repeat([]string{"x\nchancery: wrote document.sig\x1b[2K"}, 90)
	forged := x509.HostnameError{Certificate: &x509.Certificate{DNSNames: names}, Host: "bridge.example.com"}
	for name, cause := range map[string]error{
		"while connecting": &tunnel.Error{Kind: tunnel.KindBridgeName, Bridge: "b:1", Err: forged},
		"in the session":   &lostError{sent: true, cause: forged},
		"otherwise":        forged,
	} {
		var e *Error
		if !errors.As(told("whoami", "", cause), &e) {
			t.Fatal(name)
		}
		if strings.ContainsFunc(e.Message, func(r rune) bool { return !unicode.IsPrint(r) }) || len(e.Message) > 4096 {
			t.Errorf("%s: %d bytes, %.200q", name, len(e.Message), e.Message)
		}
		if !strings.Contains(e.Message, "wrote document.sig") {
			t.Errorf("%s: %.200q does not show what was said", name, e.Message)
		}
	}
}
