package sqlite

import (
	"context"
	"database/sql"
	"testing"

	"chancery/access"
	"chancery/users"
)

// inMemory opens a database that no file system slows down.
func inMemory(f *testing.F) *Store {
	f.Helper()
	db, err := sql.Open("sqlite", ":memory:")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { db.Close() })
	db.SetMaxOpenConns(1) // each connection would have a database of its own
	s := &Store{db: db, path: ":memory:"}
	if err := s.migrate(f.Context()); err != nil {
		f.Fatal(err)
	}
	return s
}

// FuzzStoredGrant puts anything into the one grant that there is: it must not take what else there is with it, nor
// open to another PIN.
func FuzzStoredGrant(f *testing.F) {
	s, ctx := inMemory(f), context.Background()
	alice, err := s.AddUser(ctx, "alice")
	if err != nil {
		f.Fatal(err)
	}
	parameters := access.NewParameters()
	parameters.Time, parameters.MemoryKiB, parameters.Threads = access.MinTime, access.MinMemoryKiB, 1
	key, err := access.DeriveKey([]byte("a passphrase"), parameters)
	if err != nil {
		f.Fatal(err)
	}
	binding := access.Binding{TokenSerial: "1", User: "alice", Role: string(users.RoleTokenManager)}
	wrapped, err := access.Wrap([]byte("123456"), key.Public(), binding)
	if err != nil {
		f.Fatal(err)
	}
	_, err = s.AddToken(ctx, users.Token{Name: "t", Driver: "soft", Serial: "1"}, users.Grant{UserID: alice.ID, Access: key.Public(), Wrapped: wrapped})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(key.Public().Bytes(), wrapped, []byte("staged"))
	f.Add([]byte{1}, []byte{0}, []byte{})
	f.Fuzz(func(t *testing.T, accessKey, wrapped, staged []byte) {
		if _, err := s.db.ExecContext(ctx, `UPDATE grants SET access_key = ?, wrapped = ?, staged = ?`, accessKey, wrapped, staged); err != nil {
			return // the table itself refuses it
		}
		snapshot, err := s.Snapshot(ctx)
		if err != nil {
			t.Fatalf("one grant's bytes make everything unreadable: %v", err)
		}
		if len(snapshot.Grants()) == 0 {
			if len(snapshot.Unreadable()) == 0 {
				t.Fatal("the grant is left out, and nothing says so")
			}
			return
		}
		grant := &snapshot.Grants()[0]
		if string(grant.Access.Bytes()) != string(accessKey) {
			t.Fatal("the access key reads back differently")
		}
		if pins, err := snapshot.Unwrap(grant, key); err == nil && string(pins.Current) != "123456" {
			t.Fatalf("opened to %q", pins.Current)
		}
	})
}
