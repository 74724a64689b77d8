package sqlite

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"chancery/token"
	"chancery/users"
	"chancery/users/storetest"
)

// TestWhatCannotBeReadIsLeftOutAlone damages rows in ways that no method can, and looks that nobody can use them, while
// what is revoked otherwise is seen.
func TestWhatCannotBeReadIsLeftOutAlone(t *testing.T) {
	for name, c := range map[string]struct {
		damage string
		gone   []string // kind and ID
		kept   int      // keys that bob can still use
	}{
		"a grant's access key":           {`UPDATE grants SET access_key = x'00' WHERE id = 3`, []string{"grant 3"}, 1},
		"a key's algorithm":              {`UPDATE keys SET algorithm = 'rot13' WHERE id = 1`, []string{"key 1", "grant 2", "grant 3"}, 1},
		"a key's public half":            {`UPDATE keys SET public = x'00' WHERE id = 1`, []string{"key 1", "grant 2", "grant 3"}, 1},
		"a key on another token":         {`UPDATE keys SET token_id = 9 WHERE id = 1`, []string{"key 1", "grant 2", "grant 3"}, 1},
		"a grant of nobody":              {`UPDATE grants SET user_id = 9 WHERE id = 2`, []string{"grant 2"}, 2},
		"a grant on another token":       {`UPDATE grants SET token_id = 9 WHERE id = 3`, []string{"grant 3"}, 1},
		"a token":                        {`UPDATE tokens SET hardware = 7`, []string{"token 1", "key 1", "key 2", "grant 1", "grant 2", "grant 3", "grant 4", "grant 5"}, 0},
		"a user who is neither one":      {`UPDATE users SET disabled = 2 WHERE name = 'bob'`, []string{"user 2", "grant 3", "grant 5"}, 0},
		"a replica of no token":          {`INSERT INTO replicas (token_id, name, driver, location, serial, label, max_sessions, created_at) VALUES (9, 'x', 'soft', '/x', 'X', '', 0, 0)`, []string{"replica 1"}, 2},
		"nothing":                        {`UPDATE users SET disabled = 0`, nil, 2},
		"a time that is none, but a row": {`UPDATE users SET created_at = -1`, nil, 2},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, filepath.Join(t.TempDir(), "users.db"))
			populate(t, s)
			for _, statement := range []string{"PRAGMA foreign_keys = 0", "PRAGMA ignore_check_constraints = 1", c.damage} {
				if _, err := s.db.ExecContext(t.Context(), statement); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.SetUserDisabled(t.Context(), "alice", true); err != nil {
				t.Fatal(err)
			}
			snapshot, err := s.Snapshot(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var gone []string
			for _, row := range snapshot.Unreadable() {
				gone = append(gone, strings.Split(row.String(), ":")[0])
				if !errors.Is(row.Err, users.ErrUnreadable) {
					t.Errorf("%v", row.Err)
				}
			}
			slices.Sort(gone)
			slices.Sort(c.gone)
			if !slices.Equal(gone, c.gone) {
				t.Errorf("left out %q, want %q", gone, c.gone)
			}
			if alice, ok := snapshot.User("alice"); !ok || !alice.Disabled {
				t.Error("that alice was disabled is not seen")
			}
			if kept := len(snapshot.GrantsOf(2)); kept != c.kept {
				t.Errorf("bob has %d grants", kept)
			}
		})
	}
}

// populate adds alice, who manages a token with two keys, and bob, who may sign with both.
func populate(t *testing.T, s *Store) {
	t.Helper()
	half := storetest.PublicKey(t, "a passphrase")
	fail := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	grant := func(user int64, role users.Role) users.Grant {
		return users.Grant{UserID: user, TokenID: 1, Role: role, Access: half, Wrapped: []byte("wrapped"), CreatedBy: "operator"}
	}
	for _, name := range []string{"alice", "bob"} {
		_, err := s.AddUser(t.Context(), name)
		fail(err)
	}
	_, err := s.AddToken(t.Context(), users.Token{Name: "hsm", Driver: "soft", Location: "/tokens", Serial: "S", Label: "hsm"}, grant(1, users.RoleTokenManager))
	fail(err)
	for _, name := range []string{"first", "second"} {
		sum := sha256.Sum256([]byte(name))
		key, err := s.AddKey(t.Context(), users.Key{
			Name: name, TokenID: 1, TokenKeyID: []byte(name), Algorithm: token.P256, Public: []byte(name),
			Handle: strings.ToUpper(hex.EncodeToString(sum[:])), Origin: users.OriginGenerated,
		}, grant(1, users.RoleManager))
		fail(err)
		signer := grant(2, users.RoleSigner)
		signer.KeyID = key.ID
		_, err = s.AddGrant(t.Context(), signer)
		fail(err)
	}
}

func TestAFailedUnlockThatCannotBeReadIsNotForgotten(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "users.db"))
	populate(t, s)
	for _, statement := range []string{
		"PRAGMA ignore_check_constraints = 1",
		"INSERT INTO unlock_failures (user_id, key_id, count, last_at) VALUES (1, 1, 9223372036854775807, 0)",
		"ALTER TABLE unlock_failures RENAME COLUMN count TO counted",
		"ALTER TABLE unlock_failures ADD COLUMN count TEXT DEFAULT 'many'",
	} {
		if _, err := s.db.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	if failures, err := s.UnlockFailures(t.Context()); !errors.Is(err, users.ErrUnreadable) {
		t.Errorf("%v, %v", failures, err)
	}
}
