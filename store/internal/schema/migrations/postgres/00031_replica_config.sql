-- +goose Up
-- What replicas should have alike, as JSON: options that are not at their default, and
-- fingerprints of tokens. Empty: of a version that does not say so.
ALTER TABLE replicas ADD COLUMN config TEXT NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE replicas DROP COLUMN config;
