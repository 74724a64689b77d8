package storetest

import (
	"reflect"
	"testing"

	"chancery/users"
)

// newReplica is one of the fixture's token.
func (f *fixture) newReplica(name string) users.Replica {
	return users.Replica{TokenID: f.token.ID, Name: name, Driver: "soft", Location: "/tokens/" + name, Serial: "serial of " + name, Label: "label", MaxSessions: 2}
}

func testReplicas(t *testing.T, f *fixture) {
	first := must(f.AddReplica(f.ctx, f.newReplica("second home"), 0))(t)
	second := must(f.AddReplica(f.ctx, f.newReplica("third home"), 0))(t)
	got := f.currentToken(t)
	if want := []users.Replica{first, second}; !reflect.DeepEqual(got.Replicas, want) {
		t.Errorf("read %+v\nadded %+v", got.Replicas, want)
	}
	homes := got.Homes()
	if len(homes) != 3 || homes[0].ID != f.token.ID || homes[0].Replicas != nil || homes[1].Name != "second home" || homes[2].Serial != second.Serial {
		t.Errorf("homes %+v", homes)
	}
	found, primary, ok := f.snapshot(t).Replica("third home")
	if !ok || found.ID != second.ID || primary.ID != f.token.ID {
		t.Errorf("found %+v of %+v, %v", found, primary, ok)
	}
	before := f.snapshot(t).Revision
	if err := f.RemoveReplica(f.ctx, "second home"); err != nil {
		t.Fatal(err)
	}
	s := f.snapshot(t)
	if _, _, ok := s.Replica("second home"); ok || s.Revision == before {
		t.Error("the removed replica is there, or nobody learns of it")
	}
	wantError(t, "removing again", f.RemoveReplica(f.ctx, "second home"), users.ErrNotFound)
	wantError(t, "removing a token as a replica", f.RemoveReplica(f.ctx, f.token.Name), users.ErrNotFound)
	if err := f.DeleteKey(f.ctx, f.key.Name); err != nil {
		t.Fatal(err)
	}
	if err := f.RemoveToken(f.ctx, f.token.Name); err != nil {
		t.Fatal(err)
	}
	if _, _, ok := f.snapshot(t).Replica("third home"); ok {
		t.Error("the replica of a removed token is there")
	}
}

func testRefusedReplicas(t *testing.T, f *fixture) {
	must(f.AddReplica(f.ctx, f.newReplica("twin"), 0))(t)
	for name, c := range map[string]struct {
		change  func(*users.Replica)
		version int64
		want    error
	}{
		"a token's name":          {func(r *users.Replica) { r.Name = f.token.Name }, 0, users.ErrExists},
		"a token's serial number": {func(r *users.Replica) { r.Serial = f.token.Serial }, 0, users.ErrExists},
		"a replica's name":        {func(r *users.Replica) { r.Name = "twin" }, 0, users.ErrExists},
		"a replica's serial":      {func(r *users.Replica) { r.Serial = "serial of twin" }, 0, users.ErrExists},
		"no such token":           {func(r *users.Replica) { r.TokenID = 4711 }, 0, users.ErrNotFound},
		"a bad name":              {func(r *users.Replica) { r.Name = "a/b" }, 0, users.ErrName},
		"another PIN":             {func(*users.Replica) {}, 4711, users.ErrStale},
	} {
		r := f.newReplica("other")
		c.change(&r)
		_, err := f.AddReplica(f.ctx, r, c.version)
		wantError(t, name, err, c.want)
	}
	manager := f.grant(f.bob, users.RoleTokenManager)
	_, err := f.AddToken(f.ctx, f.newToken("twin"), manager)
	wantError(t, "a token with a replica's name", err, users.ErrExists)
	same := f.newToken("other")
	same.Serial = "serial of twin"
	_, err = f.AddToken(f.ctx, same, manager)
	wantError(t, "a token with a replica's serial number", err, users.ErrExists)
	version := must(f.StagePIN(f.ctx, f.token.ID, f.staged(t)))(t)
	_, err = f.AddReplica(f.ctx, f.newReplica("other"), version)
	wantError(t, "in the middle of a PIN change", err, users.ErrPINChangeInFlight)
	if got := f.currentToken(t).Replicas; len(got) != 1 {
		t.Errorf("replicas %+v", got)
	}
}
