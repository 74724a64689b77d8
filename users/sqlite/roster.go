package sqlite

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"chancery/users"
)

// A roster is the list of all rows that were written under the seal, with a digest of each. It is stored authenticated under
// the data key together with the revision, and written anew by every change. So a row that was planted, altered,
// exchanged or put back from an older copy is not on it, and a row that was taken away is missed.
type roster map[rowID]digest

type digest = [sha256.Size]byte

type rowID struct {
	kind string
	id   int64
}

// String names the row as users.Unreadable does.
func (r rowID) String() string { return fmt.Sprintf("%s %d", r.kind, r.id) }

// kinds are the rows that a roster lists, by the number that stands for each in its encoding. Failed unlocks are
// not among them: they are counted without the data key.
var kinds = map[string]byte{kindUser: 1, kindToken: 2, kindKey: 3, kindCertificate: 4, kindGrant: 5, kindSeal: 6, kindReplica: 7}

const (
	rosterVersion   = 1
	rosterEntrySize = 1 + 8 + sha256.Size // kind, identifier, digest
)

// encode writes version, then each row by kind and identifier.
func (r roster) encode() []byte {
	rows := make([]rowID, 0, len(r))
	for row := range r {
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b rowID) int {
		return cmp.Or(cmp.Compare(kinds[a.kind], kinds[b.kind]), cmp.Compare(a.id, b.id))
	})
	encoded := make([]byte, 0, 1+len(rows)*rosterEntrySize)
	encoded = append(encoded, rosterVersion)
	for _, row := range rows {
		sum := r[row]
		encoded = append(encoded, kinds[row.kind])
		encoded = binary.BigEndian.AppendUint64(encoded, uint64(row.id))
		encoded = append(encoded, sum[:]...)
	}
	return encoded
}

var errRoster = errors.New("its list of rows is of an unknown form")

func decodeRoster(encoded []byte) (roster, error) {
	if len(encoded) == 0 || encoded[0] != rosterVersion || (len(encoded)-1)%rosterEntrySize != 0 {
		return nil, errRoster
	}
	names := make(map[byte]string, len(kinds))
	for name, number := range kinds {
		names[number] = name
	}
	r := make(roster)
	for entry := range slices.Chunk(encoded[1:], rosterEntrySize) {
		kind, known := names[entry[0]]
		if !known {
			return nil, errRoster
		}
		r[rowID{kind, int64(binary.BigEndian.Uint64(entry[1:]))}] = digest(entry[9:])
	}
	return r, nil
}

// digestOf is over all that a query reads of a row. A column that is NULL or 0 is left out, so that a later version's
// column with such a default changes no row's digest; where a column may be NULL, 0 says the same.
func digestOf(kind string, rows *sql.Rows) (digest, error) {
	columns, err := rows.Columns()
	if err != nil {
		return digest{}, err
	}
	values, targets := make([]any, len(columns)), make([]any, len(columns))
	for i := range values {
		targets[i] = &values[i]
	}
	if err := rows.Scan(targets...); err != nil {
		return digest{}, err
	}
	fields := make([][]byte, 0, len(columns))
	for i, value := range values {
		field, err := encodeField(columns[i], value)
		if err != nil {
			return digest{}, err
		}
		if field != nil {
			fields = append(fields, field)
		}
	}
	slices.SortFunc(fields, bytes.Compare)
	sum := sha256.New()
	sum.Write(appendSized(nil, []byte("chancery sealed row"), []byte(kind)))
	for _, field := range fields {
		sum.Write(field)
	}
	return digest(sum.Sum(nil)), nil
}

// encodeField gives no two columns or values the same bytes; nil for NULL and 0.
func encodeField(column string, value any) ([]byte, error) {
	field := appendSized(nil, []byte(column))
	switch v := value.(type) {
	case nil:
		return nil, nil
	case int64:
		if v == 0 {
			return nil, nil
		}
		return binary.BigEndian.AppendUint64(append(field, 'i'), uint64(v)), nil
	case string:
		return appendSized(append(field, 't'), []byte(v)), nil
	case []byte:
		return appendSized(append(field, 'b'), v), nil
	}
	return nil, fmt.Errorf("%w: column %s holds a %T", users.ErrUnreadable, column, value)
}

func appendSized(to []byte, fields ...[]byte) []byte {
	for _, field := range fields {
		to = binary.BigEndian.AppendUint32(to, uint32(len(field)))
		to = append(to, field...)
	}
	return to
}
