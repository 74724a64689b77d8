package admin

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/access"
	"chancery/token"
	"chancery/users"
)

func TestGrantingByPassphraseAndByEnrolment(t *testing.T) {
	for name, grantee := range map[string]Grantee{
		"typed":    typed("bob", bobPass),
		"enrolled": enrolled(t, "bob", bobPass),
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			s.forgetSent()
			g := s.grant(users.RoleSigner, grantee)
			if len(s.device.sent) != 0 {
				t.Error("granting sent a PIN to the token")
			}
			if g.CreatedBy != "alice" || g.Role != users.RoleSigner {
				t.Errorf("grant %+v", g)
			}
			s.noError("bob signs", s.signs(s.bob))
			s.noError("revoke", s.RevokeGrant(s.ctx, "bob", Target{Key: "release"}, false))
			s.wantError("bob signs after that", s.signs(s.bob), ErrNotManager)
		})
	}
}

func TestAddGrantRefuses(t *testing.T) {
	release, hsm := Target{Key: "release"}, Target{Token: "hsm"}
	s := newScene(t)
	for _, name := range []string{"dora", "erik", "yuri", "zoe"} {
		_, err := s.Store.AddUser(s.ctx, name)
		s.noError("add user", err)
	}
	s.grant(users.RoleSigner, enrolled(t, "bob", bobPass))
	s.grant(users.RoleManager, typed("dora", "a passphrase of dora"))
	s.grant(users.RoleTokenManager, typed("erik", "a passphrase of erik"))
	s.grant(users.RoleManager, typed("yuri", "a passphrase of yuri"))
	for _, name := range []string{"yuri", "zoe"} {
		s.noError("disable", s.Store.SetUserDisabled(s.ctx, name, true))
	}
	carol, mallory := enrolled(t, "carol", carolPass), enrolled(t, "mallory", carolPass)
	before := len(s.snapshot().Grants())
	for name, test := range map[string]struct {
		actor   string
		spec    GrantSpec
		grantee Grantee
		want    error
	}{
		"actor holds nothing":              {actor: "carol", spec: GrantSpec{Target: release, Role: users.RoleSigner}, want: ErrNotManager},
		"actor only signs":                 {actor: "bob", spec: GrantSpec{Target: release, Role: users.RoleSigner}, want: ErrNotManager},
		"key manager grants the token":     {actor: "dora", spec: GrantSpec{Target: hsm, Role: users.RoleTokenManager}, want: ErrNotManager},
		"token manager grants a key":       {actor: "erik", spec: GrantSpec{Target: release, Role: users.RoleSigner}, want: ErrNotManager},
		"unknown actor":                    {actor: "nobody", spec: GrantSpec{Target: release, Role: users.RoleSigner}, want: users.ErrNotFound},
		"disabled actor":                   {actor: "yuri", spec: GrantSpec{Target: release, Role: users.RoleSigner}, want: ErrUserDisabled},
		"disabled grantee":                 {spec: GrantSpec{Target: release, Role: users.RoleSigner}, grantee: typed("zoe", carolPass), want: ErrUserDisabled},
		"unknown grantee":                  {spec: GrantSpec{Target: release, Role: users.RoleSigner}, grantee: Grantee{User: "nobody", Enrolment: &access.Enrolment{User: "nobody", Key: carol.Enrolment.Key}}, want: users.ErrNotFound},
		"unknown key":                      {spec: GrantSpec{Target: Target{Key: "none"}, Role: users.RoleSigner}, want: users.ErrNotFound},
		"unknown token":                    {spec: GrantSpec{Target: Target{Token: "none"}, Role: users.RoleTokenManager}, want: users.ErrNotFound},
		"held already":                     {spec: GrantSpec{Target: release, Role: users.RoleManager}, grantee: Grantee{User: "bob", Enrolment: &access.Enrolment{User: "bob", Key: carol.Enrolment.Key}}, want: users.ErrExists},
		"to oneself":                       {spec: GrantSpec{Target: release, Role: users.RoleSigner}, grantee: Grantee{User: "alice"}, want: users.ErrExists},
		"expired before it began":          {spec: GrantSpec{Target: release, Role: users.RoleSigner, Expires: time.Now().Add(-time.Minute)}, want: ErrRequest},
		"role of a token on a key":         {spec: GrantSpec{Target: release, Role: users.RoleTokenManager}, want: ErrRequest},
		"role of a key on a token":         {spec: GrantSpec{Target: hsm, Role: users.RoleSigner}, want: ErrRequest},
		"no such role":                     {spec: GrantSpec{Target: release, Role: "king"}, want: ErrRequest},
		"key and token":                    {spec: GrantSpec{Target: Target{Key: "release", Token: "hsm"}, Role: users.RoleSigner}, want: ErrRequest},
		"nothing":                          {spec: GrantSpec{Role: users.RoleSigner}, want: ErrRequest},
		"short passphrase":                 {spec: GrantSpec{Target: release, Role: users.RoleSigner}, grantee: typed("carol", "short"), want: ErrRequest},
		"empty passphrase":                 {spec: GrantSpec{Target: release, Role: users.RoleSigner}, grantee: Grantee{User: "carol", Passphrase: []byte{}}, want: ErrRequest},
		"neither passphrase nor enrolment": {spec: GrantSpec{Target: release, Role: users.RoleSigner}, grantee: Grantee{User: "carol"}, want: ErrRequest},
		"enrolment of another user": {spec: GrantSpec{Target: release, Role: users.RoleSigner},
			grantee: Grantee{User: "carol", Enrolment: mallory.Enrolment}, want: ErrRequest},
		"both": {spec: GrantSpec{Target: release, Role: users.RoleSigner},
			grantee: Grantee{User: "carol", Passphrase: []byte(carolPass), Enrolment: carol.Enrolment}, want: ErrRequest},
	} {
		actor := s.alice
		if test.actor != "" {
			actor = Actor{test.actor, []byte("a passphrase of " + test.actor)}
		}
		if test.grantee.User == "" {
			test.grantee = carol
		}
		_, err := s.AddGrant(s.ctx, actor, test.spec, test.grantee)
		s.wantError(name, err, test.want)
		if after := len(s.snapshot().Grants()); after != before {
			t.Fatalf("%s: something was granted", name)
		}
	}
}

func TestErrorTellsWhoManages(t *testing.T) {
	s := newScene(t)
	_, err := s.AddGrant(s.ctx, s.bob, GrantSpec{Target: Target{Key: "release"}, Role: users.RoleSigner}, typed("carol", carolPass))
	if err == nil || !strings.Contains(err.Error(), `its managers are "alice"`) {
		t.Errorf("error %v", err)
	}
}

func TestManagersGrantOn(t *testing.T) {
	s := newScene(t)
	s.grant(users.RoleManager, enrolled(t, "bob", bobPass))
	_, err := s.AddGrant(s.ctx, s.bob, GrantSpec{Target: Target{Key: "release"}, Role: users.RoleSigner}, typed("carol", carolPass))
	s.noError("bob grants", err)
	s.noError("carol signs", s.signs(Actor{"carol", []byte(carolPass)}))
	_, err = s.CreateKey(s.ctx, s.bob, KeySpec{Name: "k", Token: "hsm"}, token.P256)
	s.wantError("a key's manager makes keys", err, ErrNotManager)
	s.grant(users.RoleTokenManager, Grantee{User: "bob", Enrolment: enrolled(t, "bob", bobPass).Enrolment})
	_, err = s.CreateKey(s.ctx, s.bob, KeySpec{Name: "k", Token: "hsm"}, token.P256)
	s.noError("a token's manager makes keys", err)
}

func TestGrantEnds(t *testing.T) {
	s := newScene(t)
	now := time.Now()
	s.Now = func() time.Time { return now }
	_, err := s.AddGrant(s.ctx, s.alice, GrantSpec{Target: Target{Key: "release"}, Role: users.RoleManager, Expires: now.Add(time.Hour)}, typed("bob", bobPass))
	s.noError("grant", err)
	s.noError("bob signs", s.signs(s.bob))
	now = now.Add(time.Hour)
	s.forgetSent()
	s.wantError("bob signs an hour later", s.signs(s.bob), ErrExpired)
	_, err = s.AddGrant(s.ctx, s.bob, GrantSpec{Target: Target{Key: "release"}, Role: users.RoleSigner}, typed("carol", carolPass))
	s.wantError("bob grants an hour later", err, ErrExpired)
	if len(s.device.sent) != 0 {
		t.Error("an expired grant's PIN was sent")
	}
}

func TestDisabledUserAndKey(t *testing.T) {
	s := newScene(t)
	s.noError("disable", s.Store.SetKeyDisabled(s.ctx, "release", true))
	s.wantError("disabled key", s.signs(s.alice), ErrKeyDisabled)
	s.noError("enable", s.Store.SetKeyDisabled(s.ctx, "release", false))
	s.noError("disable", s.Store.SetUserDisabled(s.ctx, "alice", true))
	s.wantError("disabled user", s.signs(s.alice), ErrUserDisabled)
	s.wantError("unknown key", signs(t, s.Office, s.alice, "none"), users.ErrNotFound)
}

func TestLastManagerStays(t *testing.T) {
	s := newScene(t)
	release, hsm := Target{Key: "release"}, Target{Token: "hsm"}
	s.grant(users.RoleSigner, typed("carol", carolPass))
	for _, target := range []Target{release, hsm} {
		s.wantError("only one on "+target.String(), s.RevokeGrant(s.ctx, "alice", target, false), ErrLastManager)
	}
	s.wantError("delete the only one", s.DeleteUser(s.ctx, "alice", false), ErrLastManager)
	s.grant(users.RoleManager, typed("bob", bobPass))
	s.grant(users.RoleTokenManager, typed("bob", bobPass))
	s.noError("disable", s.Store.SetUserDisabled(s.ctx, "bob", true))
	s.wantError("the other is disabled", s.RevokeGrant(s.ctx, "alice", release, false), ErrLastManager)
	s.noError("enable", s.Store.SetUserDisabled(s.ctx, "bob", false))
	s.noError("one of two", s.RevokeGrant(s.ctx, "alice", release, false))
	s.wantError("again", s.RevokeGrant(s.ctx, "alice", release, false), users.ErrNotFound)
	s.noError("delete one of two", s.DeleteUser(s.ctx, "alice", false))
	s.noError("force", s.RevokeGrant(s.ctx, "bob", hsm, true))
	s.wantError("unknown user", s.RevokeGrant(s.ctx, "nobody", hsm, false), users.ErrNotFound)
	s.wantError("unknown key", s.RevokeGrant(s.ctx, "bob", Target{Key: "none"}, false), users.ErrNotFound)
	s.wantError("nothing named", s.RevokeGrant(s.ctx, "bob", Target{}, false), ErrRequest)
	s.wantError("delete nobody", s.DeleteUser(s.ctx, "nobody", false), users.ErrNotFound)
	s.noError("delete who only signs", s.DeleteUser(s.ctx, "carol", false))
	s.noError("delete by force", s.DeleteUser(s.ctx, "bob", true))
}

// meanwhile is a store in which something happens just before a change of another operator's arrives.
type meanwhile struct {
	users.Store
	act func()
}

func (m *meanwhile) once() {
	if act := m.act; act != nil {
		m.act = nil
		act()
	}
}

func (m *meanwhile) RevokeGrant(ctx context.Context, id, revision int64) error {
	m.once()
	return m.Store.RevokeGrant(ctx, id, revision)
}

func (m *meanwhile) DeleteUser(ctx context.Context, name string, revision int64) error {
	m.once()
	return m.Store.DeleteUser(ctx, name, revision)
}

func TestTwoOperatorsDoNotTakeTheLastTwoManagersAway(t *testing.T) {
	release, hsm := Target{Key: "release"}, Target{Token: "hsm"}
	for name, act := range map[string]func(context.Context, *Office, string) error{
		"revoke": func(ctx context.Context, o *Office, user string) error {
			return o.RevokeGrant(ctx, user, release, false)
		},
		"delete": func(ctx context.Context, o *Office, user string) error { return o.DeleteUser(ctx, user, false) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			s.grant(users.RoleManager, typed("bob", bobPass))
			s.grant(users.RoleTokenManager, typed("bob", bobPass))
			other := *s.Office
			s.Store = &meanwhile{s.Store, func() { s.noError("the other operator", act(s.ctx, &other, "bob")) }}
			s.wantError("the last one", act(s.ctx, s.Office, "alice"), ErrLastManager)
			snapshot, err := s.Store.Snapshot(s.ctx)
			s.noError("read", err)
			if managers(snapshot, release) == "nobody" || managers(snapshot, hsm) == "nobody" {
				t.Error("nobody is left to manage the key or the token")
			}
		})
	}
}

func TestChangePassphrase(t *testing.T) {
	s := newScene(t)
	before := s.grant(users.RoleSigner, typed("bob", bobPass))
	release := Target{Key: "release"}
	s.forgetSent()
	changed, err := s.ChangePassphrase(s.ctx, s.bob, release, typed("bob", "bob's next passphrase"))
	s.noError("change", err)
	if changed.Generation <= before.Generation {
		t.Error("sessions unlocked with the old passphrase stay unlocked")
	}
	if len(s.device.sent) != 0 {
		t.Error("changing a passphrase sent a PIN to the token")
	}
	s.wantError("old passphrase", s.signs(s.bob), access.ErrWrongPassphrase)
	next := Actor{"bob", []byte("bob's next passphrase")}
	s.noError("new passphrase", s.signs(next))
	_, err = s.ChangePassphrase(s.ctx, next, release, enrolled(t, "bob", bobPass))
	s.noError("change by enrolment", err)
	s.noError("enrolled passphrase", s.signs(s.bob))

	_, err = s.ChangePassphrase(s.ctx, s.bob, release, typed("bob", "short"))
	s.wantError("too short", err, ErrRequest)
	_, err = s.ChangePassphrase(s.ctx, s.bob, release, typed("carol", carolPass))
	s.wantError("for somebody else", err, ErrRequest)
	_, err = s.ChangePassphrase(s.ctx, s.bob, release, Grantee{})
	s.wantError("nothing new", err, ErrRequest)
	_, err = s.ChangePassphrase(s.ctx, s.bob, Target{Token: "hsm"}, typed("bob", carolPass))
	s.wantError("no such grant", err, users.ErrNotFound)
}

// Many managers grant at once while the PIN changes: all that was granted opens in the end.
func TestGrantsRaceAPINChange(t *testing.T) {
	const n = 4
	s := newScene(t)
	names := []string{"u0", "u1", "u2", "u3"}
	for _, name := range names {
		_, err := s.Store.AddUser(s.ctx, name)
		s.noError("add user", err)
	}
	var grantees []Grantee
	for _, name := range names {
		grantees = append(grantees, enrolled(t, name, "passphrase of "+name))
	}
	var group sync.WaitGroup
	granted := make([]bool, n)
	for i := range names {
		group.Go(func() {
			_, err := s.AddGrant(s.ctx, s.alice, GrantSpec{Target: Target{Key: "release"}, Role: users.RoleSigner}, grantees[i])
			granted[i] = err == nil
			if err != nil {
				s.wantError("grant", err, users.ErrStale)
			}
		})
	}
	for _, pin := range []string{"111111", "222222", "333333"} {
		if err := s.ChangePIN(s.ctx, s.alice, "hsm", []byte(pin)); err != nil {
			s.wantError("change PIN", err, users.ErrStale)
		}
	}
	group.Wait()
	for i, name := range names {
		if granted[i] {
			s.noError(name+" signs", s.signs(Actor{name, []byte("passphrase of " + name)}))
		}
	}
	if s.device.wrong != 0 {
		t.Error("a wrong PIN was sent")
	}
}
