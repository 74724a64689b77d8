-- +goose Up

-- The pin_version with which the present PIN came. A PIN change that is begun or given up moves pin_version
-- and leaves the PIN as it was.
ALTER TABLE tokens ADD COLUMN pin_since INTEGER NOT NULL DEFAULT 0;
