package main

import (
	"slices"
	"testing"
	"time"

	"chancery/admin"
	"chancery/users"
)

func TestOnlyWhoCanActNowCountsAsManager(t *testing.T) {
	past, future := time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	people := []users.User{{ID: 1, Name: "alice"}, {ID: 2, Name: "carol"}, {ID: 3, Name: "dave", Disabled: true}, {ID: 4, Name: "erin"}, {ID: 5, Name: "bob"}}
	var grants []users.Grant
	for i, expires := range []time.Time{{}, past, {}, future} {
		user := people[i].ID
		grants = append(grants,
			users.Grant{ID: 10 + user, UserID: user, TokenID: 1, Role: users.RoleTokenManager, Expires: expires},
			users.Grant{ID: 20 + user, UserID: user, TokenID: 1, KeyID: 1, Role: users.RoleManager, Expires: expires})
	}
	grants = append(grants, users.Grant{ID: 30, UserID: 5, TokenID: 1, KeyID: 1, Role: users.RoleSigner})
	s := users.NewSnapshot(1, people, []users.Token{{ID: 1, Name: "desk"}}, []users.Key{{ID: 1, TokenID: 1, Name: "release"}}, grants)
	for _, target := range []admin.Target{{Token: "desk"}, {Key: "release"}} {
		if names := managersOf(s, target); !slices.Equal(names, []string{"alice", "erin"}) {
			t.Errorf("managers of %s: %q", target, names)
		}
	}
}
