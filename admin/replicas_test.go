package admin

import (
	"context"
	"strings"
	"testing"

	"chancery/access"
	"chancery/token"
	"chancery/token/replica"
	"chancery/users"
)

// withTwin puts a clone of the scene's device beside it, and opens tokens by their location, those with replicas as one.
func (s *scene) withTwin() *device {
	s.t.Helper()
	twin := s.device.clone()
	twin.serial, twin.sent = "serial-2", nil
	s.Open = func(ctx context.Context, t users.Token) (token.Token, error) {
		single := func(home users.Token) (token.Token, error) {
			if home.Location == "/twin" {
				return twin.handle()
			}
			return s.device.handle()
		}
		if len(t.Replicas) == 0 {
			return single(t)
		}
		cfg := replica.Config{Serial: t.Serial}
		for _, home := range t.Homes() {
			cfg.Members = append(cfg.Members, replica.Member{Name: home.Name, Open: func(context.Context) (token.Token, error) { return single(home) }})
		}
		return replica.Open(ctx, cfg)
	}
	s.t.Cleanup(func() {
		if twin.open != 0 {
			s.t.Errorf("%d handles of the twin were not closed", twin.open)
		}
	})
	return twin
}

var twinSpec = TokenSpec{Name: "twin", Driver: "fake", Location: "/twin", MaxSessions: 4}

func TestAReplicaIsRegistered(t *testing.T) {
	s := newScene(t)
	twin := s.withTwin()
	added, err := s.AddReplica(s.ctx, s.alice, "hsm", twinSpec)
	s.noError("add", err)
	record, _ := s.snapshot().Token("hsm")
	if len(record.Replicas) != 1 || record.Replicas[0] != added || added.Serial != "serial-2" || added.Label != "fake label" || added.MaxSessions != 4 {
		t.Errorf("added %+v, recorded %+v", added, record.Replicas)
	}
	if len(twin.sent) != 1 {
		t.Errorf("PINs sent to the replica: %d", len(twin.sent))
	}
	s.device.fail("open", token.ErrTokenAbsent)
	s.noError("signing with the replica alone", s.signs(s.alice))
	_, err = s.CreateKey(s.ctx, s.alice, KeySpec{Name: "k", Token: "hsm"}, token.P256)
	s.wantError("making a key on two", err, token.ErrUnsupported)
	_, err = s.AddReplica(s.ctx, s.alice, "hsm", twinSpec)
	s.wantError("again", err, users.ErrExists)
}

func TestAReplicaMustBeOne(t *testing.T) {
	wrong := Actor{"alice", []byte("not alice's passphrase")}
	for name, c := range map[string]struct {
		change func(s *scene, twin *device)
		actor  *Actor
		spec   TokenSpec
		want   error
		sent   int // PINs
	}{
		"another PIN":             {change: func(_ *scene, twin *device) { twin.pin = []byte("another") }, want: token.ErrPINIncorrect, sent: 1},
		"final try":               {change: func(_ *scene, twin *device) { twin.wrong = maxTries - 1 }, want: users.ErrFinalTry},
		"locked":                  {change: func(_ *scene, twin *device) { twin.wrong = maxTries }, want: token.ErrPINLocked},
		"no keys":                 {change: func(_ *scene, twin *device) { clear(twin.keys) }, want: token.ErrNoKey, sent: 1},
		"a key without its half":  {change: func(_ *scene, twin *device) { twin.bad = true }, want: token.ErrMismatch, sent: 1},
		"the primary itself":      {change: func(_ *scene, twin *device) { twin.serial = "serial-1" }, want: users.ErrExists},
		"no serial number":        {change: func(_ *scene, twin *device) { twin.serial = "" }, want: ErrRequest},
		"absent":                  {change: func(_ *scene, twin *device) { twin.fail("open", token.ErrTokenAbsent) }, want: token.ErrTokenAbsent},
		"a wrong passphrase":      {actor: &wrong, want: access.ErrWrongPassphrase},
		"a name in use":           {spec: TokenSpec{Name: "hsm", Location: "/twin"}, want: users.ErrExists},
		"a bad name":              {spec: TokenSpec{Name: "a/b", Location: "/twin"}, want: users.ErrName},
		"a PIN that was rejected": {change: func(s *scene, _ *device) { s.noError("reject", s.Store.RejectPIN(s.ctx, 1, 0, false)) }, want: users.ErrPINRejected},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			twin := s.withTwin()
			if c.change != nil {
				c.change(s, twin)
			}
			actor, spec := s.alice, twinSpec
			if c.actor != nil {
				actor = *c.actor
			}
			if c.spec.Name != "" {
				spec = c.spec
			}
			_, err := s.AddReplica(s.ctx, actor, "hsm", spec)
			s.wantError("add", err, c.want)
			if len(twin.sent) != c.sent {
				t.Errorf("%d PINs were sent, want %d", len(twin.sent), c.sent)
			}
			if record, _ := s.snapshot().Token("hsm"); len(record.Replicas) != 0 {
				t.Error("the replica was registered")
			}
		})
	}
}

func TestTheKeyOfAReplicaMustBeTheSame(t *testing.T) {
	s := newScene(t)
	twin := s.withTwin()
	other := newDevice("serial-2", firstPIN)
	h, err := other.handle()
	s.noError("handle", err)
	s.noError("login", h.Login(s.ctx, []byte(firstPIN)))
	_, err = h.Generate(s.ctx, token.KeySpec{ID: s.key.TokenKeyID, Label: "release", Algorithm: token.P256})
	s.noError("generate", err)
	twin.keys = other.keys
	for _, key := range twin.keys {
		key.device = twin
	}
	_, err = s.AddReplica(s.ctx, s.alice, "hsm", twinSpec)
	s.wantError("add", err, token.ErrMismatch)
	if err == nil || !strings.Contains(err.Error(), `"release"`) || !strings.Contains(err.Error(), `"twin"`) {
		t.Errorf("the error does not say which key where: %v", err)
	}
}

func TestThePINOfAllHomesChanges(t *testing.T) {
	s := newScene(t)
	twin := s.withTwin()
	_, err := s.AddReplica(s.ctx, s.alice, "hsm", twinSpec)
	s.noError("add", err)
	s.noError("change", s.ChangePIN(s.ctx, s.alice, "hsm", []byte("a new PIN")))
	if string(s.device.pin) != "a new PIN" || string(twin.pin) != "a new PIN" {
		t.Errorf("PINs %q and %q", s.device.pin, twin.pin)
	}
	s.noError("signing", s.signs(s.alice))

	// While one is out of order, nothing changes.
	twin.fail("open", token.ErrTokenAbsent)
	s.wantError("without the replica", s.ChangePIN(s.ctx, s.alice, "hsm", []byte("third PIN")), token.ErrTokenAbsent)
	if record, _ := s.snapshot().Token("hsm"); record.PINStaged || string(s.device.pin) != "a new PIN" {
		t.Errorf("PIN of the primary %q, a change in flight: %v", s.device.pin, record.PINStaged)
	}
	s.noError("signing meanwhile", s.signs(s.alice))
	twin.fail("open", nil)
	s.noError("with it", s.ChangePIN(s.ctx, s.alice, "hsm", []byte("third PIN")))

	// One that does not answer leaves the change in flight, which is completed later.
	twin.fail("change", token.ErrBusy)
	s.wantError("without an answer", s.ChangePIN(s.ctx, s.alice, "hsm", []byte("the next PIN")), token.ErrBusy)
	if string(s.device.pin) != "third PIN" || string(twin.pin) != "third PIN" {
		t.Errorf("PINs %q and %q", s.device.pin, twin.pin)
	}
	twin.fail("change", nil)
	settled, err := s.SettlePIN(s.ctx, s.alice, "hsm")
	s.noError("settle", err)
	if settled != Completed || string(s.device.pin) != "the next PIN" || string(twin.pin) != "the next PIN" {
		t.Errorf("%s, PINs %q and %q", settled, s.device.pin, twin.pin)
	}
	s.noError("signing after that", s.signs(s.alice))

	// A replica that does not take the new PIN keeps the old one, and so does the primary.
	twin.fail("change", token.ErrPINInvalid)
	s.wantError("refused by the replica", s.ChangePIN(s.ctx, s.alice, "hsm", []byte("fourth PIN")), token.ErrPINInvalid)
	if string(s.device.pin) != "the next PIN" || string(twin.pin) != "the next PIN" {
		t.Errorf("PINs %q and %q", s.device.pin, twin.pin)
	}
	if record, _ := s.snapshot().Token("hsm"); record.PINStaged {
		t.Error("the refused change is in flight")
	}
	s.noError("signing with the PIN as it was", s.signs(s.alice))
}
