-- +goose Up

-- Whether the session is relayed.
ALTER TABLE sessions ADD COLUMN relayed boolean NOT NULL DEFAULT false;

-- +goose Down
ALTER TABLE sessions DROP COLUMN relayed;
