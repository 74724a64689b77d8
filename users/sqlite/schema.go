package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"sync"
)

// object is a table, an index or a program of the database, as it was defined.
type object struct{ kind, name, table, definition string }

// selectObjects reads what SQLite makes by itself too: whoever writes to the file can give any name to what they define. Which
// migrations were made is goose's table, whose definition may change with its releases.
const selectObjects = `SELECT type, name, tbl_name, coalesce(sql, '') FROM sqlite_schema
	WHERE NOT (type = 'table' AND name = 'goose_db_version') ORDER BY type, name`

// ours is what the migrations define, taken from a database that they have just made.
var ours = sync.OnceValues(func() ([]object, error) {
	db, err := sql.Open("sqlite", ":memory:")
	if err != nil {
		return nil, err
	}
	defer db.Close()
	db.SetMaxOpenConns(1) // each connection would have a database of its own
	s := &Store{db: db, path: "in memory"}
	if err := s.migrate(context.Background()); err != nil {
		return nil, err
	}
	return readObjects(db.QueryContext(context.Background(), selectObjects))
})

func readObjects(rows *sql.Rows, err error) ([]object, error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var objects []object
	for rows.Next() {
		var o object
		if err := rows.Scan(&o.kind, &o.name, &o.table, &o.definition); err != nil {
			return nil, err
		}
		objects = append(objects, o)
	}
	return objects, rows.Err()
}

// refuseOtherSchema refuses a database in which somebody defined something else than the migrations do: a trigger would run in
// the middle of our changes, a default or a foreign key's action would alter rows that the roster then lists as ours.
func (r *reader) refuseOtherSchema() error {
	want, err := ours()
	if err != nil {
		return fmt.Errorf("users/sqlite: the tables as they are made: %w", err)
	}
	found, err := readObjects(r.tx.QueryContext(r.ctx, selectObjects))
	if err == nil && !slices.Equal(found, want) {
		return errSchema
	}
	return err
}
