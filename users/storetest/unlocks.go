package storetest

import (
	"slices"
	"testing"
	"time"

	"chancery/users"
)

func testLeases(t *testing.T, f *fixture) {
	wanted := f.grant(f.bob, users.RoleSigner)
	wanted.Lease, wanted.LeaseUses = 90*time.Minute+time.Millisecond, 100
	added := must(f.AddGrant(f.ctx, wanted))(t)
	if got, _ := f.snapshot(t).Grant(added.ID); added.Lease != 90*time.Minute || got.Lease != added.Lease || got.LeaseUses != 100 {
		t.Errorf("added %+v, read %+v", added, got)
	}
	added.Lease, added.LeaseUses = 0, 0
	replaced := must(f.ReplaceGrant(f.ctx, added))(t)
	if got, _ := f.snapshot(t).Grant(added.ID); got.Lease != 0 || got.LeaseUses != 0 || replaced.Lease != 0 {
		t.Errorf("replaced by %+v, read %+v", replaced, got)
	}
	for name, change := range map[string]func(*users.Grant){
		"time": func(g *users.Grant) { g.Lease = -time.Hour },
		"uses": func(g *users.Grant) { g.LeaseUses = -1 },
	} {
		negative := replaced
		change(&negative)
		if _, err := f.ReplaceGrant(f.ctx, negative); err == nil {
			t.Errorf("negative %s was stored", name)
		}
	}
}

func testPriorities(t *testing.T, f *fixture) {
	wanted := f.grant(f.bob, users.RoleSigner)
	wanted.Priority = users.MaxPriority
	added := must(f.AddGrant(f.ctx, wanted))(t)
	if got, _ := f.snapshot(t).Grant(added.ID); got.Priority != users.MaxPriority {
		t.Errorf("added %+v, read %+v", added, got)
	}
	added.Priority = 3
	replaced := must(f.ReplaceGrant(f.ctx, added))(t)
	if got, _ := f.snapshot(t).Grant(added.ID); got.Priority != 3 || replaced.Generation <= added.Generation {
		t.Errorf("replaced by %+v, read %+v", replaced, got)
	}
	for _, priority := range []int{-1, users.MaxPriority + 1} {
		replaced.Priority = priority
		if _, err := f.ReplaceGrant(f.ctx, replaced); err == nil {
			t.Errorf("priority %d was stored", priority)
		}
	}
}

func testUnlockFailures(t *testing.T, f *fixture) {
	read := func(want ...users.UnlockFailures) {
		t.Helper()
		if got := must(f.UnlockFailures(f.ctx))(t); !slices.Equal(got, want) {
			t.Errorf("read %+v, want %+v", got, want)
		}
	}
	add := func(user users.User, at time.Time) {
		t.Helper()
		if err := f.AddUnlockFailure(f.ctx, user.ID, f.key.ID, at); err != nil {
			t.Fatal(err)
		}
	}
	forget := func(user users.User) {
		t.Helper()
		if err := f.ClearUnlockFailures(f.ctx, user.ID, f.key.ID); err != nil {
			t.Fatal(err)
		}
	}
	before := f.snapshot(t).Revision
	read()
	first, later := time.Unix(1_900_000_000, 0).UTC(), time.Unix(1_900_000_060, 0).UTC()
	add(f.alice, first)
	add(f.bob, first)
	add(f.bob, later)
	read(users.UnlockFailures{UserID: f.alice.ID, KeyID: f.key.ID, Count: 1, Last: first}, users.UnlockFailures{UserID: f.bob.ID, KeyID: f.key.ID, Count: 2, Last: later})
	forget(f.bob)
	forget(f.bob)
	read(users.UnlockFailures{UserID: f.alice.ID, KeyID: f.key.ID, Count: 1, Last: first})
	if after := f.snapshot(t).Revision; after != before {
		t.Errorf("the revision moved from %d to %d", before, after)
	}
	wantError(t, "of nobody", f.AddUnlockFailure(f.ctx, 4711, f.key.ID, first), users.ErrNotFound)
	wantError(t, "of nothing", f.AddUnlockFailure(f.ctx, f.alice.ID, 4711, first), users.ErrNotFound)
	add(f.bob, later)
	if err := f.DeleteUser(f.ctx, f.bob.Name, 0); err != nil {
		t.Fatal(err)
	}
	read(users.UnlockFailures{UserID: f.alice.ID, KeyID: f.key.ID, Count: 1, Last: first})
	if err := f.DeleteKey(f.ctx, f.key.Name); err != nil {
		t.Fatal(err)
	}
	read()
}
