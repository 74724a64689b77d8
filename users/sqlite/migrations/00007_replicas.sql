-- +goose Up

-- Further tokens that hold the same key pairs. That their names and serial numbers differ from all tokens', too, every
-- change that adds one looks after.
CREATE TABLE replicas (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    token_id     INTEGER NOT NULL REFERENCES tokens (id) ON DELETE CASCADE,
    name         TEXT    NOT NULL UNIQUE CHECK (name <> ''),
    driver       TEXT    NOT NULL CHECK (driver <> ''),
    location     TEXT    NOT NULL,
    serial       TEXT    NOT NULL UNIQUE CHECK (serial <> ''),
    label        TEXT    NOT NULL,
    max_sessions INTEGER NOT NULL CHECK (max_sessions >= 0),
    created_at   INTEGER NOT NULL
) STRICT;

CREATE INDEX replicas_of_token ON replicas (token_id);
