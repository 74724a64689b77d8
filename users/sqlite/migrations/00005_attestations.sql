-- +goose Up

-- What a key's token said of it when it was registered (token.Attestation as JSON); empty: nothing.
ALTER TABLE keys ADD COLUMN attestation TEXT NOT NULL DEFAULT '';
