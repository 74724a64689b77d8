-- +goose Up

-- How soon a grant's requests get their turn at the token (package signer/queue).
ALTER TABLE grants ADD COLUMN priority INTEGER NOT NULL DEFAULT 0 CHECK (priority BETWEEN 0 AND 7);
