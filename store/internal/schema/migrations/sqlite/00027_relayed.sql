-- +goose Up

-- Whether the session is relayed.
ALTER TABLE sessions ADD COLUMN relayed INTEGER NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE sessions DROP COLUMN relayed;
