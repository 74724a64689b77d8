-- +goose Up

-- How the database is sealed; no row: it is not. The roster lists every row that was written under the seal.
CREATE TABLE seal_state (
    id     INTEGER PRIMARY KEY CHECK (id = 1),
    key_id BLOB    NOT NULL CHECK (length(key_id) > 0),
    roster BLOB    NOT NULL
) STRICT;

-- The seals that each hold the data key.
CREATE TABLE seals (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    name       TEXT    NOT NULL UNIQUE CHECK (name <> ''),
    kind       TEXT    NOT NULL CHECK (kind <> ''),
    parameters TEXT    NOT NULL,
    wrapped    BLOB    NOT NULL CHECK (length(wrapped) > 0),
    created_at INTEGER NOT NULL
) STRICT;
