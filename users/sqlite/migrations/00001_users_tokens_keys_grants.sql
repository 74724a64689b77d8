-- +goose Up

-- Identifiers are never used again (AUTOINCREMENT): a session that remembers one must not
-- meet somebody else under it. Times are seconds since 1970 in UTC.

CREATE TABLE revision (
    id     INTEGER PRIMARY KEY CHECK (id = 1),
    number INTEGER NOT NULL
) STRICT;

INSERT INTO revision (id, number) VALUES (1, 0);

CREATE TABLE users (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    name       TEXT    NOT NULL UNIQUE CHECK (name <> ''),
    disabled   INTEGER NOT NULL DEFAULT 0 CHECK (disabled IN (0, 1)),
    created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE tokens (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    name            TEXT    NOT NULL UNIQUE CHECK (name <> ''),
    driver          TEXT    NOT NULL CHECK (driver <> ''),
    location        TEXT    NOT NULL,
    serial          TEXT    NOT NULL UNIQUE CHECK (serial <> ''),
    label           TEXT    NOT NULL,
    hardware        INTEGER NOT NULL CHECK (hardware IN (0, 1)),
    max_sessions    INTEGER NOT NULL CHECK (max_sessions >= 0),
    reload          INTEGER NOT NULL DEFAULT 0,
    pin_version     INTEGER NOT NULL DEFAULT 0,
    pin_staged      INTEGER NOT NULL DEFAULT 0 CHECK (pin_staged IN (0, 1)),
    pin_rejected    INTEGER NOT NULL DEFAULT 0 CHECK (pin_rejected IN (0, 1)),
    staged_rejected INTEGER NOT NULL DEFAULT 0 CHECK (staged_rejected IN (0, 1)),
    created_at      INTEGER NOT NULL
) STRICT;

CREATE TABLE keys (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    name         TEXT    NOT NULL UNIQUE CHECK (name <> ''),
    token_id     INTEGER NOT NULL REFERENCES tokens (id) ON DELETE RESTRICT,
    token_key_id BLOB    NOT NULL CHECK (length(token_key_id) BETWEEN 1 AND 64),
    algorithm    TEXT    NOT NULL CHECK (algorithm <> ''),
    public       BLOB    NOT NULL,
    handle       TEXT    NOT NULL CHECK (length(handle) = 64),
    origin       TEXT    NOT NULL CHECK (origin IN ('generated', 'adopted', 'imported')),
    disabled     INTEGER NOT NULL DEFAULT 0 CHECK (disabled IN (0, 1)),
    created_at   INTEGER NOT NULL,
    UNIQUE (token_id, token_key_id),
    UNIQUE (id, token_id)
) STRICT;

CREATE TABLE certificates (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    key_id      INTEGER NOT NULL REFERENCES keys (id) ON DELETE CASCADE,
    kind        TEXT    NOT NULL CHECK (kind IN ('x509', 'openpgp')),
    name        TEXT    NOT NULL,
    fingerprint TEXT    NOT NULL CHECK (fingerprint <> ''),
    armored     TEXT    NOT NULL,
    created_at  INTEGER NOT NULL,
    UNIQUE (key_id, kind, fingerprint)
) STRICT;

-- A grant's token is its key's token: the pair refers to keys (id, token_id).
CREATE TABLE grants (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id    INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    token_id   INTEGER NOT NULL REFERENCES tokens (id) ON DELETE CASCADE,
    key_id     INTEGER,
    role       TEXT    NOT NULL CHECK (role IN ('token-manager', 'manager', 'signer')),
    expires    INTEGER CHECK (expires > 0),
    generation INTEGER NOT NULL,
    access_key BLOB    NOT NULL,
    wrapped    BLOB    NOT NULL CHECK (length(wrapped) > 0),
    staged     BLOB    CHECK (length(staged) > 0),
    created_at INTEGER NOT NULL,
    created_by TEXT    NOT NULL,
    CHECK ((role = 'token-manager') = (key_id IS NULL)),
    FOREIGN KEY (key_id, token_id) REFERENCES keys (id, token_id) ON DELETE CASCADE
) STRICT;

CREATE UNIQUE INDEX one_grant_a_key ON grants (user_id, key_id) WHERE key_id IS NOT NULL;
CREATE UNIQUE INDEX one_grant_a_token ON grants (user_id, token_id) WHERE key_id IS NULL;
CREATE INDEX grants_of_token ON grants (token_id);
CREATE INDEX grants_of_key ON grants (key_id, token_id);
