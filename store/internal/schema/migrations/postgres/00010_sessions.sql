-- +goose Up
-- Agents have no sessions but streams.
ALTER TABLE sessions DROP COLUMN unary;

-- +goose Down
ALTER TABLE sessions ADD COLUMN unary boolean NOT NULL DEFAULT false;
