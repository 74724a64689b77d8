-- +goose Up

-- How long an unlock lasts, and for how many signatures. 0: the server's default, and any number.
ALTER TABLE grants ADD COLUMN lease_seconds INTEGER NOT NULL DEFAULT 0 CHECK (lease_seconds >= 0);
ALTER TABLE grants ADD COLUMN lease_uses INTEGER NOT NULL DEFAULT 0 CHECK (lease_uses >= 0);

-- Wrong passphrases since the last right one.
CREATE TABLE unlock_failures (
    user_id INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    key_id  INTEGER NOT NULL REFERENCES keys (id) ON DELETE CASCADE,
    count   INTEGER NOT NULL CHECK (count > 0),
    last_at INTEGER NOT NULL,
    PRIMARY KEY (user_id, key_id)
) STRICT, WITHOUT ROWID;
