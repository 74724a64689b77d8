package signer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"chancery/audit"
	"chancery/token"
	"chancery/tunnel/wire"
)

// one returns the only record of a kind.
func (w *world) one(kind audit.Kind) audit.Record {
	w.t.Helper()
	records := w.audit.of(kind)
	if len(records) != 1 {
		w.t.Fatalf("%d records of the kind %s in %s", len(records), kind, w.audit.text())
	}
	return records[0]
}

func TestASignatureLeavesWhenItsRecordIsDurable(t *testing.T) {
	for _, extended := range []bool{false, true} {
		t.Run(fmt.Sprint("extended ", extended), func(t *testing.T) {
			w := newWorld(t)
			w.awaitToken(StateReady)
			c := w.connect("alice", extended)
			want[*wire.UnlockReply](c, c.call(unlockRequest("p256", passphrase)))
			durable := make(chan struct{})
			w.audit.change(func(f *fakeAudit) { f.gate = durable })
			id := c.send(signRequest("p256"))
			replies := make(chan *wire.Response, 1)
			go func() { replies <- c.receive() }()
			w.eventually("the token to have signed", func() bool { return w.keys[token.P256].signed.Load() == 1 })
			select {
			case <-replies:
				t.Error("the signature left before its record was durable")
			case <-time.After(50 * time.Millisecond):
			}
			close(durable)
			want[*wire.SignReply](c, (<-replies).Body)
			r := w.one(audit.KindSign)
			sum := clientCertificate().Raw
			if r.User != "alice" || r.Key != "p256" || r.Handle != w.store.keys[3].Handle && r.Handle == "" || r.Scheme != "ecdsa" || r.DigestAlgorithm != "Sha256" ||
				!slices.Equal(r.Digests, []string{signRequest("p256").Digest.Hex}) || r.Session != c.session.String() || *r.Request != id || r.Outcome != audit.OutcomeOK {
				t.Errorf("recorded %+v", r)
			}
			if print := sha256.Sum256(sum); r.Peer.Serial != "1af" || r.Peer.Fingerprint != hex.EncodeToString(print[:]) || r.Peer.Address == "" {
				t.Errorf("recorded peer %+v", r.Peer)
			}
		})
	}
}

func TestABatchIsOneRecord(t *testing.T) {
	w := newWorld(t)
	c := w.unlockedClient("p256", "rsa2048", "ed25519")
	call := func(body wire.RequestBody) audit.Record {
		t.Helper()
		before := len(w.audit.kept())
		want[*wire.SignAllReply](c, c.call(body))
		records := w.audit.kept()[before:]
		if len(records) != 1 {
			t.Fatalf("recorded %+v", records)
		}
		return records[0]
	}
	first, second := digestOf(wire.SHA256, "one"), digestOf(wire.SHA256, "two")
	r := call(&wire.SignAll{Key: "rsa2048", Scheme: wire.SchemePSS, Digests: []wire.Digest{second, first, second}})
	if !slices.Equal(r.Digests, []string{second.Hex, first.Hex, second.Hex}) || r.DigestAlgorithm != "Sha256" || r.Scheme != "pss" {
		t.Errorf("recorded %+v", r)
	}
	other := digestOf(wire.SHA512, "one")
	r = call(&wire.SignAll{Key: "rsa2048", Digests: []wire.Digest{first, other}})
	if !slices.Equal(r.Digests, []string{"Sha256:" + first.Hex, "Sha512:" + other.Hex}) || r.DigestAlgorithm != "mixed" || r.Scheme != "pkcs1v15" {
		t.Errorf("recorded %+v", r)
	}
	r = call(&wire.SignAll{Key: "ed25519", Messages: [][]byte{[]byte("one"), []byte("two")}})
	if !slices.Equal(r.Digests, []string{first.Hex, second.Hex}) || r.DigestAlgorithm != "Sha256" || r.Scheme != "ed25519" {
		t.Errorf("recorded %+v", r)
	}
}

// Short messages have longer digests: those of the largest request do not fit one line.
func TestEveryDigestOfTheLargestRequestIsRecorded(t *testing.T) {
	directory := filepath.Join(t.TempDir(), "audit")
	log, err := audit.Open(audit.Config{Directory: directory, UnsafeNoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	jobs := make([]job, 50_000)
	for i := range jobs {
		jobs[i].input = strconv.AppendInt(nil, int64(i), 36)
	}
	session := &session{server: &Server{cfg: Config{Audit: log}}, user: "alice", origin: &audit.Peer{}}
	made := signed{key: "release", opened: unlocked{algorithm: token.Ed25519}, jobs: jobs}
	if err := session.recordSigned(t.Context(), 1, made); err != nil {
		t.Fatal(err)
	}
	var digests []string
	records := 0
	for e, err := range audit.Read(t.Context(), directory, audit.ReadOptions{Filter: audit.Filter{Kind: audit.KindSign}}) {
		if err != nil {
			t.Fatal(err)
		}
		records++
		digests = append(digests, e.Digests...)
		if part := fmt.Sprintf("%d/4", records); e.Details["part"] != part {
			t.Errorf("part %q, want %q", e.Details["part"], part)
		}
	}
	for i, j := range jobs {
		if sum := sha256.Sum256(j.input); i >= len(digests) || digests[i] != hex.EncodeToString(sum[:]) {
			t.Fatalf("message %d is not recorded among %d", i, len(digests))
		}
	}
	if err := log.Close(); err != nil {
		t.Error(err)
	}
}

func TestWithoutARecordNothingIsDone(t *testing.T) {
	w := newWorld(t)
	c := w.unlockedClient("p256")
	full := fmt.Errorf("%w: no space left on device", audit.ErrUnavailable)
	w.audit.fail(full)
	got := c.refused(signRequest("p256"), wire.CodeAuditUnavailable) // found out after the token signed
	if got.Retry != wire.RetryLater || got.RetryAfter == 0 {
		t.Errorf("advice %+v", got)
	}
	before := w.keys[token.P256].signed.Load()
	batch := &wire.SignAll{Key: "p256", Digests: []wire.Digest{signRequest("p256").Digest}}
	for _, request := range []wire.RequestBody{signRequest("p256"), batch, unlockRequest("p256", passphrase), unlockRequest("p256", "wrong-passphrase")} {
		c.refused(request, wire.CodeAuditUnavailable)
	}
	if after := w.keys[token.P256].signed.Load(); after != before {
		t.Errorf("the token was asked %d times", after-before)
	}
	if w.server.Status().Audit == "" {
		t.Error("the status does not tell")
	}
	want[*wire.WhoAmIReply](c, c.call(&wire.WhoAmI{}))

	w.audit.fail(nil)
	c.refused(signRequest("p256"), wire.CodeAuditUnavailable) // whose record finds out that the log works
	want[*wire.SignReply](c, c.call(signRequest("p256")))
	if records := w.audit.of(audit.KindSign); len(records) != 1 {
		t.Errorf("recorded %+v", records)
	}
	if r := w.one(audit.KindRefused); r.Outcome != string(wire.CodeAuditUnavailable) {
		t.Errorf("recorded %+v", r)
	}
}

func TestALogThatHangsEndsTheRequestInTime(t *testing.T) {
	w := newWorld(t, func(_ *world, cfg *Config) { cfg.RequestTimeout = 2 * time.Second })
	c := w.unlockedClient("p256")
	w.audit.change(func(f *fakeAudit) { f.gate = make(chan struct{}) })
	c.refused(signRequest("p256"), wire.CodeAuditUnavailable)
}

// A request that ends while its record is written is refused like any other: not as a failure of the log, and so not recorded
// beyond what its user may fill the log with.
func TestARequestThatEndsWhileItIsRecordedIsNoFailureOfTheLog(t *testing.T) {
	late := signRequest("p256")
	late.Deadline = 20 * time.Millisecond
	for name, end := range map[string]func(*world, *client){
		"by its deadline": func(_ *world, c *client) { c.refused(late, wire.CodeDeadlineExceeded) },
		"by its connection": func(w *world, c *client) {
			before := w.keys[token.P256].signed.Load()
			c.send(signRequest("p256"))
			w.eventually("the signature to be made", func() bool { return w.keys[token.P256].signed.Load() > before })
			time.Sleep(5 * time.Millisecond) // for its record to be on its way
			c.cut()
			w.eventually("the session to end", func() bool { return w.server.Status().Sessions == 0 })
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, func(_ *world, cfg *Config) { cfg.RefusalBurst, cfg.RefusalEvery = 2, time.Hour })
			gate := make(chan struct{})
			defer close(gate)
			w.audit.change(func(f *fakeAudit) { f.gate, f.only = gate, audit.KindSign })
			for range 4 {
				c := w.unlockedClient("p256")
				end(w, c)
				c.conn.Close()
			}
			refused := w.audit.of(audit.KindRefused)
			if len(refused) != 2 {
				t.Errorf("%d refusals are recorded one by one, and 2 may be", len(refused))
			}
			for _, r := range refused {
				if r.Outcome == string(wire.CodeAuditUnavailable) {
					t.Errorf("recorded %+v", r)
				}
			}
			if signed := w.audit.of(audit.KindSign); len(signed) > 0 {
				t.Errorf("recorded %+v", signed)
			}
		})
	}
}

func TestUnlocksAreRecorded(t *testing.T) {
	w := newWorld(t)
	c := w.unlockedClient("p256")
	if r := w.one(audit.KindUnlock); r.User != "alice" || r.Key != "p256" || r.Handle == "" || *r.Request != 0 {
		t.Errorf("recorded %+v", r)
	}
	c.refused(unlockRequest("p384", "wrong-passphrase"), wire.CodeWrongPassphrase)
	if r := w.one(audit.KindUnlockFailed); r.Key != "p384" || r.Outcome != string(wire.CodeWrongPassphrase) || *r.Request != 1 {
		t.Errorf("recorded %+v", r)
	}
	w.token.change(func(f *fakeToken) { f.pinState.Locked = true })
	w.change(func(s *fakeStore) { s.tokens[0].Reload++ })
	w.eventually("the token to refuse", func() bool {
		_, refused := c.call(unlockRequest("p256", passphrase)).(*wire.Error)
		return refused && w.audit.of(audit.KindUnlockFailed)[len(w.audit.of(audit.KindUnlockFailed))-1].Outcome == string(wire.CodeTokenLocked)
	})
}

// What a peer is told hides what the log has to know.
func TestRefusalsAreRecordedWithTheirReason(t *testing.T) {
	w := newWorld(t)
	w.awaitToken(StateReady)
	alice, bob, old := w.connect("alice", true), w.connect("bob", true), w.connect("alice", false)
	w.change(func(s *fakeStore) {
		s.grants[2].Expires = time.Now().Add(-time.Second)
		s.keys[1].Disabled = true
	})
	names := func(i int) string { return w.store.keys[i].Name }
	invalid := &wire.Sign{Key: "p256", Digest: wire.Digest{Algorithm: wire.SHA256, Hex: "beef"}}
	for _, c := range []struct {
		client  *client
		body    wire.RequestBody
		outcome string
	}{
		{alice, signRequest("p999"), "unknown_key"},
		{bob, signRequest("p256"), "not_granted"},
		{bob, unlockRequest("p256", passphrase), "not_granted"},
		{old, signRequest("p384"), "key_not_in_version_2"},
		{alice, signRequest("p256"), "not_unlocked"},
		{alice, signRequest(names(1)), "key_disabled"},
		{alice, &wire.GetKey{Key: names(2)}, "grant_expired"},
	} {
		before := len(w.audit.kept())
		want[*wire.Error](c.client, c.client.call(c.body))
		r := w.audit.kept()[before]
		if r.Kind != audit.KindRefused || r.Outcome != c.outcome || r.Key != keyOf(c.body) || r.Details["request"] != c.body.Name() || r.Details["error"] == "" {
			t.Errorf("%s: recorded %+v", c.outcome, r)
		}
	}
	want[*wire.UnlockReply](alice, alice.call(unlockRequest("p256", passphrase)))
	before := len(w.audit.kept())
	alice.refused(invalid, wire.CodeDigestInvalid)
	if r := w.audit.kept()[before]; r.Outcome != "digest_invalid" || !slices.Equal(r.Digests, []string{"beef"}) {
		t.Errorf("recorded %+v", r)
	}
	w.keys[token.P256].before(func(context.Context, []byte) error { return errors.New("CKR_DEVICE_ERROR") })
	alice.refused(signRequest("p256"), wire.CodeInternal)
	if r := w.audit.kept()[before+1]; r.Outcome != "internal" || r.Details["error"] != "CKR_DEVICE_ERROR" || len(r.Digests) != 1 {
		t.Errorf("recorded %+v", r)
	}
	alice.write(wire.AppendFrame(nil, []byte(`{"session_id":"00000000-0000-0000-0000-000000000000","request_id":77,"request":{"reboot":{}}}`)))
	want[*wire.UnsupportedReply](alice, alice.receive().Body)
	if r := w.audit.kept()[before+2]; r.Outcome != "unsupported" || *r.Request != 77 {
		t.Errorf("recorded %+v", r)
	}
}

func TestARefusedDigestIsRecordedWhole(t *testing.T) {
	w := newWorld(t)
	w.awaitToken(StateReady)
	c := w.connect("alice", true)
	longest := digestOf(wire.SHA512, "text").Hex
	for digest, recorded := range map[string]string{
		digestOf(wire.SHA256, "text").Hex: digestOf(wire.SHA256, "text").Hex,
		longest:                           longest,
		longest + "00":                    longest + "…",
	} {
		before := len(w.audit.kept())
		c.refused(&wire.Sign{Key: "p256", Digest: wire.Digest{Algorithm: wire.SHA512, Hex: digest}}, wire.CodeNotUnlocked)
		if r := w.audit.kept()[before]; !slices.Equal(r.Digests, []string{recorded}) {
			t.Errorf("recorded %q of %q", r.Digests, digest)
		}
	}
}

func TestSessionsThatAreTurnedAwayAreRecorded(t *testing.T) {
	w := newWorld(t)
	w.awaitToken(StateReady)
	w.connect("eve", true).closed()
	if r := w.one(audit.KindRefused); r.User != "eve" || r.Outcome != "unknown_user" || r.Session == "" || r.Peer == nil {
		t.Errorf("recorded %+v", r)
	}
	w.connect("mallory", true).closed()
	if r := w.audit.kept()[1]; r.User != "mallory" || r.Outcome != "user_disabled" {
		t.Errorf("recorded %+v", r)
	}
}

func TestAFloodOfRefusalsIsCounted(t *testing.T) {
	const flood, burst = 500, 3
	for name, end := range map[string]func(*world, *client){
		"by time": func(w *world, _ *client) {
			w.eventually("the counts to be recorded", func() bool { return len(w.audit.kept()) > burst })
		},
		"at the end": func(w *world, c *client) {
			c.write(wire.AppendDone(nil))
			w.stop()
			w.eventually("the counts to be recorded", func() bool { return len(w.audit.kept()) > burst })
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, func(_ *world, cfg *Config) {
				cfg.RefusalBurst = burst
				if cfg.RefusalEvery = time.Hour; name == "by time" {
					cfg.RefusalEvery = 2 * time.Second
				}
			})
			w.awaitToken(StateReady)
			c := w.connect("alice", true)
			other := w.connect("alice", true) // a new connection is no new burst
			for i := range flood {
				[]*client{c, other}[i%2].refused(signRequest("p999"), wire.CodeNoSuchKey)
			}
			other.write(wire.AppendDone(nil))
			end(w, c)
			counted, single := 0, 0
			for _, r := range w.audit.of(audit.KindRefused) {
				if r.Outcome != "summarised" {
					single++
					continue
				}
				n, err := strconv.Atoi(r.Details["unknown_key"])
				if err != nil || r.User != "alice" || r.Details["since"] == "" {
					t.Errorf("recorded %+v", r)
				}
				counted += n
			}
			if counted+single != flood || single > burst+5 {
				t.Errorf("%d refusals were recorded and %d counted, of %d", single, counted, flood)
			}
			bob := w.server.refusals.count(2, audit.Record{Outcome: "x"})
			if bob {
				t.Error("another user's refusal is not recorded")
			}
		})
	}
}

func TestARepeatedRefusalIsNotLoggedWithoutEnd(t *testing.T) {
	const burst, flood = 5, 100
	w := newWorld(t, func(_ *world, cfg *Config) { cfg.RefusalBurst, cfg.RefusalEvery = burst, time.Hour })
	w.awaitToken(StateReady)
	first, second := w.connect("alice", true), w.connect("alice", true)
	for i := range flood {
		c := []*client{first, second}[i%2]
		c.refused(signRequest("p999"), wire.CodeNoSuchKey)
		c.write(wire.AppendFrame(nil, fmt.Appendf(nil, `{"session_id":"%s","request_id":7,"request":{"dance":{}}}`, c.session)))
		want[*wire.UnsupportedReply](c, c.receive().Body)
	}
	w.connect("bob", true).refused(signRequest("p999"), wire.CodeNoSuchKey)
	logs := w.logs.String()
	lines := strings.Count(logs, "request refused") + strings.Count(logs, "request not supported")
	if lines > burst+1 || !strings.Contains(logs, "user=bob request=0") {
		t.Errorf("%d lines, or bob's is missing:\n%s", lines, logs)
	}
}

func TestTheLogTellsHowManyLinesWereLeftOut(t *testing.T) {
	logs := &lockedBuffer{}
	r := newRefusals(&Config{RefusalBurst: 1, RefusalEvery: 20 * time.Millisecond}, nil)
	log := slog.New(slog.NewTextHandler(logs, nil))
	for deadline := time.Now().Add(patience); !strings.Contains(logs.String(), "suppressed="); time.Sleep(time.Millisecond) {
		r.logger(1, log).Info("refused")
		if time.Now().After(deadline) {
			t.Fatalf("logged:\n%s", logs)
		}
	}
}

// The race detector tells whether a summary is made while refusals are being counted.
func TestRefusalsAreCountedWhileTheyAreSummarised(t *testing.T) {
	cfg := &Config{RefusalEvery: 200 * time.Microsecond, RefusalBurst: 1, Log: slog.New(slog.DiscardHandler)}
	r := newRefusals(cfg, func(context.Context, ...audit.Record) error { return nil })
	for end := time.Now().Add(100 * time.Millisecond); time.Now().Before(end); {
		if err := r.record(t.Context(), 1, audit.Record{User: "alice", Outcome: "unknown_key"}); err != nil {
			t.Fatal(err)
		}
	}
	r.close()
}

func TestCountsThatCouldNotBeRecordedAreKept(t *testing.T) {
	w := newWorld(t, func(_ *world, cfg *Config) { cfg.RefusalBurst, cfg.RefusalEvery = 1, 100*time.Millisecond })
	c := w.unlockedClient("p256")
	c.refused(&wire.GetKey{Key: "p999"}, wire.CodeNoSuchKey)
	w.audit.fail(audit.ErrUnavailable)
	w.server.refusals.count(1, audit.Record{Outcome: "unknown_key"})
	w.awaitLog("counted and not yet recorded")
	w.audit.fail(nil)
	w.eventually("the counts to be recorded", func() bool {
		return slices.ContainsFunc(w.audit.of(audit.KindRefused), func(r audit.Record) bool { return r.Details["unknown_key"] == "1" })
	})
}
